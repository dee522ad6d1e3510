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

"""What happened since the node started, in counters, windows of times and sentences; and the messages of it.

A window holds the newest ``WINDOW`` inferences, so percentiles follow a change of load within seconds.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from sqap_vla_ros.data import Inference, TokenRule, TokenUse
from sqap_vla_ros.ros.codecs import make_header

WINDOW = 200
PERCENTILES = (50, 95, 99)
# How long a refusal still colours the summary, and how long the same sentence is not logged again.
REMEMBERED_S = 5.0
_NUMBER = re.compile(r"[\d.]+")

# What can go wrong, by the name of its counter; all are shown from the start, so that a 0 can be read.
INPUT_KINDS = ("image", "stale_image", "no_image", "instruction", "empty_instruction", "camera_info", "state", "clock")
INFERENCE_KINDS = ("inference",)
STOP_KINDS = ("estop", "fault")
OTHER_KINDS = ("no_protection", "no_tool", "clamped", "gripper", "servo", "overlay", "clock_jump", "dropped_chunk",
               "late_answer", "over_chunk", "deadline")


@dataclass(frozen=True)
class Summary:
    """What ``/diagnostics`` says of one second.

    :param state: name of the lifecycle state
    :param failure: why the last transition failed; empty when it did not
    :param stop: kind and sentence of why an interlock keeps the robot still; empty when none does
    :param hold: why the robot holds; empty when it moves, or when the node is not active
    :param instruction: the instruction in force
    :param policy: what runs, as ``Policy.describe`` gives it
    :param ages_s: age of the newest of each input, by name; None where none came yet
    """

    state: str
    failure: str
    hold: str
    instruction: str
    policy: Mapping[str, str | int | float]
    stop: tuple[str, str] = ("", "")
    ages_s: Mapping[str, float | None] = field(default_factory=dict)


class Health:
    """See the module's docstring; times in ms.

    :param name: of the node, first part of every status name
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.counts: Counter[str] = Counter()
        self.inferences = 0
        self._lookups: Counter[str] = Counter()
        self._reasons: dict[str, tuple[str, int]] = {}
        self._logged: dict[str, tuple[str, int]] = {}
        self._windows: dict[str, deque[float]] = {}
        self._ends_ns: deque[int] = deque(maxlen=WINDOW)
        self._tokens: tuple[TokenUse, ...] = ()

    def note(self, kind: str, sentence: str, wall_ns: int) -> bool:
        """Count something that went wrong.

        :param kind: name of the counter
        :param sentence: what, in words
        :param wall_ns: a steady wall clock
        :return: whether to log it; false while the same was logged a moment ago
        """
        self.counts[kind] += 1
        self._reasons[kind] = (sentence, wall_ns)
        # Ages and counts differ each time and say nothing new.
        gist = _NUMBER.sub("", sentence)
        last, at_ns = self._logged.get(kind, ("", 0))
        if last == gist and wall_ns - at_ns < REMEMBERED_S * 1e9:
            return False
        self._logged[kind] = (gist, wall_ns)
        return True

    def note_lookup(self, kind: str) -> None:
        """Count where the footprint of a picture came from: 'exact', 'latest' or 'none'."""
        self._lookups[kind] += 1

    def record(self, inference: Inference, image_age_ms: float, wall_ns: int, *, deadline_ms: float) -> None:
        """Take the times of one inference into the windows.

        :param deadline_ms: what the stages together should take at most; longer is counted as a missed deadline
        """
        self.inferences += 1
        self.counts["deadline"] += inference.times.total_ms > deadline_ms
        self._tokens = inference.tokens
        self._ends_ns.append(wall_ns)
        for stage, value in _stage_times(inference, image_age_ms).items():
            self._windows.setdefault(stage, deque(maxlen=WINDOW)).append(value)

    def latency(self, inference: Inference, image_age_ms: float, protection: str, stamp_ns: int,
                engine: str = "", dropped: str = "") -> DiagnosticArray:
        """One inference as a message.

        :param inference: the inference
        :param image_age_ms: age of the image when its first command left, on the node's clock
        :param protection: why the robot was not protected; empty when it was
        :param stamp_ns: now
        :param engine: what multiplied
        :param dropped: name of the counter of why nothing came of it; empty when it is carried out
        """
        more = {"image_stamp_ns": inference.chunk.stamp_ns, "inferences": self.inferences,
                "dropped_chunks": self.counts["dropped_chunk"], "missed_deadlines": self.counts["deadline"],
                "engine": engine, "dropped": dropped}
        return encode_latency(self._name, _stage_times(inference, image_age_ms), _token_counts(inference.tokens), more,
                              protection, stamp_ns)

    def summary(self, now: Summary, stamp_ns: int, wall_ns: int) -> DiagnosticArray:
        """The last second as a message."""
        level, message = self._judge(now, wall_ns)
        values: dict[str, object] = {"state": now.state, "instruction": now.instruction, "hold": now.hold,
                                     "stop": now.stop[1], "inferences": self.inferences,
                                     "rate_hz": f"{self._rate_hz(wall_ns):.2f}"}
        for stage, window in self._windows.items():
            values |= {f"{stage}_p{percent}_ms": f"{value:.3f}"
                       for percent, value in zip(PERCENTILES, np.percentile(window, PERCENTILES), strict=True)}
        values |= {f"age.{name}_s": "never" if age is None else f"{age:.3f}" for name, age in now.ages_s.items()}
        if looked := self._lookups.total():
            values["tf_hit_ratio"] = f"{(looked - self._lookups['none']) / looked:.3f}"
            values["tf_exact_ratio"] = f"{self._lookups['exact'] / looked:.3f}"
        if self._tokens:
            values |= _token_counts(self._tokens)
        values |= {f"count.{kind}": self.counts[kind]
                   for kind in INPUT_KINDS + INFERENCE_KINDS + STOP_KINDS + OTHER_KINDS}
        values |= {f"reason.{kind}": sentence for kind, (sentence, _) in self._reasons.items()}
        values |= {f"policy.{key}": value for key, value in now.policy.items()}
        return self._array("policy", level, message, values, stamp_ns)

    def _judge(self, now: Summary, wall_ns: int) -> tuple[bytes, str]:
        if now.failure:
            return DiagnosticStatus.ERROR, now.failure
        if now.state != "active":
            return DiagnosticStatus.OK, now.state
        kind, sentence = now.stop
        if kind in STOP_KINDS:
            return DiagnosticStatus.ERROR, f"stopped: {sentence}"
        recent = {kind: sentence for kind, (sentence, at_ns) in self._reasons.items()
                  if wall_ns - at_ns < REMEMBERED_S * 1e9}
        failed = [recent[kind] for kind in INFERENCE_KINDS if kind in recent]
        if failed:
            return DiagnosticStatus.ERROR, f"inference failed: {failed[0]}"
        if kind:
            return DiagnosticStatus.WARN, f"stopped: {sentence}"
        if now.hold:
            return DiagnosticStatus.WARN, f"holding: {now.hold}"
        if recent:
            return DiagnosticStatus.WARN, next(reversed(recent.values()))
        return DiagnosticStatus.OK, "running"

    def _rate_hz(self, wall_ns: int) -> float:
        recent = [end for end in self._ends_ns if wall_ns - end < REMEMBERED_S * 1e9]
        return len(recent) / max((wall_ns - recent[0]) * 1e-9, 1.0) if recent else 0.0

    def _array(self, task: str, level: bytes, message: str, values: Mapping[str, object],
               stamp_ns: int) -> DiagnosticArray:
        return _encode(f"{self._name}: {task}", level, message, values, stamp_ns)


