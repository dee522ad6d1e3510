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

"""When a picture starts an inference, and when a command waits for one. Knows no ROS.

A simulator may hold its clock still until a command for the present moment comes. A command from the old chunk would
set it free too early, and the simulated robot would be answered late by as much as the machine is slow. So under
simulated time a command waits while the picture of this very moment is being answered, or, as long as the clock does
stand still, is on its way.
"""

from __future__ import annotations

from sqap_vla_ros.data import ActionChunk
from sqap_vla_ros.policy.chunk import executed_steps

# Longest wall time for which a picture that should be there by now is waited for; it may have been lost.
PICTURE_GRACE_S = 0.5
_LONGEST_PERIOD_NS = 1_000_000_000


def is_due(chunk: ActionChunk | None, stamp_ns: int, execute_steps: int) -> bool:
    """Whether a picture should start an inference: one that shows what became of the steps before.

    :param chunk: the actions in force, or None
    :param stamp_ns: the picture's stamp
    :param execute_steps: steps of a chunk that run before a newer picture is taken
    """
    return chunk is None or executed_steps(chunk, stamp_ns) >= min(execute_steps, len(chunk.steps))


class Pacing:
    """Watches the camera's rhythm."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the camera, after the clock jumped."""
        self._newest_ns: int | None = None
        self._period_ns: int | None = None
        self._missed_since: tuple[int, int] | None = None

    @property
    def newest_ns(self) -> int | None:
        """Stamp of the newest picture."""
        return self._newest_ns

    def note_picture(self, stamp_ns: int) -> None:
        """A picture arrived, usable or not."""
        if self._newest_ns is not None and 0 < stamp_ns - self._newest_ns < _LONGEST_PERIOD_NS:
            self._period_ns = stamp_ns - self._newest_ns
        self._newest_ns = stamp_ns
        self._missed_since = None

    def answer_expected(self, now_ns: int, wall_ns: int, unanswered_ns: int | None) -> bool:
        """Whether a command for ``now_ns`` will come out of a picture of this very moment.

        :param now_ns: the node's clock, simulated
        :param wall_ns: a steady wall clock
        :param unanswered_ns: stamp of the picture that waits or is being worked on; None when there is none
        """
        if unanswered_ns is not None and unanswered_ns >= now_ns:
            return True
        if self._newest_ns is None or self._period_ns is None or self._newest_ns + self._period_ns > now_ns:
            return False
        if self._missed_since is None:
            self._missed_since = (now_ns, wall_ns)
        began_ns, began_wall_ns = self._missed_since
        return now_ns == began_ns and wall_ns - began_wall_ns < PICTURE_GRACE_S * 1e9
