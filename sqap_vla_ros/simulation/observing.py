"""Observations to calibrate on: what the simulated robot's camera sees while the scripted expert works."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sqap_vla_ros.simulation import expert
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.suite import SUITES, Trial, choose_trials
from sqap_vla_ros.simulation.tabletop import Tabletop

# Scenes that neither training (1,000,000 to 1,899,999), validation (from 2,000,000) nor test (from 4,000,000) has.
FIRST_SEED = 1_900_000
_LATEST_STEP = 25


def observe_expert(count: int, first_seed: int = FIRST_SEED) -> Iterator[tuple[np.ndarray, str]]:
    """One picture from each of ``count`` scenes of the base and the hard suite in turn, at a random stage of its task.

    :param count: scenes
    :param first_seed: of the first scene; the same arguments give the same pictures
    :return: (H, W, 3) uint8 pictures and their instructions
    """
    suites = [choose_trials(suite, count, first_seed) for suite in SUITES]
    tabletops: dict[Layout, Tabletop] = {}
    try:
        for index in range(count):
            trial = suites[index % len(suites)][index]
            if trial.layout not in tabletops:
                tabletops[trial.layout] = Tabletop(trial.layout)
            yield _look(tabletops[trial.layout], trial), trial.task.instruction
    finally:
        for tabletop in tabletops.values():
            tabletop.close()


def _look(tabletop: Tabletop, trial: Trial) -> np.ndarray:
    tabletop.reset(trial.seed)
    for _ in range(int(np.random.default_rng((trial.seed, 2)).integers(_LATEST_STEP))):
        if tabletop.succeeded(trial.task):
            break
        tabletop.step(expert.act(tabletop.state(), trial.task, tabletop.layout))
    return tabletop.render()
