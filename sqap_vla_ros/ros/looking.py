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

"""From the newest pictures to the policy, and from its answer back: what is seen, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.lifecycle import LifecycleNode

from sqap_vla_ros.config import Config
from sqap_vla_ros.data import Inference
from sqap_vla_ros.errors import InferenceError, InputError
from sqap_vla_ros.policy.safety import age_s
from sqap_vla_ros.ros.cycle import Cycle
from sqap_vla_ros.ros.diagnostics import Reporter
from sqap_vla_ros.ros.inference import Job, PolicyLike
from sqap_vla_ros.ros.observing import Observer
from sqap_vla_ros.ros.panel import Panel
from sqap_vla_ros.ros.worker import LatestWorker


class Looking:
    """The policy's side of the node, from configure to cleanup.

    :param node: whose executor is woken when the policy has answered
    :param policy: ready to infer
    :param observer: makes an observation of the newest pictures
    :param report: where things are counted and told
    :param panel: told of failures
    :param answered: called by the executor when an answer is there to be taken
    """

    def __init__(self, node: LifecycleNode, policy: PolicyLike, observer: Observer, report: Reporter, panel: Panel,
                 answered: Callable[[], None]) -> None:
        self._node, self._observer, self._report, self._panel = node, observer, report, panel
        self._began_ns = 0
        self._ended = node.create_guard_condition(answered)
        self._worker: LatestWorker[Job, Inference] = LatestWorker(
            lambda job: policy.infer(job.observation), self._ended.trigger, "inference")

    def begin(self, cycle: Cycle, config: Config, now_ns: int, wall_ns: int) -> None:
        """Start an inference on the newest picture if one is due, and nothing is wrong with it."""
        picture = None if self._worker.busy else cycle.due_picture(now_ns, config.control, config.safety)
        if picture is None:
            return
        try:
            seen = self._observer.observe(picture, cycle.instruction, config, now_ns, wall_ns)
        except InputError as error:
            cycle.refuse_picture(error)
            return
        if seen is not None:
            cycle.begin()
            self._began_ns = wall_ns
            self._worker.offer(Job(seen.observation, seen.frame_id, cycle.generation))

    def watch(self, config: Config, wall_ns: int) -> None:
        """Call it a fault when an inference does not end."""
        if sentence := self.why_hung(config, wall_ns):
            self._panel.trip(sentence)

    def why_hung(self, config: Config, wall_ns: int) -> str:
        """That an inference does not end, in a sentence; empty when none hangs."""
        busy_s = age_s(self._began_ns, wall_ns) if self._worker.busy else 0.0
        if busy_s <= config.safety.max_inference_s:
            return ""
        return (f"an inference has taken {busy_s:.1f} s by now, and safety.max_inference_s is "
                f"{config.safety.max_inference_s:g} s")

    def take(self, cycle: Cycle, config: Config, now_ns: int) -> list[tuple[Job, Inference, str]]:
        """Take the policy's answers.

        :return: each with the kind of why it is dropped, empty where it is in force now; none that failed
        """
        taken = []
        for outcome in self._worker.collect():
            dropped = self._take_one(outcome.item, outcome.result, outcome.error, cycle, config, now_ns)
            if dropped is not None and outcome.result is not None:
                taken.append((outcome.item, outcome.result, dropped))
        return taken

    def close(self, timeout_s: float) -> bool:
        """End the thread; whether it ended in time."""
        ended = self._worker.stop(timeout_s)
        self._node.destroy_guard_condition(self._ended)
        return ended

    def _take_one(self, job: Job, inference: Inference | None, error: Exception | None, cycle: Cycle, config: Config,
                  now_ns: int) -> str | None:
        # Why this answer is dropped, empty where it is in force now; None where it failed.
        kind, sentence, failure = "", "", error
        try:
            kind, sentence = cycle.end(job.generation, None if inference is None else inference.chunk, now_ns,
                                       config.safety)
        except InferenceError as refused:
            failure = refused
        if failure is not None:
            self._report.note_failure("inference", failure)
            self._panel.note_failure(str(failure), config.safety.max_failures)
            return None
        self._panel.interlock.note_success()
        if sentence:
            self._report.note(kind, sentence)
        elif kind:
            self._report.health.counts[kind] += 1
        return kind
