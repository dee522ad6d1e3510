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

"""What one policy's error changes against another's on the same looks, with the interval that other data leave open.

Looks next to each other see nearly the same and are wrong in nearly the same way, so that looks drawn one by one would
give intervals that are far too short. Of several bags whole bags are drawn, as they are what is independent: the
interval is for other bags of the kind. Of one bag contiguous blocks of its looks are drawn, so that what lasts stays
together; the interval is for this bag's kind of motion only. The blocks do not overlap, which makes them plain units
for SciPy's bootstrap, and they are few and long, since many short ones would cut what lasts (Schmeiser, "Batch size
effects in the analysis of simulation output", Operations Research 30, 1982, finds 10 to 30 enough). The difference is
taken look by look first, so it does not count how hard a look is for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sqap_vla_ros.evaluation.resampling import RESAMPLES

BLOCKS, LEAST_UNITS, LEAST_BLOCK_LOOKS = 10, 6, 10
Key = tuple[int, int]
Errors = Mapping[Key, float]
Actions = Mapping[Key, np.ndarray]
MSE, DISTANCE = "MSE", "distance (mm)"
# Of the six numbers of motion as they are, metres and radians mixed, as a replay's own summary has it; of the shift.
MEASURES: Mapping[str, Callable[[np.ndarray], float]] = {
    MSE: lambda apart: float(np.square(apart).mean()),
    DISTANCE: lambda apart: float(1e3 * np.linalg.norm(apart[:3])),
}
_LEVEL = 0.95
_SEED = 0


@dataclass(frozen=True)
class Difference:
    """The other's mean error minus the first's over the looks that both answered, each look counting alike.

    :param first: mean error of the first
    :param other: mean error of the other
    :param difference: of the two
    :param interval: low and high, 95 %; None for fewer than ``LEAST_UNITS`` bags, or blocks of one bag
    :param looks: that both answered
    :param bags: that have such looks
    :param by_bag: the difference within each of them, by its name
    """

    first: float
    other: float
    difference: float
    interval: tuple[float, float] | None
    looks: int
    bags: int
    by_bag: Mapping[str, float]


def compare_errors(first: Mapping[str, Errors], other: Mapping[str, Errors]) -> Difference | None:
    """Pair the errors of two policies look by look.

    :param first: by bag, then by index and stamp of the look
    :param other: the same of the other
    :return: None where there is no look that both answered
    """
    shared = {bag: sorted(first[bag].keys() & other[bag].keys()) for bag in first if bag in other}
    pairs = {bag: np.array([(first[bag][key], other[bag][key]) for key in keys])
             for bag, keys in shared.items() if keys}
    if not pairs:
        return None
    every = np.concatenate(list(pairs.values()))
    changes = {bag: errors[:, 1] - errors[:, 0] for bag, errors in pairs.items()}
    units = list(changes.values()) if len(changes) > 1 else cut_blocks(next(iter(changes.values())))
    return Difference(
        first=float(every[:, 0].mean()), other=float(every[:, 1].mean()),
        difference=float((every[:, 1] - every[:, 0]).mean()), interval=resample_units(units), looks=len(every),
        bags=len(pairs), by_bag={bag: float(values.mean()) for bag, values in changes.items()})


def measure_errors(actions: Actions, wanted: Actions, measure: str) -> dict[Key, float]:
    """How far actions are from others, look by look, where both are known.

    :param actions: (6,) by look, m and rad of one step
    :param wanted: the same, NaN where it is not known
    :param measure: one of ``MEASURES``
    """
    apart = {key: step - wanted[key] for key, step in actions.items() if key in wanted}
    return {key: MEASURES[measure](step) for key, step in apart.items() if np.isfinite(step).all()}


def cut_blocks(values: np.ndarray) -> list[np.ndarray]:
    """Contiguous blocks of one bag's looks, of equal length to within one look.

    :param values: (N,) in the order of the looks
    :return: ``BLOCKS``, or fewer where they would be shorter than ``LEAST_BLOCK_LOOKS``
    """
    return np.array_split(values, max(1, min(BLOCKS, len(values) // LEAST_BLOCK_LOOKS)))


def resample_units(units: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """95 % interval of the mean of all values when whole units are drawn again, with replacement.

    Percentiles of so few draws lie too close together; they are taken further out, as far as Student's distribution is
    wider than the normal one (Hesterberg, "What teachers should know about the bootstrap", The American Statistician
    69, 2015, 5.1).

    :param units: values of each unit, bag or block
    :return: None below ``LEAST_UNITS``: were there no difference, five units would all lie to one side of 0 in one
        case of 16, so that no interval of what was drawn could be one of 95 %
    """
    if len(units) < LEAST_UNITS:
        return None
    # Takes a second to import, which nobody who asks for help should wait.
    from scipy.stats import bootstrap, norm, t

    freedom = len(units) - 1
    reach = math.sqrt(len(units) / freedom) * t.ppf((1.0 + _LEVEL) / 2.0, freedom)
    sums, counts = np.array([(values.sum(), len(values)) for values in units]).T
    found = bootstrap(
        (sums, counts), lambda one, two, axis: one.sum(axis) / two.sum(axis), paired=True, vectorized=True,
        n_resamples=RESAMPLES, method="percentile", confidence_level=1.0 - 2.0 * norm.cdf(-reach),
        random_state=np.random.default_rng(_SEED)).confidence_interval
    return float(found.low), float(found.high)
