"""`policy_node`: pictures, instruction and TF in; velocities and gripper goals out. Orchestration only.

The executor thread owns all state and never runs the policy; the inference thread runs nothing else. Timers run on wall
time, stamps and ages are the node's clock, so simulated time may stand still.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold, ROSClock, TimeJump  # type: ignore[attr-defined]
from rclpy.duration import Duration
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

from sqap_vla_ros.config import Config
from sqap_vla_ros.data import Inference, Observation
from sqap_vla_ros.errors import ConfigError, InferenceError, InputError
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.codecs import NS_PER_S, decode_image, stamp_to_ns
from sqap_vla_ros.ros.commands import Commander
from sqap_vla_ros.ros.cycle import NO_INSTRUCTION, Cycle, Job, Picture, PolicyLike
from sqap_vla_ros.ros.diagnostics import Reporter, Summary
from sqap_vla_ros.ros.lifecycle import SafeLifecycleNode, run_node
from sqap_vla_ros.ros.overlay import OverlayPublisher, OverlayRequest
from sqap_vla_ros.ros.parameters import change_config, declare_parameters, read_config
from sqap_vla_ros.ros.transforms import FootprintFinder
from sqap_vla_ros.ros.worker import LatestWorker

NODE_NAME = "policy_node"
DIAGNOSTICS_PERIOD_S = 1.0
STOP_TIMEOUT_S = 5.0
# A jump of simulated time looks like a lost camera until the next picture is there.
HOLD_TOLD_S = 0.3


def load_policy(config: Config) -> PolicyLike:
    """The policy of :func:`~sqap_vla_ros.policy.policy.build_policy`.

    Its libraries take seconds to import; this way configure takes them, and the node itself is up at once.
    """
    from sqap_vla_ros.policy.policy import build_policy
    from sqap_vla_ros.policy.wiring import check_arm

    policy = build_policy(config)
    check_arm(policy.model)
    return policy


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
        self._held_for, self._held_since_ns, self._hold_told = "", 0, False
        self._cycle, self._report = Cycle(), Reporter(self)
        self._wall = Clock(clock_type=ClockType.STEADY_TIME)
        self._inference_ended = self.create_guard_condition(self._on_inference_end)
        self._active_instruction = interface.advertise(self, interface.ACTIVE_INSTRUCTION)
        self.create_timer(DIAGNOSTICS_PERIOD_S, self._publish_summary, clock=self._wall)
        back = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True)
        self._jump_handle = self.get_clock().create_jump_callback(back, post_callback=self._on_clock_jump)
        self.add_on_set_parameters_callback(self._on_parameters)

    # --- lifecycle

    def prepare(self) -> None:
        """Load, warm up, open the ROS ends."""
        self._config = read_config(self)
        self._policy = self._policy_factory(self._config)
        self._closing.callback(delattr, self, "_policy")
        self._policy.warm_up()
        self._described = self._policy.describe()
        self._worker = LatestWorker(self._infer, self._inference_ended.trigger, "inference")
        self._closing.callback(self._end_thread, self._worker.stop)
        self._overlay = OverlayPublisher(self, lambda error: self._report.note_failure("overlay", error))
        self._closing.callback(self._end_thread, self._overlay.close)
        self._commander = Commander(self, lambda sentence: self._report.note("gripper", sentence))
        self._closing.callback(self._commander.close)
        self._finder = FootprintFinder(self, self._config.input.cameras, self._config.footprint)
        self._closing.callback(self._finder.close)
        self._set_instruction("", NO_INSTRUCTION)
        for end, callback in ((interface.IMAGE, self._on_image), (interface.CAMERA_INFO, self._on_camera_info),
                              (interface.INSTRUCTION, self._on_instruction)):
            self._closing.callback(self.destroy_subscription, interface.subscribe(self, end, callback))
        self.get_logger().info("configured: " + ", ".join(f"{key} {value}" for key, value in self._described.items()))

    def start(self) -> None:
        """Begin to consider pictures and to publish commands."""
        self._cycle.clear()
        control = self._config.control
        self._beats = [self.create_timer(1.0 / control.control_hz, self._on_tick, clock=self._wall),
                       self.create_timer(1.0 / control.command_hz, self._on_command_due, clock=self._wall)]
        self._active = True

    def act_safely(self) -> None:
        """Zero velocity, several times."""
        if self._active:
            self._commander.halt(self._config.control, self._now_ns())

    def stop(self) -> None:
        """Do nothing any more; the instruction ends, so that motion needs a new one."""
        if self._active:
            self._active = False
            for beat in self._beats:
                self.destroy_timer(beat)
            self._set_instruction("", NO_INSTRUCTION)
        self._cycle.clear()

    def release(self) -> None:
        """Close the ROS ends, end the threads, let go of the model; as much of it as there is."""
        self._described = {}
        self._closing.close()

    def _end_thread(self, stop: Callable[[float], bool]) -> None:
        if not stop(STOP_TIMEOUT_S):
            self.get_logger().error(f"a thread did not end within {STOP_TIMEOUT_S:g} s and was left behind")

    # --- what comes in

    def _on_image(self, message: Image) -> None:
        if not self._active:
            return
        try:
            self._cycle.take_picture(Picture(message, stamp_to_ns(message.header.stamp), self._wall_ns()),
                                     self._now_ns(), self._config.safety)
        except InputError as error:
            self._report.note("stale_image", str(error))
        if self._simulated:
            # A simulator that waits for a command goes on at once, also where no inference is due.
            self._on_command_due()
        else:
            self._consider_picture()

    def _on_camera_info(self, message: CameraInfo) -> None:
        try:
            self._finder.take_camera_info(0, message)
        except InputError as error:
            self._report.note("camera_info", str(error))

    def _on_instruction(self, message: String) -> None:
        text = message.data.strip()
        if not text:
            self._report.note("empty_instruction", "an empty instruction came; the robot holds")
            self._set_instruction("", "the instruction is empty")
            return
        try:
            self._policy.check_instruction(text)
        except InputError as error:
            self._report.note("instruction", str(error))
            self._set_instruction("", str(error))
            return
        self._set_instruction(text)
        self._consider_picture()

    def _set_instruction(self, text: str, why_none: str = "") -> None:
        self._cycle.set_instruction(text, why_none)
        self._active_instruction.publish(String(data=text))

    def _on_clock_jump(self, jump: TimeJump) -> None:
        self._report.note("clock_jump", f"the clock jumped by {jump.delta.nanoseconds * 1e-9:.3f} s; everything with "
                                        "a stamp is forgotten")
        self._cycle.clear()
        if self.phase in ("inactive", "active"):
            self._finder.clear()

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        try:
            self._config = change_config(self._config, parameters, configured=self.phase != "unconfigured")
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    # --- one control cycle

    def _on_tick(self) -> None:
        self._consider_picture()
        kind, sentence = self._cycle.why_hold(self._now_ns(), self._config.safety)
        if kind != self._held_for:
            self._held_for, self._held_since_ns, self._hold_told = kind, self._wall_ns(), False
        if kind and not self._hold_told and self._wall_ns() - self._held_since_ns >= HOLD_TOLD_S * NS_PER_S:
            self._hold_told = True
            self._report.note(kind, sentence)

    def _consider_picture(self) -> None:
        """Start an inference on the newest picture if one is due, and nothing is wrong with it."""
        if not self._active or self._worker.busy:
            return
        picture = self._cycle.due_picture(self._now_ns(), self._config.control, self._config.safety)
        if picture is None:
            return
        message, knobs = picture.message, self._config.footprint
        found = self._finder.find(knobs, 0, message.header.frame_id, (message.width, message.height), picture.stamp_ns)
        if not found.exact and self._wall_ns() - picture.arrived_ns < knobs.tf_wait_s * NS_PER_S:
            return
        try:
            rgb = decode_image(message)
        except InputError as error:
            self._cycle.refuse_picture(error)
            self._report.note("image", str(error))
            return
        if found.footprint is None:
            self._report.note("no_protection", found.reason)
            if knobs.required:
                self._cycle.refuse_picture(InputError(found.reason))
                return
        self._cycle.begin()
        self._worker.offer(Job(Observation(picture.stamp_ns, (rgb,), self._cycle.instruction, (found.footprint,),
                                           found.reason), message.header.frame_id, self._cycle.generation))

    def _infer(self, job: Job) -> Inference:
        return self._policy.infer(job.observation)

    def _on_inference_end(self) -> None:
        for outcome in self._worker.collect():
            inference = outcome.result
            if outcome.error is not None:
                self._report.note_failure("inference", outcome.error)
            if not self._cycle.end(outcome.item.generation, None if inference is None else inference.chunk):
                self._report.health.counts["dropped_chunk"] += 1
            if self._active:
                self._send_command()
                if inference is not None and self._cycle.chunk is inference.chunk:
                    self._tell_inference(outcome.item, inference)
        self._consider_picture()

    def _tell_inference(self, job: Job, inference: Inference) -> None:
        self._report.tell_inference(inference, job.observation.footprint_reason, self._now_ns())
        if self._overlay.wanted:
            height, width = job.observation.images[0].shape[:2]
            self._overlay.offer(OverlayRequest(job.observation, inference, self._policy.image_map(width, height),
                                               self._policy.image_size, job.frame_id))

    # --- what goes out

    def _on_command_due(self) -> None:
        self._consider_picture()
        if self._active:
            self._send_command()

    def _send_command(self) -> None:
        now_ns, control = self._now_ns(), self._config.control
        waits = self._simulated and self._cycle.must_wait(now_ns, self._wall_ns(), control.execute_steps)
        if now_ns == 0 or waits:
            return
        try:
            command = self._cycle.command(now_ns, self._config.safety)
        except InferenceError as error:
            self._report.note_failure("inference", error)
            command = None
        if command is None:
            self._commander.hold(control, now_ns)
            return
        self._report.health.counts["clamped"] += command.clamped
        self._commander.command(command.velocity, command.opening, control, now_ns)

    def _publish_summary(self) -> None:
        now_ns = self._now_ns()
        hold = self._cycle.why_hold(now_ns, self._config.safety)[1] if self._active else ""
        summary = Summary(self.phase, self.failure, hold, self._cycle.instruction, self._described)
        self._report.tell_summary(summary, now_ns)

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
