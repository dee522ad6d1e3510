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

"""What keeps the robot still until a person says otherwise: the e-stop, a fault, and actuation that is off.

A stop and a fault are latched. Their cause may pass; they end by a reset only.
"""

from __future__ import annotations

from sqap_vla_ros.knobs import ControlKnobs
from sqap_vla_ros.ros import interface


class Interlock:
    """E-stop and fault of one node, both open at first."""

    def __init__(self) -> None:
        self._pressed = False
        self._stopped = False
        self._fault: str | None = None
        self._failures = 0
        self.closings = 0  # how often an interlock was closed, so that none goes unseen that was short

    @property
    def is_stopped(self) -> bool:
        """Whether an e-stop is latched."""
        return self._stopped

    @property
    def open(self) -> bool:
        """Whether neither a stop nor a fault is latched."""
        return not self._stopped and self._fault is None

    def note_closing(self) -> None:
        """Another interlock, actuation, was closed."""
        self.closings += 1

    def press(self, pressed: bool) -> None:
        """The e-stop's button has told how it is.

        :param pressed: true stops; false only allows a reset
        """
        self.closings += pressed and not self._stopped
        self._pressed = pressed
        self._stopped = self._stopped or pressed

    def note_failure(self, sentence: str, limit: int) -> bool:
        """An inference failed.

        :param sentence: why
        :param limit: so many in a row are a fault
        :return: whether this one made it a fault
        """
        self._failures += 1
        if self._fault is not None or self._failures < limit:
            return False
        self.trip(f"{self._failures} inferences in a row have failed, the last one: {sentence}")
        return True

    def note_success(self) -> None:
        """An inference succeeded: the row of failures is over, a fault is not."""
        self._failures = 0

    def trip(self, sentence: str) -> None:
        """Begin a fault; one that is there already keeps its sentence, which is nearer to the cause.

        :param sentence: what is wrong
        """
        if self._fault is None:
            self._fault = sentence
            self.closings += 1

    def reset(self) -> str:
        """End a stop and a fault, and begin to count failures anew.

        :return: why this is refused, with all left as it was; empty when it is done
        """
        if self._pressed:
            return (f"the e-stop is pressed: the last message on {interface.ESTOP.name} is true; release it, then call "
                    f"{interface.RESET_FAULT.name} again")
        self._stopped, self._fault, self._failures = False, None, 0
        return ""

    def why_stopped(self, control: ControlKnobs) -> tuple[str, str]:
        """Kind and sentence of what keeps the robot still, the gravest first.

        :param control: for ``enable_actuation``
        :return: kind 'estop', 'fault' or 'actuation', and what to do about it; two empty texts when nothing does
        """
        if self._stopped:
            first = "is pressed; release it, then" if self._pressed else "was pressed;"
            return "estop", f"the e-stop {first} call {interface.RESET_FAULT.name} to go on"
        if self._fault is not None:
            return "fault", f"fault: {self._fault}; call {interface.RESET_FAULT.name} when the cause is gone"
        if not control.enable_actuation:
            return "actuation", ("control.enable_actuation is false; set it, or call "
                                 f"{interface.ENABLE_ACTUATION.name} with true")
        return "", ""
