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

"""One policy at work on the looks of a bag: a line on disk for each, from which a replay that was cut short goes on."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import cv2

from sqap_vla_ros.bags.looks import Answer, LookRecord
from sqap_vla_ros.bags.stepping import Look
from sqap_vla_ros.config import Config
from sqap_vla_ros.data import Inference, Observation, TokenRule
from sqap_vla_ros.errors import InferenceError, InputError
from sqap_vla_ros.evaluation.summary import write_json
from sqap_vla_ros.geometry.footprint import token_mask
from sqap_vla_ros.policy.overlay import draw_overlay
from sqap_vla_ros.policy.policy import Policy
from sqap_vla_ros.ros.inference import free_memory, load_policy
from sqap_vla_ros.ros.transforms import FootprintFinder

ANSWERS, OVERLAYS = "answers", "overlays"
JPEG_QUALITY = 80


def name_file(label: str) -> str:
    """Of the answers of a policy."""
    return f"{label.replace('/', '_')}.jsonl"


def name_overlay(index: int) -> str:
    """Of the picture of a look."""
    return f"{index:06d}.jpg"


class Answerer:
    """See the module's docstring.

    :param label: of the policy
    :param config: all its knobs
    :param folder: of the replay
    :param overlays: whether to draw what it saw
    """

    def __init__(self, label: str, config: Config, folder: Path, *, overlays: bool) -> None:
        self.label, self.config = label, config
        self._done = folder / ANSWERS / name_file(label)
        self._part = self._done.with_suffix(".part")
        self._facts = self._done.with_suffix(".json")
        self._overlays = folder / OVERLAYS if overlays else None
        self.complete = self._done.exists()
        self.finished = 0 if self.complete else _count_whole_lines(self._part)
        facts = json.loads(self._facts.read_text("utf-8")) if self.complete else {"policy": {}, "complaints": []}
        self.described: dict[str, Any] = facts["policy"]
        self.complaints: list[str] = facts["complaints"]
        self._policy: Policy | None = None
        self._file: BinaryIO | None = None

    def open(self) -> None:
        """Load the policy.

        :raises CheckpointError: when it cannot be, or does not fit one arm with these inputs
        :raises ConfigError: when a knob does not fit it
        """
        self._policy = cast(Policy, load_policy(self.config))
        self._policy.warm_up()
        self.described = self._policy.describe()
        if self._overlays is not None:
            self._overlays.mkdir(exist_ok=True)
        self._file = self._part.open("ab")

    def answer(self, index: int, look: Look, finder: FootprintFinder) -> None:
        """Ask the policy, keep what it says.

        :param finder: knows the frames of this moment
        """
        assert self._policy is not None and self._file is not None
        seen, control = look.seen, self.config.control
        tool = finder.find_tool(control.base_frame, control.tool_frame, look.stamp_ns,
                                self.config.footprint.max_tf_age_s).pose
        record = LookRecord(index, look.stamp_ns, look.log_ns, look.instruction, look.tf.value, refused=look.refused,
                            tool=None if tool is None else [*map(float, tool[0]), *map(float, tool[1])])
        if seen is not None:
            record = replace(record, no_protection=seen.observation.footprint_reason, frame_id=seen.frame_id)
            try:
                inference = self._policy.infer(seen.observation)
                record = replace(record, answers={self.label: self._describe(seen.observation, inference)})
                self._draw(index, seen.observation, inference)
            except (InputError, InferenceError) as error:
                record = replace(record, refused=str(error))
        self._file.write(f"{record.to_line()}\n".encode())
        self._file.flush()

    def finish(self, complaints: list[str]) -> None:
        """All looks are answered.

        :param complaints: what was found wrong with the bag on the way
        """
        self.close()
        self.complaints = complaints
        write_json(self._facts, {"policy": self.described, "complaints": complaints})
        self._part.replace(self._done)

    def close(self) -> None:
        """Let go of file and policy."""
        if self._file is not None:
            self._file.close()
        self._file, self._policy = None, None
        free_memory()

    def _describe(self, observation: Observation, inference: Inference) -> Answer:
        tokens = inference.tokens
        rules = {rule.name.lower(): sum(use.count(rule) for use in tokens) for rule in TokenRule}
        return Answer(inference.chunk.steps.tolist(), {stage: round(value, 4) for stage, value in
                                                       inference.times.milliseconds.items()},
                      sum(len(use.kept) for use in tokens), sum(use.grid[0] * use.grid[1] for use in tokens),
                      {name: count for name, count in rules.items() if count},
                      self._share_of_gripper(observation, inference))

    def _share_of_gripper(self, observation: Observation, inference: Inference) -> float | None:
        # Of the tokens that show the protected frames, how many stayed.
        assert self._policy is not None
        shown = stayed = 0
        for rgb, footprint, use in zip(observation.images, observation.footprints, inference.tokens, strict=True):
            if footprint is not None:
                height, width = rgb.shape[:2]
                mask = token_mask(footprint, self._policy.image_map(width, height), use.grid, self._policy.image_size,
                                  (width, height))
                shown += int(mask.sum())
                stayed += int(mask[use.kept].sum())
        return stayed / shown if shown else None

    def _draw(self, index: int, observation: Observation, inference: Inference) -> None:
        if self._overlays is None:
            return
        assert self._policy is not None
        rgb = observation.images[0]
        picture = draw_overlay(rgb, inference.tokens[0], observation.footprints[0],
                               self._policy.image_map(rgb.shape[1], rgb.shape[0]), observation.instruction,
                               model_size=self._policy.image_size)
        cv2.imwrite(str(self._overlays / name_overlay(index)), picture[..., ::-1],
                    [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])


def _count_whole_lines(path: Path) -> int:
    # What is behind the last whole line was being written when the process ended, and is cut off.
    if not path.exists():
        return 0
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    return data[:whole].count(b"\n")
