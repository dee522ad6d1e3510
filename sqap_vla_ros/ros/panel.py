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

"""The switches of the robot's keeper: e-stop, second interlock, reset. They work in every state of the node."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.diagnostics import Reporter
from sqap_vla_ros.ros.interlock import Interlock


class Panel:
    """The interlock's ROS ends.

    :param node: whose parameter ``control.enable_actuation`` is the second interlock
    :param report: where a stop and a fault are counted and told
    :param on_stop: called when a stop or a fault begins
    :param why_still: what still goes wrong, in a sentence, so that a reset would not last; empty when nothing does
    """

    def __init__(self, node: LifecycleNode, report: Reporter, on_stop: Callable[[], None],
                 why_still: Callable[[], str]) -> None:
        self.interlock = Interlock()
        self._node, self._report, self._on_stop, self._why_still = node, report, on_stop, why_still
        # A button that only told of itself before this node was there is heard too, if it keeps its last word.
        for subscribe in (interface.subscribe, interface.subscribe_latched):
            subscribe(node, interface.ESTOP, self._on_estop)
        for end, answer in ((interface.ENABLE_ACTUATION, self._on_enable), (interface.RESET_FAULT, self._on_reset)):
            node.create_service(end.type, end.name, answer)

    def note_failure(self, sentence: str, limit: int) -> None:
        """An inference failed; ``limit`` of them in a row are a fault."""
        if self.interlock.note_failure(sentence, limit):
            self._report.note("fault", f"{limit} inferences in a row have failed; the robot stands still until "
                                       f"{interface.RESET_FAULT.name}")
            self._on_stop()

    def trip(self, sentence: str) -> None:
        """Begin a fault, if there is none."""
        begins = self.interlock.open
        self.interlock.trip(sentence)
        if begins:
            self._report.note("fault", sentence)
            self._on_stop()

    def _on_estop(self, message: Bool) -> None:
        begins = message.data and not self.interlock.is_stopped
        self.interlock.press(message.data)
        if begins:
            self._report.note("estop", "the e-stop was pressed; the robot stands still until "
                                       f"{interface.RESET_FAULT.name}")
            self._on_stop()

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        result, = self._node.set_parameters([Parameter("control.enable_actuation", value=bool(request.data))])
        response.success = result.successful
        response.message = result.reason or f"actuation is {'on' if request.data else 'off'}"
        return response

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.message = self._why_still() or self.interlock.reset()
        response.success = not response.message
        response.message = response.message or "the node may move the robot again; say the instruction again"
        return response
