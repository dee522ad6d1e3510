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

"""What one method changes against another on the same scenes, with the interval that other scenes leave open.

Scenes are drawn again, with replacement, and each brings the outcomes of both methods along, so that it does not count
as a difference how hard the scenes are (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 10_000
_SEED = 0
# How many values are drawn at a time; tens of megabytes.
_BATCH_VALUES = 2_000_000


def resample_difference(first: Sequence[bool], other: Sequence[bool]) -> tuple[float, float]:
    """95 % interval of the other success rate minus the first's.

    To the scenes that were played two are added, one that only the first would solve and one that only the other would
    (as Bonett and Price, Journal of Educational and Behavioral Statistics 37, 2012, add them). Without these, methods
    that never differed would seem certain never to differ, and a single difference certain to be in one direction.

    :param first: whether the first succeeded, scene by scene
    :param other: the same of the other
    :return: low and high, -1 to 1; everything is possible without scenes
    """
    if not first:
        return -1.0, 1.0
    return _resample(np.array([*first, True, False], dtype=float), np.array([*other, False, True], dtype=float),
                     lambda one, two, axis: two.mean(axis) - one.mean(axis))


def resample_ratio(first: Sequence[float], other: Sequence[float]) -> tuple[float, float, float] | None:
    """The other's mean over the first's, and its 95 % interval, which is a point where all ratios are the same.

    :param first: of the first, scene by scene
    :param other: of the other
    :return: ratio, low and high; None for fewer than two scenes, or where the first has one that is not above 0
    """
    if len(first) < 2 or min(first) <= 0.0:
        return None
    one, two = np.array(first, dtype=float), np.array(other, dtype=float)
    low, high = _resample(one, two, lambda one, two, axis: two.mean(axis) / one.mean(axis))
    return float(two.mean() / one.mean()), low, high


def _resample(first: np.ndarray, other: np.ndarray, statistic: Callable[..., Any]) -> tuple[float, float]:
    # Takes a second to import, which processes that only play need not wait.
    from scipy.stats import bootstrap

    found = bootstrap(
        (first, other), statistic, paired=True, vectorized=True, n_resamples=RESAMPLES, method="percentile",
        batch=max(_BATCH_VALUES // len(first), 1), random_state=np.random.default_rng(_SEED)).confidence_interval
    return float(found.low), float(found.high)
