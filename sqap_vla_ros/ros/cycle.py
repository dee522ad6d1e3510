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

"""The control cycle without ROS: which picture starts an inference, which step is commanded, why the robot holds.

A chunk belongs to a generation. A new instruction, a jump of the clock and a halt each begin another one, and what an
older generation still computes is dropped.

A chunk's steps count from its image, without the time in which the robot stood still: after a hold it begins at its
first step, however long the inference took, and where the robot moved on meanwhile, at the step that is due by then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sqap_vla_ros.data import ActionChunk
from sqap_vla_ros.errors import InputError
from sqap_vla_ros.knobs import ControlKnobs, SafetyKnobs
from sqap_vla_ros.policy.chunk import step_at, step_velocity
from sqap_vla_ros.policy.ensemble import AdaptiveEnsemble
from sqap_vla_ros.policy.safety import age_s, check_finite, check_fresh, limit_gripper
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.motion import MotionClock
from sqap_vla_ros.ros.pacing import Pacing, is_due

NO_INSTRUCTION = f"there is no instruction on {interface.INSTRUCTION.name} yet"


@dataclass(frozen=True)
class Picture:
    """The newest images that belong together, one per camera.

    :param messages: as they came, in the model's order; decoded only when an inference is due
    :param stamp_ns: the oldest of their stamps
    :param arrived_ns: when the last of them came, on a steady wall clock
    """

    messages: tuple[Any, ...]
    stamp_ns: int
    arrived_ns: int


@dataclass(frozen=True)
class Command:
    """What the robot shall do now.

    :param velocity: (6,) m/s and rad/s, as the policy wants it
    :param opening: gripper, 0 closed to 1 open
    :param moved: whether the opening had to be moved into that range
    :param step: which step of which chunk, so that what befalls it can be counted once
    """

    velocity: np.ndarray
    opening: float
    moved: bool
    step: tuple[int, int]


class Cycle:
    """Instruction, newest picture and chunk in force; every method takes the time.

    :param ensemble: blends each chunk with those before; None takes them as they are
    :param topics: where pictures come from, for sentences
    """

    def __init__(self, ensemble: AdaptiveEnsemble | None = None, topics: str = interface.IMAGE.name) -> None:
        self._topics = topics
        self.instruction = ""
        self.generation = 0
        self._why_no_instruction = NO_INSTRUCTION
        self._pacing, self._motion, self._ensemble = Pacing(), MotionClock(), ensemble
        self.clear()

    def clear(self) -> None:
        """Forget all that has a stamp."""
        self.generation += 1
        self.picture: Picture | None = None
        self.chunk: ActionChunk | None = None
        self._in_work_ns: int | None = None
        self._problem = ""
        self._pacing.reset()
        self._motion.reset()
        self._forget_answers()

    def set_instruction(self, text: str, why_none: str = "") -> None:
        """Another instruction is in force; the chunk of the one before is void.

        :param text: the instruction, or empty to hold
        :param why_none: why there is none, when ``text`` is empty
        """
        self.instruction, self._why_no_instruction = text, why_none
        self.begin_anew()

    def _forget_answers(self) -> None:
        self._answered_ns, self._refusal = 0, ""
        if self._ensemble is not None:
            self._ensemble.reset()

    def take_picture(self, picture: Picture, now_ns: int, safety: SafetyKnobs) -> None:
        """A picture came; it replaces one that no inference has begun on.

        :raises InputError: when it is too old, or from the future
        """
        try:
            check_fresh("the image", picture.stamp_ns, now_ns, max_age_s=safety.max_image_age_s,
                        max_future_s=safety.max_future_s)
        except InputError as error:
            self.refuse_picture(error)
            raise
        self.picture = picture
        self._pacing.note_picture(picture.stamp_ns)

    def due_picture(self, now_ns: int, control: ControlKnobs, safety: SafetyKnobs) -> Picture | None:
        """The picture that shall start an inference now, or None; one that became too old while waiting is dropped."""
        picture = self.picture
        if picture is None or not self.instruction or not is_due(self.chunk, picture.stamp_ns, control.execute_steps):
            return None
        if age_s(picture.stamp_ns, now_ns) > safety.max_image_age_s:
            self.picture = None
        return self.picture

    def refuse_picture(self, error: InputError) -> None:
        """The picture cannot be used."""
        self.picture, self._problem = None, str(error)

    def begin(self) -> None:
        """The picture has gone to the policy."""
        assert self.picture is not None
        self._in_work_ns, self.picture, self._problem = self.picture.stamp_ns, None, ""

    def end(self, generation: int, chunk: ActionChunk | None, now_ns: int, safety: SafetyKnobs) -> tuple[str, str]:
        """The policy has answered.

        :param generation: in which the inference began
        :param chunk: the actions, counted from their image; None when it failed, and the robot holds
        :return: kind and sentence of why the answer is dropped, the sentence only where someone should do something
            about it; no kind when it is in force, or failed
        :raises InferenceError: when the ensemble gets a value that is not finite; the robot holds
        """
        self._in_work_ns = None
        if generation != self.generation:
            return "dropped_chunk", ""
        if chunk is None:
            self.chunk = None
            return "", ""
        age = age_s(chunk.stamp_ns, now_ns)
        if age > safety.max_answer_age_s:
            self._refusal = (f"an answer came {age:.2f} s after its image, and safety.max_answer_age_s is "
                             f"{safety.max_answer_age_s:g} s; raise that, or take a faster model.recipe or "
                             "model.engine")
            return "late_answer", self._refusal
        before, self.chunk = self.chunk, None
        chunk = self._blend(chunk, safety)
        moved_ns = self._motion.at(now_ns) - self._motion.at(chunk.stamp_ns)
        self._answered_ns = now_ns
        if moved_ns >= len(chunk.steps) * chunk.step_period_ns:
            self.chunk = before
            self._refusal = (f"an answer's {len(chunk.steps)} steps of {chunk.step_period_ns * 1e-9:g} s were over "
                             f"when it came: the robot has moved for {moved_ns * 1e-9:.2f} s since its image; raise "
                             "control.command_hz or control.step_period_s")
            return "over_chunk", self._refusal
        self.chunk, self._refusal = replace(chunk, stamp_ns=now_ns - moved_ns), ""
        return "", ""

    def _blend(self, chunk: ActionChunk, safety: SafetyKnobs) -> ActionChunk:
        if self._ensemble is None:
            return chunk
        # What was decided long before the robot looked again says nothing of what it sees now.
        if age_s(self._answered_ns, chunk.stamp_ns) > safety.max_answer_age_s:
            self._ensemble.reset()
        moved = replace(chunk, stamp_ns=self._motion.at(chunk.stamp_ns))
        return replace(self._ensemble.blend(moved, self.instruction), stamp_ns=chunk.stamp_ns)

    def command(self, now_ns: int, safety: SafetyKnobs) -> Command | None:
        """What to command now; None to hold. It must be sent.

        :raises InferenceError: when the step is not finite; the chunk is void, and the robot must hold
        """
        command = None
        try:
            command = self._find_command(now_ns, safety)
        finally:
            self._motion.note(now_ns, moving=command is not None)
        return command

    def _find_command(self, now_ns: int, safety: SafetyKnobs) -> Command | None:
        chunk, self.chunk = self.chunk, None
        index = None if chunk is None or self._why_stale(now_ns, safety) else step_at(chunk, now_ns)
        if chunk is None or index is None:
            self.chunk = chunk
            return None
        velocity, (opening, moved) = step_velocity(chunk, index), limit_gripper(chunk.steps[index, 6])
        check_finite("the commanded velocity", velocity)
        self.chunk = chunk
        return Command(velocity, opening, moved, (chunk.stamp_ns, index))

    def hold(self, now_ns: int) -> None:
        """The robot was told to stand still, whatever :meth:`command` gave."""
        self._motion.note(now_ns, moving=False)

    def begin_anew(self) -> None:
        """What was decided is void, and so is what is being decided: the robot begins with a new look."""
        self.chunk = None
        self.generation += 1
        self._forget_answers()

    def _why_stale(self, now_ns: int, safety: SafetyKnobs) -> str:
        # However long a chunk is, motion ends soon after the last picture, and after the last answer.
        newest_ns = self._pacing.newest_ns
        if newest_ns is not None and age_s(newest_ns, now_ns) > safety.max_image_age_s:
            return "no image"
        if age_s(self._answered_ns, now_ns) > safety.command_timeout_s:
            return (f"no new answer for {age_s(self._answered_ns, now_ns):.1f} s, and safety.command_timeout_s is "
                    f"{safety.command_timeout_s:g} s")
        return ""

    def must_wait(self, now_ns: int, wall_ns: int, execute_steps: int) -> bool:
        """Whether simulated time stands still for an answer that is being made; see :mod:`.pacing`."""
        if not self.instruction or not is_due(self.chunk, now_ns, execute_steps):
            return False
        waiting_ns = self.picture.stamp_ns if self.picture is not None else self._in_work_ns
        return self._pacing.answer_expected(now_ns, wall_ns, waiting_ns)

    def image_age_s(self, now_ns: int) -> float | None:
        """Age of the newest image, s; None where none came yet."""
        newest_ns = self._pacing.newest_ns
        return None if newest_ns is None else age_s(newest_ns, now_ns)

    def why_hold(self, now_ns: int, safety: SafetyKnobs, incomplete: str = "") -> tuple[str, str]:
        """Kind and sentence of why the robot holds; a kind only where the hold itself is counted, when it begins.

        :param incomplete: what a set of pictures lacks, in a sentence; empty when nothing is known to lack
        """
        age = self.image_age_s(now_ns)
        if now_ns == 0:
            return "clock", f"no time has come on {interface.CLOCK.name} yet, and use_sim_time is true"
        if not self.instruction:
            return "", self._why_no_instruction
        stale = ""
        if self.chunk is not None and step_at(self.chunk, now_ns) is not None:
            stale = self._why_stale(now_ns, safety)
            if not stale:
                return "", ""
        if age is not None and age <= safety.max_image_age_s:
            return "", self._problem or self._refusal or stale or "the next actions are not ready"
        sentence = (f"no image for {age:.1f} s on {self._topics}; is the camera running?" if age is not None else
                    f"no image has arrived on {self._topics}")
        sentence = incomplete or sentence
        return "no_image", f"{sentence}; the last one was refused: {self._problem}" if self._problem else sentence
