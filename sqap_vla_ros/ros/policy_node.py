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

"""`policy_node`: pictures, instruction and TF in; velocities and gripper goals out. Orchestration only.

The executor thread owns all state and never runs the policy; the inference thread runs nothing else. Timers run on wall
time, stamps and ages are the node's clock, so simulated time may stand still.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, cast

from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold, ROSClock, TimeJump  # type: ignore[attr-defined]
from rclpy.duration import Duration
from rclpy.parameter import Parameter

from sqap_vla_ros.config import Config
from sqap_vla_ros.data import Inference
from sqap_vla_ros.errors import ConfigError, InputError
from sqap_vla_ros.policy.ensemble import build_ensemble
from sqap_vla_ros.policy.safety import age_s, check_allowed
from sqap_vla_ros.ros.actuation import Actuation
from sqap_vla_ros.ros.beats import Beats
from sqap_vla_ros.ros.cycle import NO_INSTRUCTION, Cycle, Picture
from sqap_vla_ros.ros.diagnostics import Reporter
from sqap_vla_ros.ros.health import Summary
from sqap_vla_ros.ros.inference import Job, PolicyLike, free_memory, load_policy
from sqap_vla_ros.ros.inputs import Cameras, JointStates
from sqap_vla_ros.ros.instructions import Instructions
from sqap_vla_ros.ros.lifecycle import SafeLifecycleNode, run_node
from sqap_vla_ros.ros.looking import Looking
from sqap_vla_ros.ros.observing import Observer
from sqap_vla_ros.ros.overlay import OverlayPublisher, OverlayRequest
from sqap_vla_ros.ros.panel import Panel
from sqap_vla_ros.ros.parameters import change_config, declare_parameters, differ_in_actuation_alone, read_config
from sqap_vla_ros.ros.transforms import FootprintFinder, FoundTool

NODE_NAME = "policy_node"
DIAGNOSTICS_PERIOD_S = 1.0
STOP_TIMEOUT_S = 5.0


class PolicyNode(SafeLifecycleNode):
    """See the module's docstring.

    :param policy_factory: makes the policy at configure
    :param options: passed to rclpy
    """

    _policy: PolicyLike

    def __init__(self, policy_factory: Callable[[Config], PolicyLike] = load_policy, **options: Any) -> None:
        super().__init__(NODE_NAME, **options)
        declare_parameters(self)
        self.declare_parameter("autostart", False, ParameterDescriptor(
            description="Configure and activate without being asked.", read_only=True))
        self._config = read_config(self)
        self._policy_factory = policy_factory
        self._described: dict[str, str | int | float] = {}
        self._closing, self._active = ExitStack(), False
        self._latest_ns, self._cycle, self._report = 0, Cycle(), Reporter(self)
        self._panel = Panel(self, self._report, lambda: self._instructions.end("the robot was stopped"), self._why_hung)
        self._instructions = Instructions(self, self._report, self._accept_instruction)
        self._wall = Clock(clock_type=ClockType.STEADY_TIME)
        self._beats = Beats(self, self._wall, self._on_tick, self._on_command_due)
        self.create_timer(DIAGNOSTICS_PERIOD_S, self._publish_summary, clock=self._wall)
        back = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True)
        self._jump_handle = self.get_clock().create_jump_callback(back, post_callback=self._on_clock_jump)
        self.add_on_set_parameters_callback(self._on_parameters)

    # --- lifecycle

    def prepare(self) -> None:
        """Load, warm up, compare with the float model, open the ROS ends."""
        config = self._config = read_config(self)
        self._policy = self._policy_factory(config)
        self._closing.callback(delattr, self, "_policy")
        self._policy.warm_up()
        self.get_logger().info(self._policy.check_itself())
        self._described = self._policy.describe()
        self._overlay = OverlayPublisher(self, lambda error: self._report.note_failure("overlay", error))
        self._closing.callback(self._end_thread, self._overlay.close)
        self._finder = FootprintFinder(self, config.input.cameras, config.footprint, config.safety.max_future_s)
        self._closing.callback(self._finder.close)
        self._joints = JointStates(self, config.input)
        self._closing.callback(self._joints.close)
        observer = Observer(self._finder, self._joints, lambda picture: self._cameras.decode(picture),
                            self._report.note, self._report.health.note_lookup)
        self._looking = Looking(self, self._policy, observer, self._report, self._panel, self._on_answer)
        self._closing.callback(delattr, self, "_looking")  # it holds the policy, too
        self._closing.callback(self._end_thread, self._looking.close)
        self._actuation = Actuation(self, config, self._panel.interlock, self._report, self._find_tool)
        self._closing.callback(self._actuation.close)
        self._cameras = Cameras(self, config.input, self._on_picture, self._finder.take_camera_info, self._report.note,
                                self._wall_ns)
        self._closing.callback(self._cameras.close)
        self._cycle = Cycle(build_ensemble(config.control), ", ".join(self._cameras.topics))
        self._instructions.end(NO_INSTRUCTION)
        self._closing.callback(self._instructions.close)
        self._instructions.open(self._check_instruction)
        self.get_logger().info("configured: " + ", ".join(f"{key} {value}" for key, value in self._described.items()))

    def start(self) -> None:
        """Begin to consider pictures and to publish commands."""
        self._cycle.clear()
        self._actuation.begin()
        self._beats.start(self._config.control)
        self._active = True

    def act_safely(self) -> None:
        """Zero velocity, several times."""
        if self._active:
            self._actuation.halt(self._config, self._now_ns())

    def stop(self) -> None:
        """Do nothing any more; the instruction ends, so that motion needs a new one."""
        if self._active:
            self._active = False
            self._beats.stop()
            self._actuation.end()
            self._instructions.end(NO_INSTRUCTION)
        self._cycle.clear()

    def release(self) -> None:
        """Close the ROS ends, end the threads, let go of the model; as much of it as there is."""
        self._described = {}
        self._closing.close()
        free_memory()

    def _end_thread(self, stop: Callable[[float], bool]) -> None:
        if not stop(STOP_TIMEOUT_S):
            self.get_logger().error(f"a thread did not end within {STOP_TIMEOUT_S:g} s and was left behind")

    # --- what comes in

    def _on_picture(self, picture: Picture) -> None:
        if not self._active:
            return
        try:
            self._cycle.take_picture(picture, self._now_ns(), self._config.safety)
        except InputError as error:
            self._report.note("stale_image", str(error))
        if self._simulated:
            # A simulator that waits for a command goes on at once, also where no inference is due.
            self._on_command_due()
        else:
            self._look()

    def _check_instruction(self, text: str) -> None:
        if not self._active:
            raise InputError("the node is not active; say the instruction again when it is")
        stopped = self._panel.interlock.why_stopped(self._config.control)
        if stopped[0] in ("estop", "fault"):
            raise InputError(f"{stopped[1]}, and say the instruction again then")
        self._policy.check_instruction(text)
        check_allowed(text, self._config.input.instructions)

    def _accept_instruction(self, text: str, why_none: str) -> None:
        self._cycle.set_instruction(text, why_none)
        if text:
            self._look()

    def _on_clock_jump(self, jump: TimeJump) -> None:
        self._report.note("clock_jump", f"the clock jumped by {jump.delta.nanoseconds * 1e-9:.3f} s; everything with "
                                        "a stamp is forgotten")
        self._forget()

    def _forget(self) -> None:
        self._cycle.clear()
        if self.phase in ("inactive", "active"):
            self._finder.clear()
            self._cameras.clear()
            self._joints.clear()
            self._actuation.restart()

    def _watch_clock(self) -> None:
        # Of the system's clock nobody is told that it was set back.
        now_ns = self._now_ns()
        if now_ns < self._latest_ns and not self._simulated:
            self._report.note("clock_jump", f"the system's clock was set back by {age_s(now_ns, self._latest_ns):.3f} "
                                            "s; everything with a stamp is forgotten")
            self._forget()
        self._latest_ns = now_ns

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        before, configured = self._config, self.phase in ("inactive", "active")
        try:
            changed = change_config(before, parameters, configured=self.phase != "unconfigured")
            if self.phase == "configuring" and not differ_in_actuation_alone(before, changed):
                raise ConfigError("the node is being configured by what the parameters were; set them when it is done")
            if configured and changed.prune != before.prune:
                self._policy.adapt(changed.prune)
                self._described = self._policy.describe()
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._config = changed
        if before.control.enable_actuation and not changed.control.enable_actuation:
            self._panel.interlock.note_closing()
        if configured:
            self._cameras.knobs = changed.input
            self._finder.max_future_s = changed.safety.max_future_s
        self._beats.tune(changed.control)
        return SetParametersResult(successful=True)

    # --- one control cycle

    def _on_tick(self) -> None:
        self._look()
        self._looking.watch(self._config, self._wall_ns())
        self._report.watch_hold(*self._why_hold(self._now_ns()))

    def _why_hung(self) -> str:
        return self._looking.why_hung(self._config, self._wall_ns()) if self._active else ""

    def _look(self) -> None:
        self._looking.begin(self._cycle, self._config, self._now_ns(), self._wall_ns())

    def _on_answer(self) -> None:
        answers = self._looking.take(self._cycle, self._config, self._now_ns())
        if not self._active:
            return
        self._send_command()
        for job, inference, dropped in answers:
            self._tell_inference(job, inference, dropped)
        self._look()

    def _tell_inference(self, job: Job, inference: Inference, dropped: str) -> None:
        self._report.tell_inference(inference, job.observation.footprint_reason, self._now_ns(), dropped=dropped,
                                    deadline_ms=1e3 / self._config.control.control_hz,
                                    engine=str(self._described.get("engine", "")))
        if dropped:
            return
        self._actuation.tell(inference.chunk, self._config)
        if self._overlay.wanted:
            image_map = self._policy.image_map(*job.observation.images[0].shape[1::-1])
            self._overlay.offer(OverlayRequest(job.observation, inference, image_map, self._policy.image_size,
                                               job.frame_id))

    # --- what goes out

    def _on_command_due(self) -> None:
        if self._active:
            self._watch_clock()
            self._look()
            self._send_command()

    def _send_command(self) -> None:
        now_ns = self._now_ns()
        waits = self._simulated and (self._beats.comes_behind_a_stall(now_ns) or (
            not self._actuation.why_stopped(self._config)[0]
            and self._cycle.must_wait(now_ns, self._wall_ns(), self._config.control.execute_steps)))
        if now_ns > 0 and not waits:
            moves = self._actuation.send(self._cycle, self._config, now_ns)
            self._beats.note(self._config.control, moves=moves)

    def _find_tool(self, stamp_ns: int, max_age_s: float) -> FoundTool:
        control = self._config.control
        return self._finder.find_tool(control.base_frame, control.tool_frame, stamp_ns, max_age_s)

    def _publish_summary(self) -> None:
        now_ns = self._now_ns()
        summary = Summary(self.phase, self.failure, "", "", self._described)
        if self._active:
            summary = replace(summary, hold=self._why_hold(now_ns)[1], instruction=self._cycle.instruction,
                              stop=self._actuation.why_stopped(self._config), ages_s=self._find_ages(now_ns))
        self._report.tell_summary(summary, now_ns)

    def _why_hold(self, now_ns: int) -> tuple[str, str]:
        return self._cycle.why_hold(now_ns, self._config.safety, self._cameras.why_incomplete)

    def _find_ages(self, now_ns: int) -> dict[str, float | None]:
        tool = self._find_tool(now_ns, math.inf)
        joints = {} if self._config.input.state == "none" else {"joint_states": self._joints.age_s(now_ns)}
        return {"image": self._cycle.image_age_s(now_ns),
                "tf": age_s(tool.stamp_ns, now_ns) if tool.stamp_ns else None, **joints}

    # --- small change

    @property
    def _simulated(self) -> bool:
        return bool(cast(ROSClock, self.get_clock()).ros_time_is_active)

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _wall_ns(self) -> int:
        return int(self._wall.now().nanoseconds)


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM."""
    return run_node(PolicyNode, args, wants_start=lambda node: bool(node.get_parameter("autostart").value))


if __name__ == "__main__":
    sys.exit(main())
