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

"""The looks of a replay as a bag: what each policy would have commanded, where its answers lead, how long they took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sqap_vla_ros.bags.answering import OVERLAYS, name_overlay
from sqap_vla_ros.bags.looks import Answer, LookRecord
from sqap_vla_ros.bags.writing import ResultBag, Route, Velocity
from sqap_vla_ros.config import Config
from sqap_vla_ros.data import ActionChunk
from sqap_vla_ros.policy.chunk import step_velocity
from sqap_vla_ros.policy.safety import limit_step
from sqap_vla_ros.ros.health import encode_latency
from sqap_vla_ros.ros.telling import foresee

RESULT_BAG = "replay"
_STAGE = "looks in the bag of results"
# What a status of the live node calls them.
_TOKEN_NAMES = {"robot": "protected", "attention": "attention", "coverage": "coverage", "random": "random"}


def write_result_bag(folder: Path, looks: Sequence[LookRecord], config: Config,
                     on_step: Callable[[str, int, int], None]) -> None:
    """Write ``folder/replay``; an earlier one is replaced, and without any answer there is none.

    The command of a look is the first step's velocity, within the caps of ``safety``.

    :param folder: of the replay
    :param config: the first policy's knobs
    :param on_step: told of each look
    :raises SqapError: when it cannot be written
    """
    with ResultBag(folder / RESULT_BAG) as bag:
        for number, look in enumerate(looks, start=1):
            for index, (label, answer) in enumerate(look.answers.items()):
                overlay = folder / OVERLAYS / name_overlay(look.index)
                bag.write_look(label, look.stamp_ns, velocity=_find_velocity(look, answer, config),
                               route=_find_route(look, answer, config),
                               latency=encode_latency(f"replay/{label}", _times(answer), _tokens(answer),
                                                      {"image_stamp_ns": look.stamp_ns}, look.no_protection,
                                                      look.stamp_ns),
                               overlay_jpeg=overlay.read_bytes() if index == 0 and overlay.exists() else None,
                               frame_id=look.frame_id)
            on_step(_STAGE, number, len(looks))


def _make_chunk(look: LookRecord, answer: Answer, config: Config) -> ActionChunk:
    return ActionChunk(look.stamp_ns, round(config.control.step_period_s * 1e9), np.array(answer.steps))


def _find_velocity(look: LookRecord, answer: Answer, config: Config) -> Velocity:
    safety = config.safety
    velocity, _ = limit_step(step_velocity(_make_chunk(look, answer, config), 0),
                             max_linear_m_s=safety.max_linear_m_s, max_angular_rad_s=safety.max_angular_rad_s)
    return Velocity(velocity[:3].tolist(), velocity[3:].tolist(), config.control.base_frame)


def _find_route(look: LookRecord, answer: Answer, config: Config) -> Route | None:
    if look.tool is None:
        return None
    chunk, tool = _make_chunk(look, answer, config), (np.array(look.tool[:3]), np.array(look.tool[3:]))
    return Route(chunk, foresee(chunk, tool), config.control.base_frame, config.control.tool_frame)


def _times(answer: Answer) -> dict[str, float]:
    return {**answer.milliseconds, "total": sum(answer.milliseconds.values())}


def _tokens(answer: Answer) -> dict[str, int]:
    return {"tokens": answer.total, "kept": answer.kept,
            **{name: answer.rules.get(rule, 0) for rule, name in _TOKEN_NAMES.items()}}
