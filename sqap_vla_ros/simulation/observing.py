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

"""What the simulated robot's camera sees while the scripted expert works, to calibrate and to compare policies on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from sqap_vla_ros.simulation import expert
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.suite import SUITES, Trial, choose_trials
from sqap_vla_ros.simulation.tabletop import Tabletop

# Scenes that neither training (1,000,000 to 1,899,999), validation (from 2,000,000) nor test (from 4,000,000) has.
FIRST_SEED = 1_900_000
_LATEST_STEP = 25


def observe_expert(count: int, first_seed: int = FIRST_SEED) -> Iterator[tuple[np.ndarray, str]]:
    """One picture from each of ``count`` scenes of every suite, at a random stage of its task.

    :param count: scenes
    :param first_seed: of the first scene; the same arguments give the same pictures
    :return: (H, W, 3) uint8 pictures and their instructions
    """
    for tabletop, trial in visit_trials(mix_suites(count, first_seed)):
        yield tabletop.render(), trial.task.instruction


def mix_suites(count: int, first_seed: int) -> list[Trial]:
    """``count`` trials in scenes from ``first_seed`` on: the suites in turn, and in each its groups in turn."""
    parts = []
    for index, suite in enumerate(SUITES):
        share = len(range(index, count, len(SUITES)))
        parts.append(iter(choose_trials(suite, share, first_seed)))
        first_seed += share
    return [next(parts[index % len(parts)]) for index in range(count)]


def visit_trials(trials: Iterable[Trial]) -> Iterator[tuple[Tabletop, Trial]]:
    """Let the expert work on each trial for a while, at most until its task is done.

    How long follows from the scene's seed.

    :return: the table as it is then, until the next is asked for, and its trial
    """
    tabletops: dict[Layout, Tabletop] = {}
    try:
        for trial in trials:
            if trial.layout not in tabletops:
                tabletops[trial.layout] = Tabletop(trial.layout)
            _work(tabletops[trial.layout], trial)
            yield tabletops[trial.layout], trial
    finally:
        for tabletop in tabletops.values():
            tabletop.close()


def _work(tabletop: Tabletop, trial: Trial) -> None:
    tabletop.reset(trial.seed)
    for _ in range(int(np.random.default_rng((trial.seed, 2)).integers(_LATEST_STEP))):
        if tabletop.succeeded(trial.task):
            break
        tabletop.step(expert.act(tabletop.state(), trial.task, tabletop.layout))
