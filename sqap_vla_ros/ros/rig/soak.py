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

"""`rig_operator`: brings a fault about, watches the commands, helps the node back, and takes the times."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from rcl_interfaces.srv import SetParameters
from rclpy.clock import Clock as RosClock
from rclpy.clock import ClockType  # type: ignore[attr-defined]
from rclpy.task import Future
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger

from sqap_vla_ros.config import Config
from sqap_vla_ros.errors import SqapError
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.codecs import NS_PER_S, ns_to_stamp, stamp_to_ns
from sqap_vla_ros.ros.policy_client import PolicyClient
from sqap_vla_ros.ros.rig import faults
from sqap_vla_ros.ros.rig.faults import Fault
from sqap_vla_ros.ros.rig.judge import Arrival, Judge
from sqap_vla_ros.ros.rig.tampering import Tampering

NODE_NAME = "rig_operator"
RECOVERY_TIMEOUT_S = 30.0
SERVICE_TIMEOUT_S = 5.0
_POLL_S, _AGAIN_S = 0.02, 0.3
_TICK_S, _TICK_NS = 0.01, 10_000_000
_FIRST_NS = 10_000 * NS_PER_S
_JUMPS_S = (0.5, 60.0)
_SETTLE_S = (0.2, 0.8)
_FLOOD_PER_POLL = 10
_QUEUE = 1000


@dataclass(frozen=True)
class Trial:
    """One fault and what became of it.

    :param fault: its name
    :param reaction_s: time until the command that began the robot's rest; None when it moved on
    :param recovery_s: time from the fault's end, or from the instruction after the reset of what it latched, to the
        first motion
    """

    fault: str
    reaction_s: float | None
    recovery_s: float


class SimulatedTime:
    """The clock that the rig keeps, at most as fast as the wall's.

    :param publish: sends it
    """

    def __init__(self, publish: Callable[[Clock], None]) -> None:
        self._publish, self._now_ns = publish, _FIRST_NS
        self._history: deque[tuple[int, int]] = deque([(0, _FIRST_NS)], maxlen=_QUEUE)

    def tick(self) -> None:
        """One step further."""
        self._set(self._now_ns + _TICK_NS)

    def jump_back(self, by_ns: int) -> None:
        """A step back."""
        self._set(max(self._now_ns - by_ns, NS_PER_S))

    def at(self, system_ns: int) -> int:
        """What it showed at a system time, ns."""
        return next((shown for since, shown in reversed(self._history) if since <= system_ns), self._history[0][1])

    def _set(self, now_ns: int) -> None:
        self._now_ns = now_ns
        self._history.append((time.time_ns(), now_ns))
        self._publish(Clock(clock=ns_to_stamp(now_ns)))


class SoakOperator(PolicyClient):
    """See the module's docstring.

    :param policy: name of the policy's node
    :param check: called while waiting; raises when a process has ended
    :param config: how the node was started
    :param instruction: what the robot shall do
    :param generator: chooses times, texts and values
    :param simulated: whether the rig keeps the time
    :param freeze: stops the robot's process; with true lets it go on
    """

    def __init__(self, policy: str, check: Callable[[], None], config: Config, instruction: str,
                 generator: random.Random, freeze: Callable[[bool], None], *, simulated: bool) -> None:
        super().__init__(NODE_NAME, policy, check)
        self._config, self._instruction, self._random, self._freeze = config, instruction, generator, freeze
        self.judge = Judge(config.safety.max_linear_m_s, config.safety.max_angular_rad_s)
        self._fault_out = interface.advertise(self._node, interface.FAULT)
        self._estop_out = interface.advertise(self._node, interface.ESTOP)
        self._reset = self._client(Trigger, policy, interface.RESET_FAULT.name)
        self._enable = self._client(SetBool, policy, interface.ENABLE_ACTUATION.name)
        self._tampering = Tampering(self._client(SetParameters, policy, "~/set_parameters"), config, self.judge,
                                    generator, time.time_ns)
        self._listen_with_arrival(interface.TWIST, self._on_twist, _QUEUE)
        self._time: SimulatedTime | None = None
        self._said_s = 0.0
        if simulated:
            self._time = SimulatedTime(interface.advertise(self._node, interface.CLOCK).publish)
            self._node.create_timer(_TICK_S, self._time.tick, clock=RosClock(clock_type=ClockType.STEADY_TIME))

    def await_motion(self) -> None:
        """Give the instruction until the robot moves.

        :raises SqapError: when it does not
        """
        self._recover(latched=False)

    def run(self, fault: Fault) -> Trial:
        """Bring it about, wait, end it, see the robot move again.

        :raises SqapError: when the robot does not move again
        """
        self._spin_for(self._random.uniform(*_SETTLE_S))
        began_ns = time.time_ns()
        self.judge.begin(fault.name, began_ns, fault.rests_within_s)
        self._fault_out.publish(String(data=fault.name))
        self._begin(fault)
        self._spin_for(self._duration_s(fault), lambda: self._go_on(fault))
        reaction_s = self.judge.end()
        self._fault_out.publish(String(data=""))
        self._end(fault)
        return Trial(fault.name, reaction_s if fault.rests_within_s is not None else None,
                     self._recover(latched=fault.latches))

    # --- faults that come from here

    def _duration_s(self, fault: Fault) -> float:
        if fault is faults.INFERENCE_HANGS:
            return 2.0 * self._config.safety.max_inference_s
        return fault.lasts_s

    def _begin(self, fault: Fault) -> None:
        if fault is faults.CAMERA_FREEZES:
            self._freeze(True)
        elif fault is faults.EMERGENCY_STOP:
            self._estop_out.publish(Bool(data=True))
        elif fault is faults.ACTUATION_OFF:
            self._switch_actuation(False)
        elif fault is faults.CLOCK_JUMPS:
            assert self._time is not None, "the clock can jump only where it is simulated"
            self.judge.note_clock_jump(time.time_ns())
            self._time.jump_back(int(self._random.uniform(*_JUMPS_S) * NS_PER_S))

    def _go_on(self, fault: Fault) -> None:
        if fault is faults.INSTRUCTION_FLOOD:
            for _ in range(_FLOOD_PER_POLL):
                self._instruct.publish(String(data=self._draw_instruction()))
        elif fault is faults.PARAMETER_CHANGES:
            self._tampering.tamper()

    def _end(self, fault: Fault) -> None:
        if fault is faults.CAMERA_FREEZES:
            self._freeze(False)
        elif fault is faults.EMERGENCY_STOP:
            self._estop_out.publish(Bool(data=False))
        elif fault is faults.ACTUATION_OFF:
            self._switch_actuation(True)
        elif fault is faults.PARAMETER_CHANGES:
            self._wait(self._tampering.restore, SERVICE_TIMEOUT_S, f"{self._policy} did not take its own parameters")

    def _switch_actuation(self, allowed: bool) -> None:
        answer = self._ask(self._enable, SetBool.Request(data=allowed))
        self._wait(answer.done, SERVICE_TIMEOUT_S, f"the service {self._enable.srv_name} did not answer")

    def _draw_instruction(self) -> str:
        letters = "".join(chr(self._random.randint(32, 0x2FF)) for _ in range(self._random.randint(1, 40)))
        return self._random.choice((self._instruction, letters, "", " \t\n", "x" * 100_000, "pick up the moon"))

    # --- the way back

    def _recover(self, *, latched: bool) -> float:
        """Until the robot moves; what is latched is reset first, and then the instruction is said again.

        :return: time from now, or from the instruction after the reset, to the first motion, s
        """
        since_ns, deadline, asked_s = time.time_ns(), time.monotonic() + RECOVERY_TIMEOUT_S, 0.0
        answer: Future | None = None
        moved_ns = None
        while latched or moved_ns is None:
            if time.monotonic() >= deadline:
                raise SqapError(f"the robot did not move again within {RECOVERY_TIMEOUT_S:g} s; {self._policy} says: "
                                f"{self._complaint or 'nothing'}")
            if latched and answer is not None and answer.done():
                latched, answer = not answer.result().success, None
                if not latched:
                    since_ns = time.time_ns()
                    self._instruct_now()
            elif latched and answer is None and time.monotonic() - asked_s >= _AGAIN_S:
                asked_s, answer = time.monotonic(), self._ask(self._reset, Trigger.Request())
            if not latched:
                self._instruct_again()
            self._spin_once()
            moved_ns = self.judge.first_move_ns(since_ns)
        return (moved_ns - since_ns) * 1e-9

    def _instruct_again(self) -> None:
        if self._active != self._instruction and time.monotonic() - self._said_s >= _AGAIN_S:
            self._instruct_now()

    def _instruct_now(self) -> None:
        self._said_s = time.monotonic()
        self._instruct.publish(String(data=self._instruction))

    def _ask(self, client: Any, request: Any) -> Future:
        self._wait(client.service_is_ready, SERVICE_TIMEOUT_S, f"the service {client.srv_name} is not there")
        return client.call_async(request)

    # --- time and commands

    def _spin_for(self, duration_s: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        deadline, next_s = time.monotonic() + duration_s, 0.0
        while (now := time.monotonic()) < deadline:
            if now >= next_s:
                next_s = now + _POLL_S
                meanwhile()
            self._spin_once()

    def _spin_once(self) -> None:
        self._spin(_POLL_S)

    def _on_twist(self, message: TwistStamped, at_ns: int) -> None:
        linear, angular = message.twist.linear, message.twist.angular
        velocity = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
        self.judge.note(Arrival(at_ns, at_ns if self._time is None else self._time.at(at_ns),
                                stamp_to_ns(message.header.stamp), message.header.frame_id, velocity))
