"""`policy_node`: pictures, instruction and TF in; velocities and gripper goals out. Orchestration only.

The executor thread owns all state and never runs the policy; the inference thread runs nothing else. Timers run on wall
time, stamps and ages are the node's clock, so simulated time may stand still.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold, ROSClock, TimeJump  # type: ignore[attr-defined]
from rclpy.duration import Duration
from rclpy.parameter import Parameter
from rclpy.timer import Timer
from std_msgs.msg import String

from sqap_vla_ros.config import Config
from sqap_vla_ros.data import Inference
from sqap_vla_ros.errors import ConfigError, InputError
from sqap_vla_ros.policy.ensemble import build_ensemble
from sqap_vla_ros.policy.safety import age_s, check_allowed
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.actuation import Actuation
from sqap_vla_ros.ros.command_codecs import ToolPose
from sqap_vla_ros.ros.cycle import NO_INSTRUCTION, Cycle, Picture
from sqap_vla_ros.ros.diagnostics import Reporter
from sqap_vla_ros.ros.health import Summary
from sqap_vla_ros.ros.inference import Job, PolicyLike, free_memory, load_policy
from sqap_vla_ros.ros.inputs import Cameras, JointStates
from sqap_vla_ros.ros.lifecycle import SafeLifecycleNode, run_node
from sqap_vla_ros.ros.looking import Looking
from sqap_vla_ros.ros.overlay import OverlayPublisher, OverlayRequest
from sqap_vla_ros.ros.panel import Panel
from sqap_vla_ros.ros.parameters import change_config, declare_parameters, read_config
from sqap_vla_ros.ros.transforms import FootprintFinder

NODE_NAME = "policy_node"
DIAGNOSTICS_PERIOD_S = 1.0
STOP_TIMEOUT_S = 5.0
# A robot that has rested for so long gets its zero velocity at this rate at most.
REST_AFTER_S, REST_HZ = 1.0, 10.0


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
        self._beats: list[Timer] = []
        self._resting, self._moved_ns = False, 0
        self._cycle, self._report = Cycle(), Reporter(self)
        self._panel = Panel(self, self._report)
        self._wall = Clock(clock_type=ClockType.STEADY_TIME)
        self._active_instruction = interface.advertise(self, interface.ACTIVE_INSTRUCTION)
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
        self._finder = FootprintFinder(self, config.input.cameras, config.footprint,
                                       config.safety.max_future_s)
        self._closing.callback(self._finder.close)
        self._joints = JointStates(self, config.input)
        self._closing.callback(self._joints.close)
        self._looking = Looking(self, self._policy, self._finder, self._joints,
                                lambda picture: self._cameras.decode(picture), self._report, self._panel,
                                self._on_answer)
        self._closing.callback(self._end_thread, self._looking.close)
        self._actuation = Actuation(self, config, self._panel.interlock, self._report, self._find_tool)
        self._closing.callback(self._actuation.close)
        self._cycle = Cycle(build_ensemble(config.control))
        self._set_instruction("", NO_INSTRUCTION)
        self._cameras = Cameras(self, config.input, self._on_picture, self._finder.take_camera_info, self._report.note)
        self._closing.callback(self._cameras.close)
        self._closing.callback(self.destroy_subscription,
                               interface.subscribe(self, interface.INSTRUCTION, self._on_instruction))
        self.get_logger().info("configured: " + ", ".join(f"{key} {value}" for key, value in self._described.items()))

    def start(self) -> None:
        """Begin to consider pictures and to publish commands."""
        self._cycle.clear()
        self._actuation.begin()
        control = self._config.control
        self._beats = [self.create_timer(1.0 / control.control_hz, self._on_tick, clock=self._wall),
                       self.create_timer(1.0 / control.command_hz, self._on_command_due, clock=self._wall)]
        self._active, self._resting, self._moved_ns = True, False, self._wall_ns()

    def act_safely(self) -> None:
        """Zero velocity, several times."""
        if self._active:
            self._actuation.halt(self._now_ns())

    def stop(self) -> None:
        """Do nothing any more; the instruction ends, so that motion needs a new one."""
        if self._active:
            self._active = False
            for beat in self._beats:
                self.destroy_timer(beat)
            self._beats = []
            self._actuation.end()
            self._set_instruction("", NO_INSTRUCTION)
        self._cycle.clear()

    def release(self) -> None:
        """Close the ROS ends, end the threads, let go of the model; as much of it as there is."""
        self._described = {}
        self._closing.close()
        free_memory()

    def _tune_beats(self) -> None:
        control, most_hz = self._config.control, REST_HZ if self._resting else math.inf
        for beat, rate_hz in zip(self._beats, (control.control_hz, control.command_hz), strict=False):
            beat.timer_period_ns = round(1e9 / min(rate_hz, most_hz))

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

    def _on_instruction(self, message: String) -> None:
        text = message.data.strip()
        if not text:
            self._report.note("empty_instruction", "an empty instruction came; the robot holds")
            self._set_instruction("", "the instruction is empty")
            return
        try:
            check_allowed(text, self._config.input.instructions)
            self._policy.check_instruction(text)
        except InputError as error:
            self._report.note("instruction", str(error))
            self._set_instruction("", str(error))
            return
        self._set_instruction(text)
        if self._active:
            self._look()

    def _set_instruction(self, text: str, why_none: str = "") -> None:
        self._cycle.set_instruction(text, why_none)
        self._active_instruction.publish(String(data=text))

    def _on_clock_jump(self, jump: TimeJump) -> None:
        self._report.note("clock_jump", f"the clock jumped by {jump.delta.nanoseconds * 1e-9:.3f} s; everything with "
                                        "a stamp is forgotten")
        self._cycle.clear()
        if self.phase in ("inactive", "active"):
            for part in (self._finder, self._cameras, self._joints):
                part.clear()

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        before, configured = self._config, self.phase in ("inactive", "active")
        try:
            changed = change_config(before, parameters, configured=self.phase != "unconfigured")
            if configured and changed.prune != before.prune:
                self._policy.adapt(changed.prune)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._config = changed
        if configured:
            self._cameras.knobs = changed.input
        self._tune_beats()
        return SetParametersResult(successful=True)

    # --- one control cycle

    def _on_tick(self) -> None:
        self._look()
        self._looking.watch(self._config, self._wall_ns())
        self._report.watch_hold(*self._cycle.why_hold(self._now_ns(), self._config.safety))

    def _look(self) -> None:
        self._looking.begin(self._cycle, self._config, self._now_ns(), self._wall_ns())

    def _on_answer(self) -> None:
        answers = self._looking.take(self._cycle, self._config, self._now_ns())
        if not self._active:
            return
        self._send_command()
        for job, inference in answers:
            self._tell_inference(job, inference)
        self._look()

    def _tell_inference(self, job: Job, inference: Inference) -> None:
        self._report.tell_inference(inference, job.observation.footprint_reason, self._now_ns(),
                                    deadline_ms=1e3 / self._config.control.control_hz,
                                    engine=str(self._described.get("engine", "")))
        self._actuation.tell(inference.chunk)
        if self._overlay.wanted:
            height, width = job.observation.images[0].shape[:2]
            self._overlay.offer(OverlayRequest(job.observation, inference, self._policy.image_map(width, height),
                                               self._policy.image_size, job.frame_id))

    # --- what goes out

    def _on_command_due(self) -> None:
        if self._active:
            self._look()
            self._send_command()

    def _send_command(self) -> None:
        now_ns, execute_steps = self._now_ns(), self._config.control.execute_steps
        waits = self._simulated and self._cycle.must_wait(now_ns, self._wall_ns(), execute_steps)
        if now_ns > 0 and not waits:
            moves, wall_ns = self._actuation.send(self._cycle, self._config, now_ns), self._wall_ns()
            self._moved_ns = wall_ns if moves else self._moved_ns
            self._pace(resting=age_s(self._moved_ns, wall_ns) > REST_AFTER_S)

    def _pace(self, *, resting: bool) -> None:
        # rclpy takes a millisecond for each beat, and a robot that has stopped needs no more than a few.
        if resting != self._resting:
            self._resting = resting
            self._tune_beats()

    def _find_tool(self, stamp_ns: int) -> tuple[ToolPose | None, str]:
        control = self._config.control
        found = self._finder.find_tool(control.base_frame, control.tool_frame, stamp_ns,
                                       self._config.footprint.max_tf_age_s)
        return None if found.pose is None else (found.pose.position, found.pose.quaternion), found.reason

    def _publish_summary(self) -> None:
        now_ns = self._now_ns()
        hold = self._cycle.why_hold(now_ns, self._config.safety)[1] if self._active else ""
        stop = self._panel.interlock.why_stopped(self._config.control)[1] if self._active else ""
        ages = self._find_ages(now_ns) if self._active else {}
        self._report.tell_summary(
            Summary(self.phase, self.failure, hold, self._cycle.instruction, self._described, stop, ages), now_ns)

    def _find_ages(self, now_ns: int) -> dict[str, float | None]:
        control = self._config.control
        tool = self._finder.find_tool(control.base_frame, control.tool_frame, now_ns, math.inf)
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
