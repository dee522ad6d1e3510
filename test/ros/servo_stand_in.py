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

"""MoveIt Servo's ear: takes and refuses commands as Servo of Jazzy does, and counts what would have stopped the robot.

It checks what the real one checks of a twist: the command type was switched to TWIST before, the frame is named, all
values are finite, and the stamp is less than 0.1 s old, both when it arrives and for as long as it is in force.
"""

from collections import Counter

import numpy as np
from moveit_msgs.msg import ServoStatus
from moveit_msgs.srv import ServoCommandType
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.codecs import stamp_to_ns

TIMEOUT_NS = 100_000_000
CYCLE_S = 0.01


class ServoStandIn(Node):
    """See the module's docstring; ``command_type`` is None until it is switched.

    ``accepted`` and ``moving`` count commands, ``refused`` counts them by reason, ``halts`` counts how often motion
    ended because no valid command came, and ``rests`` how often because a command was zero.
    """

    def __init__(self, **options):
        super().__init__("servo_node", **options)
        self.command_type = None
        self.accepted = self.moving = self.halts = self.rests = 0
        self.refused = Counter()
        self._in_force = None
        self._code, self._message = ServoStatus.NO_WARNING, "No warnings"
        self._status = self.create_publisher(ServoStatus, "~/status", 10)
        interface.subscribe(self, interface.TWIST, self._on_twist)
        self.create_service(ServoCommandType, "~/switch_command_type", self._on_switch)
        self.create_timer(CYCLE_S, self._cycle, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _on_switch(self, request, response):
        response.success = request.command_type in (
            ServoCommandType.Request.JOINT_JOG, ServoCommandType.Request.TWIST, ServoCommandType.Request.POSE)
        if response.success:
            self.command_type = request.command_type
        return response

    def _on_twist(self, message):
        reason = self._why_refused(message)
        if reason:
            self.refused[reason] += 1
            self._code, self._message = ServoStatus.INVALID, reason
            return
        self._code, self._message = ServoStatus.NO_WARNING, "No warnings"
        self.accepted += 1
        moves = bool(_values(message).any())
        self.moving += moves
        self.rests += self._in_force is not None and not moves
        self._in_force = message if moves else None

    def _why_refused(self, message):
        if self.command_type != ServoCommandType.Request.TWIST:
            return "command type is not TWIST"
        if not message.header.frame_id:
            return "no frame_id"
        if not np.isfinite(_values(message)).all():
            return "not finite"
        return "stale" if self._is_stale(message) else ""

    def _is_stale(self, message):
        return self.get_clock().now().nanoseconds - stamp_to_ns(message.header.stamp) >= TIMEOUT_NS

    def _cycle(self):
        if self._in_force is not None and self._is_stale(self._in_force):
            self.halts += 1
            self._in_force = None
        self._status.publish(ServoStatus(code=self._code, message=self._message))


def _values(message):
    linear, angular = message.twist.linear, message.twist.angular
    return np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
