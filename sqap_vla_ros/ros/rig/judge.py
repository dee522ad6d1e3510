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

"""Every command on the wire, judged: how fast, how fresh, how finite, and when the robot rested. Knows no ROS."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# MoveIt Servo halts on a command of this age.
STALE_NS = 100_000_000
# Commands that were on their way when a cap or the clock changed are judged by what was before.
GRACE_NS = 200_000_000
# Rounding.
_TOLERANCE = 1e-9
_EXAMPLES, _REMEMBERED = 50, 10_000

TOO_FAST, STALE, AHEAD, NOT_FINITE = "too fast", "stale", "ahead of the clock", "not finite"
NO_FRAME, NO_REST, NONSENSE_TAKEN = "no frame_id", "no rest", "nonsense taken"


@dataclass(frozen=True)
class Arrival:
    """One command as it came.

    :param at_ns: when it came, system time
    :param clock_ns: the node's clock at that moment
    :param stamp_ns: its stamp
    :param frame_id: its frame
    :param velocity: (6,) m/s and rad/s
    """

    at_ns: int
    clock_ns: int
    stamp_ns: int
    frame_id: str
    velocity: np.ndarray


@dataclass(frozen=True)
class Unsafe:
    """A command that should not have been.

    :param kind: which rule it broke
    :param fault: what was on then; empty when nothing was
    :param sentence: what came, and what is allowed
    """

    kind: str
    fault: str
    sentence: str


class Judge:
    """Takes all commands in their order.

    :param max_linear_m_s: cap on the linear speed
    :param max_angular_rad_s: cap on the angular speed
    """

    def __init__(self, max_linear_m_s: float, max_angular_rad_s: float) -> None:
        self.commands = 0
        self.unsafe: Counter[str] = Counter()
        self.unsafe_by_fault: Counter[str] = Counter()
        self.examples: deque[Unsafe] = deque(maxlen=_EXAMPLES)
        self._fault, self._began_ns = "", 0
        self._rest_from_ns: int | None = None
        self._moves: deque[tuple[int, bool]] = deque(maxlen=_REMEMBERED)
        self._caps = self._looser = (max_linear_m_s, max_angular_rad_s)
        self._looser_until_ns = self._jumped_until_ns = 0

    def begin(self, fault: str, at_ns: int, rests_within_s: float | None) -> None:
        """A fault begins.

        :param fault: its name
        :param at_ns: when, system time
        :param rests_within_s: time after which the robot must rest, or None
        """
        self._moves.clear()
        self._fault, self._began_ns = fault, at_ns
        self._rest_from_ns = None if rests_within_s is None else at_ns + int(rests_within_s * 1e9)

    def end(self) -> float | None:
        """The fault ends.

        :return: time until the command that began the rest in which it ended, s; None when the robot moved on
        """
        self._fault, self._rest_from_ns = "", None
        last_ns = max((at_ns for at_ns, moves in self._moves if moves), default=self._began_ns)
        rest_ns = next((at_ns for at_ns, moves in self._moves if at_ns > last_ns), None)
        return None if rest_ns is None else (rest_ns - self._began_ns) * 1e-9

    def first_move_ns(self, since_ns: int) -> int | None:
        """When the first command came, since then, that was not zero."""
        return next((at_ns for at_ns, moves in self._moves if moves and at_ns >= since_ns), None)

    def change_caps(self, max_linear_m_s: float, max_angular_rad_s: float, at_ns: int) -> None:
        """Other caps are in force; for a moment the looser of both count."""
        caps = (max_linear_m_s, max_angular_rad_s)
        self._looser = (max(caps[0], self._caps[0]), max(caps[1], self._caps[1]))
        self._caps, self._looser_until_ns = caps, at_ns + GRACE_NS

    def note_clock_jump(self, at_ns: int) -> None:
        """The node's clock jumped; for a moment stamps prove nothing."""
        self._jumped_until_ns = at_ns + GRACE_NS

    def note(self, arrival: Arrival) -> None:
        """A command came."""
        self.commands += 1
        self._moves.append((arrival.at_ns, bool(arrival.velocity.any())))
        for kind, sentence in self._find_breaches(arrival):
            self.count(kind, sentence)

    def count(self, kind: str, sentence: str) -> None:
        """Something unsafe happened."""
        self.unsafe[kind] += 1
        self.unsafe_by_fault[self._fault] += 1
        self.examples.append(Unsafe(kind, self._fault, sentence))

    def _find_breaches(self, arrival: Arrival) -> Iterator[tuple[str, str]]:
        velocity = arrival.velocity
        if not np.isfinite(velocity).all():
            yield NOT_FINITE, f"the velocity is {velocity.tolist()}"
        caps = self._looser if arrival.at_ns < self._looser_until_ns else self._caps
        for name, part, cap, unit in (("linear", velocity[:3], caps[0], "m/s"), ("angular", velocity[3:], caps[1],
                                                                                 "rad/s")):
            speed = float(np.linalg.norm(part))
            if speed > cap * (1.0 + _TOLERANCE):
                yield TOO_FAST, f"the {name} speed is {speed:.6g} {unit}; allowed are {cap:g}"
        if not arrival.frame_id:
            yield NO_FRAME, "the frame_id is empty"
        age_ns = arrival.clock_ns - arrival.stamp_ns
        if abs(age_ns) >= STALE_NS and arrival.at_ns >= self._jumped_until_ns:
            yield STALE if age_ns > 0 else AHEAD, f"the stamp is {age_ns * 1e-9:.3f} s old"
        if self._rest_from_ns is not None and arrival.at_ns > self._rest_from_ns and velocity.any():
            yield NO_REST, (f"the robot still moves {(arrival.at_ns - self._began_ns) * 1e-9:.2f} s after the fault "
                            "began")
