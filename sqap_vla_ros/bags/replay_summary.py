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

"""Looks to figures: what `summary.json` of a replay holds beside the bag's own facts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from sqap_vla_ros.bags.looks import RECORDED, LookRecord
from sqap_vla_ros.bags.metrics import (
    compare_actions,
    describe_motion,
    split_stretches,
    summarize_stages,
    weigh_looks,
)
from sqap_vla_ros.config import Config

_DIGITS = 6


def summarize_replay(looks: Sequence[LookRecord], config: Config, labels: Sequence[str]) -> dict[str, Any]:
    """What policies did, compared with what was recorded and with each other.

    The first action of each answer is compared. All but ``timing`` depends on bag, policies and knobs alone.

    :param labels: of the policies; all after the first are what the first is compared with
    """
    asked = [look for look in looks if all(label in look.answers for label in labels)]
    control = config.control
    period_ns = round(control.step_period_s * 1e9)
    stamps = [look.stamp_ns for look in asked]
    stretches = split_stretches(stamps, [look.instruction for look in asked], period_ns)
    weights = weigh_looks(stamps, stretches, period_ns)
    rows = {label: _first_steps(asked, label) for label in labels}
    recorded = np.array([[np.nan if value is None else value for value in look.recorded or [None] * 7]
                         for look in asked]).reshape(-1, 7).astype(np.float64)
    pairs = [(label, RECORDED, recorded) for label in labels] + [(labels[0], other, rows[other])
                                                                 for other in labels[1:]]
    compared = [{"policy": label, "with": other, **compare_actions(rows[label], reference, stretches, weights)}
                for label, other, reference in pairs]
    # Of the same looks, so that they can be compared.
    known = np.asarray(np.isfinite(recorded[:, :3]).all(axis=1))
    counted = known if known.any() else np.ones(len(asked), dtype=bool)
    motion = {name: describe_motion(np.where(counted[:, None], values, np.nan), stamps, stretches, weights,
                                    control.step_period_s)
              for name, values in ((RECORDED, recorded), *rows.items())}
    timing = {label: _summarize_timing(asked, label, 1e3 / control.control_hz) for label in labels}
    figures = _rounded({
        "kind": "replay", "compared": [row for row in compared if row["looks"]], "motion": motion,
        "tokens": {label: _summarize_tokens(asked, label) for label in labels}, "tf": _summarize_tf(looks),
        "answered": len(asked), "step_period_s": control.step_period_s})
    return {**figures, "timing": timing}


def _first_steps(looks: Sequence[LookRecord], label: str) -> np.ndarray:
    return np.array([look.answers[label].steps[0] for look in looks], dtype=np.float64).reshape(-1, 7)


def _summarize_tokens(looks: Sequence[LookRecord], label: str) -> dict[str, Any]:
    answers = [look.answers[label] for look in looks]
    shares = [answer.gripper_kept for answer in answers if answer.gripper_kept is not None]
    return {"kept_mean": float(np.mean([answer.kept for answer in answers])) if answers else None,
            "total": answers[0].total if answers else None,
            "gripper_kept_mean": float(np.mean(shares)) if shares else None, "gripper_looks": len(shares)}


def _summarize_tf(looks: Sequence[LookRecord]) -> dict[str, Any]:
    counts = Counter(look.tf for look in looks)
    looked = sum(counts[name] for name in ("exact", "latest", "none"))
    return {"looks": looked, **{name: counts[name] for name in ("exact", "latest", "none")},
            "hit_rate": (looked - counts["none"]) / looked if looked else None}


def _summarize_timing(looks: Sequence[LookRecord], label: str, deadline_ms: float) -> dict[str, Any]:
    times = [look.answers[label].milliseconds for look in looks]
    return {"latency_ms": summarize_stages(times), "deadline_ms": round(deadline_ms, 3),
            "deadline_misses": sum(sum(entry.values()) > deadline_ms for entry in times)}


def _rounded(value: Any) -> Any:
    # To so many digits as anyone could want; NumPy's sums differ in the last between machines.
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
