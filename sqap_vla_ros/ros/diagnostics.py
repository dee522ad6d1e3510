"""Counters, reasons and stage times, and the two messages that tell them.

``~/latency`` has one message per inference; ``/diagnostics`` sums up once a second and says in one sentence how things
stand. Neither is a safety channel.
"""

from __future__ import annotations

import traceback
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]
from rclpy.lifecycle import LifecycleNode

from sqap_vla_ros.data import Inference, TokenRule, TokenUse
from sqap_vla_ros.errors import SqapError
from sqap_vla_ros.policy.safety import age_s
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.codecs import make_header

WINDOW = 200
# How long a refusal still colours the summary, and how long the same sentence is not logged again.
REMEMBERED_S = 5.0
# A jump of simulated time looks like a lost camera until the next picture is there.
HOLD_TOLD_S = 0.3

# What can go wrong, by the name of its counter; all are shown from the start, so that a 0 can be read.
INPUT_KINDS = ("image", "stale_image", "no_image", "instruction", "empty_instruction", "camera_info", "clock")
INFERENCE_KINDS = ("inference",)
OTHER_KINDS = ("no_protection", "clamped", "gripper", "overlay", "clock_jump", "dropped_chunk",
               "late_answer", "over_chunk")


@dataclass(frozen=True)
class Summary:
    """What ``/diagnostics`` says of one second.

    :param state: name of the lifecycle state
    :param failure: why the last transition failed; empty when it did not
    :param hold: why the robot holds; empty when it moves, or when the node is not active
    :param instruction: the instruction in force
    :param policy: what runs, as ``Policy.describe`` gives it
    """

    state: str
    failure: str
    hold: str
    instruction: str
    policy: Mapping[str, str | int | float]


