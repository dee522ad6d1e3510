"""Closed-loop success of a float checkpoint on the validation seeds."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sqap_vla_ros.simulation.episode import run_episode
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.suite import SEED_RANGES, SUITES, Trial, choose_trials
from sqap_vla_ros.simulation.tabletop import Tabletop
from sqap_vla_ros.training.collect import limit_threads, load_infer

Job = tuple[Path, list[Trial], int]


def validate(checkpoint: Path, suite: str, episodes: int, execute_steps: int, workers: int) -> dict[str, Any]:
    """Run ``episodes`` episodes of a suite, its groups in turn.

    :return: success (0..1), successes, episodes, and successes by group
    """
    trials = choose_trials(suite, episodes, SEED_RANGES["validation"][0])
    jobs: list[Job] = [(checkpoint, list(trials[worker::workers]), execute_steps) for worker in range(workers)]
    with multiprocessing.get_context("spawn").Pool(workers, limit_threads) as pool:
        results = [result for part in tqdm(pool.imap_unordered(_run_share, jobs), total=workers,
                                           desc=f"validate {suite}", unit="worker") for result in part]
    groups = {name: f"{sum(ok for group, ok in results if group == name)}/{sum(group == name for group, _ in results)}"
              for name in SUITES[suite]}
    successes = sum(ok for _, ok in results)
    return {"success": successes / len(results), "successes": successes, "episodes": len(results), "tasks": groups}


def _run_share(job: Job) -> list[tuple[str, bool]]:
    checkpoint, trials, execute_steps = job
    infer = load_infer(checkpoint)
    tabletops: dict[Layout, Tabletop] = {}
    results = []
    for trial in trials:
        tabletop = tabletops.get(trial.layout) or Tabletop(trial.layout)
        tabletops[trial.layout] = tabletop
        tabletop.reset(trial.seed)
        results.append((trial.group, run_episode(tabletop, trial.task, infer, execute_steps=execute_steps).success))
    for tabletop in tabletops.values():
        tabletop.close()
    return results
