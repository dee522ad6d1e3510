"""Closed-loop success of a float checkpoint on the validation seeds."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sqap_vla_ros.simulation.episode import run_episode
from sqap_vla_ros.simulation.tabletop import Tabletop
from sqap_vla_ros.simulation.tasks import KINDS, Task
from sqap_vla_ros.training.collect import load_infer
from sqap_vla_ros.training.settings import VALIDATION_SEEDS


def validate(checkpoint: Path, episodes: int, execute_steps: int, workers: int) -> dict[str, Any]:
    """Run ``episodes`` episodes, the tasks in turn.

    :return: success (0..1), successes, episodes, and successes by task
    """
    jobs = [(checkpoint, worker, episodes, workers, execute_steps) for worker in range(workers)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        results = [result for part in tqdm(pool.imap_unordered(_run_share, jobs), total=workers, desc="validate",
                                           unit="worker") for result in part]
    tasks = {kind: f"{sum(ok for name, ok in results if name == kind)}/{sum(name == kind for name, _ in results)}"
             for kind in KINDS}
    successes = sum(ok for _, ok in results)
    return {"success": successes / len(results), "successes": successes, "episodes": len(results), "tasks": tasks}


def _run_share(job: tuple[Path, int, int, int, int]) -> list[tuple[str, bool]]:
    checkpoint, worker, episodes, workers, execute_steps = job
    infer, tabletop, results = load_infer(checkpoint), Tabletop(), []
    for index in range(worker, episodes, workers):
        scene = tabletop.reset(VALIDATION_SEEDS[index])
        task = Task(KINDS[index % len(KINDS)], scene.colors[index % len(scene.colors)])
        outcome = run_episode(tabletop, task, infer, execute_steps=execute_steps)
        results.append((task.kind, outcome.success))
    tabletop.close()
    return results