class Health:
    """What happened since the node started; times in ms.

    :param name: of the node, first part of every status name
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.counts: Counter[str] = Counter()
        self.inferences = 0
        self._reasons: dict[str, tuple[str, int]] = {}
        self._logged: dict[str, tuple[str, int]] = {}
        self._windows: dict[str, deque[float]] = {}
        self._ends_ns: deque[int] = deque(maxlen=WINDOW)
        self._tokens: TokenUse | None = None

    def note(self, kind: str, sentence: str, wall_ns: int) -> bool:
        """Count something that went wrong.

        :param kind: name of the counter
        :param sentence: what, in words
        :param wall_ns: a steady wall clock
        :return: whether to log it; false while the same was logged a moment ago
        """
        self.counts[kind] += 1
        self._reasons[kind] = (sentence, wall_ns)
        last, at_ns = self._logged.get(kind, ("", 0))
        if last == sentence and wall_ns - at_ns < REMEMBERED_S * 1e9:
            return False
        self._logged[kind] = (sentence, wall_ns)
        return True

    def record(self, inference: Inference, image_age_ms: float, wall_ns: int) -> None:
        """Take the times of one inference into the windows."""
        self.inferences += 1
        self._tokens = inference.tokens[0]
        self._ends_ns.append(wall_ns)
        for stage, value in _stage_times(inference, image_age_ms).items():
            self._windows.setdefault(stage, deque(maxlen=WINDOW)).append(value)

    def latency(self, inference: Inference, image_age_ms: float, protection: str, stamp_ns: int) -> DiagnosticArray:
        """One inference as a message.

        :param inference: the inference
        :param image_age_ms: age of the image when its first command left, on the node's clock
        :param protection: why the robot was not protected; empty when it was
        :param stamp_ns: now
        """
        values: dict[str, object] = {f"{stage}_ms": f"{value:.3f}"
                                     for stage, value in _stage_times(inference, image_age_ms).items()}
        values |= _token_counts(inference.tokens[0])
        values |= {"image_stamp_ns": inference.chunk.stamp_ns, "inferences": self.inferences,
                   "dropped_chunks": self.counts["dropped_chunk"], "no_protection": protection}
        level = DiagnosticStatus.WARN if protection else DiagnosticStatus.OK
        message = f"not protected: {protection}" if protection else f"{inference.times.total_ms:.1f} ms"
        return self._array("latency", level, message, values, stamp_ns)

    def summary(self, now: Summary, stamp_ns: int, wall_ns: int) -> DiagnosticArray:
        """The last second as a message."""
        level, message = self._judge(now, wall_ns)
        values: dict[str, object] = {"state": now.state, "instruction": now.instruction, "hold": now.hold,
                                     "inferences": self.inferences, "rate_hz": f"{self._rate_hz(wall_ns):.2f}"}
        for stage, window in self._windows.items():
            p50, p95 = np.percentile(window, (50, 95))
            values |= {f"{stage}_p50_ms": f"{p50:.3f}", f"{stage}_p95_ms": f"{p95:.3f}"}
        if self._tokens is not None:
            values |= _token_counts(self._tokens)
        values |= {f"count.{kind}": self.counts[kind] for kind in INPUT_KINDS + INFERENCE_KINDS + OTHER_KINDS}
        values |= {f"reason.{kind}": sentence for kind, (sentence, _) in self._reasons.items()}
        values |= {f"policy.{key}": value for key, value in now.policy.items()}
        return self._array("policy", level, message, values, stamp_ns)

    def _judge(self, now: Summary, wall_ns: int) -> tuple[bytes, str]:
        if now.failure:
            return DiagnosticStatus.ERROR, now.failure
        if now.state != "active":
            return DiagnosticStatus.OK, now.state
        recent = {kind: sentence for kind, (sentence, at_ns) in self._reasons.items()
                  if wall_ns - at_ns < REMEMBERED_S * 1e9}
        failed = [recent[kind] for kind in INFERENCE_KINDS if kind in recent]
        if failed:
            return DiagnosticStatus.ERROR, f"inference failed: {failed[0]}"
        if now.hold:
            return DiagnosticStatus.WARN, f"holding: {now.hold}"
        if recent:
            return DiagnosticStatus.WARN, next(reversed(recent.values()))
        return DiagnosticStatus.OK, "running"

    def _rate_hz(self, wall_ns: int) -> float:
        recent = [end for end in self._ends_ns if wall_ns - end < REMEMBERED_S * 1e9]
        return len(recent) / max((wall_ns - recent[0]) * 1e-9, 1.0) if recent else 0.0

    def _array(self, task: str, level: bytes, message: str, values: Mapping[str, object],
               stamp_ns: int) -> DiagnosticArray:
        status = DiagnosticStatus(name=f"{self._name}: {task}", level=level, message=message, hardware_id="none",
                                  values=[KeyValue(key=key, value=str(value)) for key, value in values.items()])
        return DiagnosticArray(header=make_header(stamp_ns, ""), status=[status])


class Reporter:
    """What happened, to the log and to the two topics.

    :param node: a lifecycle node; ``~/latency`` is silent unless it is active
    """

    def __init__(self, node: LifecycleNode) -> None:
        self.health = Health(node.get_name())
        self._node = node
        self._wall = Clock(clock_type=ClockType.STEADY_TIME)
        self._held_for, self._held_since_ns, self._hold_told = "", 0, False
        end = interface.LATENCY
        self._diagnostics = interface.advertise(node, interface.DIAGNOSTICS)
        self._latency = node.create_lifecycle_publisher(end.type, end.name, interface.source_profile(end))

    def note(self, kind: str, sentence: str) -> None:
        """Count something that went wrong; log it unless it was just logged."""
        if self.health.note(kind, sentence, self._wall.now().nanoseconds):
            self._node.get_logger().warning(sentence)

    def note_failure(self, kind: str, error: Exception) -> None:
        """As :meth:`note`; what nobody foresaw is logged with its traceback."""
        foreseen = isinstance(error, SqapError)
        self.note(kind, str(error) if foreseen else f"{type(error).__name__}: {error}")
        if not foreseen:
            self._node.get_logger().error("".join(traceback.format_exception(error)))

    def watch_hold(self, kind: str, sentence: str) -> None:
        """Note a hold once, when it has lasted for a moment.

        :param kind: name of its counter; empty while the robot moves, or holds for what is counted elsewhere
        :param sentence: why
        """
        now_ns = self._wall.now().nanoseconds
        if kind != self._held_for:
            self._held_for, self._held_since_ns, self._hold_told = kind, now_ns, False
        if kind and not self._hold_told and now_ns - self._held_since_ns >= HOLD_TOLD_S * 1e9:
            self._hold_told = True
            self.note(kind, sentence)

    def tell_inference(self, inference: Inference, protection: str, now_ns: int) -> None:
        """Publish one inference whose first command has just left; see :meth:`Health.latency`."""
        age_ms = 1e3 * age_s(inference.chunk.stamp_ns, now_ns)
        self.health.record(inference, age_ms, self._wall.now().nanoseconds)
        self._latency.publish(self.health.latency(inference, age_ms, protection, now_ns))

    def tell_summary(self, summary: Summary, now_ns: int) -> None:
        """Publish how things stand."""
        self._diagnostics.publish(self.health.summary(summary, now_ns, self._wall.now().nanoseconds))


def _stage_times(inference: Inference, image_age_ms: float) -> dict[str, float]:
    return {**inference.times.milliseconds, "total": inference.times.total_ms, "image_age": image_age_ms}


def _token_counts(tokens: TokenUse) -> dict[str, int]:
    return {"tokens": tokens.grid[0] * tokens.grid[1], "kept": len(tokens.kept),
            "protected": tokens.count(TokenRule.ROBOT), "attention": tokens.count(TokenRule.ATTENTION),
            "coverage": tokens.count(TokenRule.COVERAGE), "random": tokens.count(TokenRule.RANDOM)}
