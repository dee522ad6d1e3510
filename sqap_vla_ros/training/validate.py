# Copyright 2026 sqap_vla_ros maintainers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Closed-loop success of a float checkpoint on the validation seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from sqap_vla_ros.simulation.episode import run_episode
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.suite import SEED_RANGES, SUITES, Trial, choose_trials
from sqap_vla_ros.simulation.tabletop import Tabletop
from sqap_vla_ros.training.collect import Infer, load_infer, spawn_pool

Job = tuple[Trial, int]
# Of one worker: its policy, and the tables that its trials have needed so far.
_policy: list[Infer] = []
_tabletops: dict[Layout, Tabletop] = {}


def validate(checkpoint: Path, suite: str, episodes: int, execute_steps: int, workers: int) -> dict[str, Any]:
    """Run ``episodes`` episodes of a suite, its groups in turn.

    :return: success (0..1), successes, episodes, and successes by group
    """
    jobs = [(trial, execute_steps) for trial in choose_trials(suite, episodes, SEED_RANGES["validation"][0])]
    with spawn_pool(workers, _start, checkpoint) as pool:
        results = list(tqdm(pool.imap_unordered(_play, jobs), total=len(jobs), desc=f"validate {suite}",
                            unit="episode"))
    groups = {name: f"{sum(ok for group, ok in results if group == name)}/{sum(group == name for group, _ in results)}"
              for name in SUITES[suite]}
    successes = sum(ok for _, ok in results)
    return {"success": successes / len(results), "successes": successes, "episodes": len(results), "tasks": groups}


def _start(checkpoint: Path) -> None:
    _policy.append(load_infer(checkpoint))


def _play(job: Job) -> tuple[str, bool]:
    trial, execute_steps = job
    if trial.layout not in _tabletops:
        _tabletops[trial.layout] = Tabletop(trial.layout)
    tabletop = _tabletops[trial.layout]
    tabletop.reset(trial.seed)
    return trial.group, run_episode(tabletop, trial.task, _policy[0], execute_steps=execute_steps).success
