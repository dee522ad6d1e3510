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

"""A clock that stands still while the robot does, so that steps are counted by what was moved. Knows no ROS."""

from __future__ import annotations

from collections import deque

# More than happen between a picture and its answer: motion begins or ends a few times per inference at most.
_REMEMBERED_CHANGES = 256


class MotionClock:
    """How long the robot was commanded to move; it holds before the first command."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin at 0, standing still."""
        # Since when, what this clock showed then, and whether it runs from there.
        self._changes: deque[tuple[int, int, bool]] = deque(maxlen=_REMEMBERED_CHANGES)
        self._moving = False

    def note(self, now_ns: int, *, moving: bool) -> None:
        """A command leaves now.

        :param moving: whether it moves the robot or holds it
        """
        if moving != self._moving:
            self._changes.append((now_ns, self.at(now_ns), moving))
            self._moving = moving

    def at(self, now_ns: int) -> int:
        """What this clock shows at a time of the node's clock.

        :param now_ns: the node's clock, ns; also a moment in the past
        :return: time of motion, ns
        """
        for since_ns, shown_ns, moving in reversed(self._changes):
            if since_ns <= now_ns:
                return shown_ns + (now_ns - since_ns if moving else 0)
        return self._changes[0][1] if self._changes else 0