def encode_latency(name: str, milliseconds: Mapping[str, float], tokens: Mapping[str, int],
                   more: Mapping[str, object], protection: str, stamp_ns: int) -> DiagnosticArray:
    """One inference as a message.

    :param name: of the node, or of what stands for it
    :param milliseconds: by stage, ``total`` among them
    :param tokens: how many there are, and how many each rule kept
    :param more: other values
    :param protection: why the robot was not protected; empty when it was
    :param stamp_ns: of the message
    """
    values = {**{f"{stage}_ms": f"{value:.3f}" for stage, value in milliseconds.items()}, **tokens, **more,
              "no_protection": protection}
    level = DiagnosticStatus.WARN if protection else DiagnosticStatus.OK
    message = f"not protected: {protection}" if protection else f"{milliseconds['total']:.1f} ms"
    return _encode(f"{name}: latency", level, message, values, stamp_ns)


def _encode(name: str, level: bytes, message: str, values: Mapping[str, object], stamp_ns: int) -> DiagnosticArray:
    status = DiagnosticStatus(name=name, level=level, message=message, hardware_id="none",
                              values=[KeyValue(key=key, value=str(value)) for key, value in values.items()])
    return DiagnosticArray(header=make_header(stamp_ns, ""), status=[status])


def _stage_times(inference: Inference, image_age_ms: float) -> dict[str, float]:
    return {**inference.times.milliseconds, "total": inference.times.total_ms, "image_age": image_age_ms}


def _token_counts(tokens: tuple[TokenUse, ...]) -> dict[str, int]:
    # Of all cameras together.
    rules = {"protected": TokenRule.ROBOT, "attention": TokenRule.ATTENTION, "coverage": TokenRule.COVERAGE,
             "random": TokenRule.RANDOM}
    return {"tokens": sum(use.grid[0] * use.grid[1] for use in tokens), "kept": sum(len(use.kept) for use in tokens),
            **{name: sum(use.count(rule) for use in tokens) for name, rule in rules.items()}}
