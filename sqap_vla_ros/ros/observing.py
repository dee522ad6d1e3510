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

"""From a set of pictures to what the policy sees: decoded, with the robot's footprint and its state of that moment.

The node and the replay of a bag look through this one part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sqap_vla_ros.config import Config
from sqap_vla_ros.data import Observation
from sqap_vla_ros.errors import InputError
from sqap_vla_ros.policy.safety import age_s
from sqap_vla_ros.ros.cycle import Picture
from sqap_vla_ros.ros.inputs import JointStates
from sqap_vla_ros.ros.transforms import FootprintFinder, TfHit


@dataclass(frozen=True)
class Seen:
    """What one set of pictures shows.

    :param observation: for the policy
    :param frame_id: of the first camera's picture
    :param hits: what TF knew, by camera
    """

    observation: Observation
    frame_id: str
    hits: tuple[TfHit, ...]


class Observer:
    """See the module's docstring.

    :param finder: where the robot is in each picture, and where its tool
    :param joints: the robot's own state
    :param decode: the pictures of a set, (H, W, 3) uint8 RGB for each camera
    :param note: told of what is missing or cannot be used: its kind and a sentence
    :param note_lookup: told what TF knew, one call per picture that was looked up
    """

    def __init__(self, finder: FootprintFinder, joints: JointStates,
                 decode: Callable[[Picture], tuple[np.ndarray, ...]], note: Callable[[str, str], None],
                 note_lookup: Callable[[str], None]) -> None:
        self._finder, self._joints, self._decode_all = finder, joints, decode
        self._note, self._note_lookup = note, note_lookup
        self._decoded: tuple[Picture, tuple[np.ndarray, ...]] | None = None

    def observe(self, picture: Picture, instruction: str, config: Config, now_ns: int, wall_ns: int) -> Seen | None:
        """Look at a set of pictures.

        :param now_ns: the node's clock
        :param wall_ns: the clock on which the pictures arrived
        :return: None where TF may know more in a moment
        :raises InputError: when it cannot be used
        """
        images, knobs = self._decode(picture), config.footprint
        found = [self._finder.find(knobs, index, message.header.frame_id, (rgb.shape[1], rgb.shape[0]),
                                   picture.stamp_ns)
                 for index, (message, rgb) in enumerate(zip(picture.messages, images, strict=True))]
        if age_s(picture.arrived_ns, wall_ns) < knobs.tf_wait_s and not all(item.exact for item in found):
            return None
        for item in found:
            if item.hit is not TfHit.UNASKED:
                self._note_lookup(item.hit.value)
        reason = "; ".join(item.reason for item in found if item.reason)
        if reason:
            self._note("no_protection", reason)
            if knobs.required:
                raise InputError(reason)
        observation = Observation(picture.stamp_ns, images, instruction, tuple(item.footprint for item in found),
                                  reason, self._read_state(config, now_ns))
        return Seen(observation, picture.messages[0].header.frame_id, tuple(item.hit for item in found))

    def _decode(self, picture: Picture) -> tuple[np.ndarray, ...]:
        if self._decoded is None or self._decoded[0] is not picture:
            try:
                self._decoded = picture, self._decode_all(picture)
            except InputError as error:
                self._note("image", str(error))
                raise
        return self._decoded[1]

    def _read_state(self, config: Config, now_ns: int) -> np.ndarray | None:
        try:
            tool = None
            if config.input.state.startswith("pose"):
                control = config.control
                tool = self._finder.find_tool(control.base_frame, control.tool_frame, now_ns,
                                              config.safety.max_state_age_s)
            return self._joints.state(now_ns, config.safety.max_state_age_s, tool)
        except InputError as error:
            self._note("state", str(error))
            raise
