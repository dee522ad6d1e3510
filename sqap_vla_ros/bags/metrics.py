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

"""How far one row of actions is from another, and how smooth each is; NumPy only.

Actions are those of the first step of each look, in metres and radians. Looks that follow each other in one instruction
without a gap are a stretch; what adds up over time adds up within one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from sqap_vla_ros.data import ACTION_NAMES

# Shorter motions in one step have no direction worth comparing.
STILL = 1e-6
PERCENTILES = (("p50", 50), ("p95", 95), ("p99", 99), ("max", 100))
# After so many periods without a look, another stretch begins.
_GAP_PERIODS = 3


def split_stretches(stamps_ns: Sequence[int], instructions: Sequence[str], period_ns: int) -> list[slice]:
    """Where looks follow each other.

    :param stamps_ns: (N,) of the looks, in the order of the bag
    :param instructions: (N,)
    :param period_ns: how long a step lasts
    """
    stamps = np.asarray(stamps_ns, dtype=np.int64)
    gaps = np.diff(stamps)
    spoken = np.array([one != other for one, other in pairwise(instructions)], dtype=bool)
    starts = np.flatnonzero((gaps <= 0) | (gaps > _GAP_PERIODS * period_ns) | spoken) + 1
    bounds = [0, *starts.tolist(), len(stamps)]
    return [slice(first, end) for first, end in pairwise(bounds) if end > first]


def weigh_looks(stamps_ns: Sequence[int], stretches: Sequence[slice], period_ns: int) -> np.ndarray:
    """For which share of a step's time each look counts: until the next one, at most the whole step.

    :return: (N,) 0 to 1
    """
    stamps = np.asarray(stamps_ns, dtype=np.int64)
    weights = np.ones(len(stamps))
    for stretch in stretches:
        weights[stretch][:-1] = np.minimum(np.diff(stamps[stretch]) / period_ns, 1.0)
    return weights


def compare_actions(actions: np.ndarray, reference: np.ndarray, stretches: Sequence[slice],
                    weights: np.ndarray) -> dict[str, Any]:
    """How far actions are from a reference.

    :param actions: (N, 7)
    :param reference: (N, 7), NaN where nothing is known, whole rows or the gripper alone
    :param stretches: looks that follow each other
    :param weights: (N,) share of its step for which a look counts, in what adds up
    :return: ``mse`` and ``mae`` over the six numbers of motion; ``cosine`` of the motion, ``mean`` and ``min``, over
        looks in which both move; ``gripper_agreement``, the share of looks where both want it open, or closed; and by
        dimension ``mse``, ``mae`` and ``drift``, the farthest that the sums of both come apart within a stretch. None
        where there is nothing to compare
    """
    known = np.isfinite(reference[:, :6]).all(axis=1)
    errors = actions - reference
    motion = errors[known, :6]
    gripped = np.isfinite(reference[:, 6])
    same = (actions[gripped, 6] > 0.5) == (reference[gripped, 6] > 0.5)
    return {"looks": int(known.sum()), "mse": _mean(motion**2), "mae": _mean(np.abs(motion)),
            "cosine": _compare_directions(actions[known, :6], reference[known, :6]),
            "gripper_agreement": _mean(same),
            "dimensions": {name: {"mse": _mean(column[np.isfinite(column)]**2),
                                  "mae": _mean(np.abs(column[np.isfinite(column)])),
                                  "drift": None if name == "gripper" else _drift(column, stretches, weights)}
                           for name, column in zip(ACTION_NAMES, errors.T, strict=True)}}


def describe_motion(actions: np.ndarray, stamps_ns: Sequence[int], stretches: Sequence[slice], weights: np.ndarray,
                    period_s: float) -> dict[str, float | None]:
    """Mean size of the jerk, m/s^3, and length of the path, m.

    The jerk is the second difference of the velocities over the looks' own times, which is the third of positions.

    :param actions: (N, 7), rows of NaN where nothing is known; jerk is that of the rows between them
    """
    stamps_s = np.asarray(stamps_ns, dtype=np.int64) * 1e-9
    jerks, path = [np.zeros(0)], 0.0
    for stretch in stretches:
        velocities = actions[stretch, :3] / period_s
        known = np.asarray(np.isfinite(velocities).all(axis=1))
        path += float((np.linalg.norm(actions[stretch, :3][known], axis=1) * weights[stretch][known]).sum())
        for run in _find_runs(known):
            jerks.append(_measure_jerks(velocities[run], stamps_s[stretch][run]))
    sizes = np.concatenate(jerks)
    return {"jerk_m_s3": float(sizes.mean()) if len(sizes) else None,
            "path_m": path if np.isfinite(actions[:, :3]).any() else None}


def _find_runs(known: np.ndarray) -> list[slice]:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], known, [False])).astype(np.int8)))
    return [slice(first, end) for first, end in zip(edges[::2], edges[1::2], strict=True)]


def _measure_jerks(velocities: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    if len(velocities) < 3:
        return np.zeros(0)
    gaps = np.diff(times_s)[:, None]
    accelerations = np.diff(velocities, axis=0) / gaps
    return np.linalg.norm(np.diff(accelerations, axis=0) * 2.0 / (gaps[1:] + gaps[:-1]), axis=1)


def summarize_stages(milliseconds: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Percentiles in ms of each stage, in the order run, and of their sum, ``total``."""
    columns: dict[str, list[float]] = {}
    for entry in milliseconds:
        for stage, value in entry.items():
            columns.setdefault(stage, []).append(value)
    if milliseconds:
        columns["total"] = [sum(entry.values()) for entry in milliseconds]
    return {stage: {name: round(float(np.percentile(values, level)), 3) for name, level in PERCENTILES}
            for stage, values in columns.items()}


def _compare_directions(actions: np.ndarray, reference: np.ndarray) -> dict[str, float] | None:
    lengths = np.linalg.norm(actions, axis=1) * np.linalg.norm(reference, axis=1)
    moving = (np.linalg.norm(actions, axis=1) > STILL) & (np.linalg.norm(reference, axis=1) > STILL)
    if not moving.any():
        return None
    cosines = (actions * reference).sum(axis=1)[moving] / lengths[moving]
    return {"mean": float(cosines.mean()), "min": float(cosines.min())}


def _drift(errors: np.ndarray, stretches: Sequence[slice], weights: np.ndarray) -> float | None:
    sums = [np.abs(np.cumsum(np.nan_to_num(errors[stretch]) * weights[stretch])).max() for stretch in stretches
            if np.isfinite(errors[stretch]).any()]
    return float(max(sums)) if sums else None


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
