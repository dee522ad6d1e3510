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

"""What OpenVLA-OFT is apart from its weights and its tokenizer, and for which robot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.models.action_tokens import ActionTokens
from sqap_vla_ros.models.dataset_statistics import DatasetStatistics
from sqap_vla_ros.models.llama_tokenizer import check_prompt
from sqap_vla_ros.models.oft_files import OftParts
from sqap_vla_ros.models.oft_presets import PRESETS, OftPreset, find_preset
from sqap_vla_ros.models.prismatic import PrismaticConfig
from sqap_vla_ros.models.prismatic_sizes import ARCHITECTURE_FILE

MAX_CAMERAS = 3


@dataclass(frozen=True)
class HeadConfig:
    """A head beside the language model.

    :param width: of its own layers
    :param blocks: residual blocks
    :param denoises: whether it gives the noise in actions instead of actions
    """

    width: int
    blocks: int
    denoises: bool


@dataclass(frozen=True)
class OftConfig:
    """All but weights and tokenizer.

    :param vlm: sizes
    :param robot: name of the robot's preset
    :param preset: sizes of its actions and states, and its cameras
    :param head: None for a model that writes its actions as words
    :param reads_state: whether it has a projector for the robot's state
    :param has_film: whether the words change what the vision towers see
    :param prompt: name of the sentence that an instruction is put into, see
        :data:`~sqap_vla_ros.models.llama_tokenizer.PROMPTS`
    :param tokens: which words are actions
    :param statistics: of the data sets it was trained on
    """

    vlm: PrismaticConfig
    robot: str
    preset: OftPreset
    head: HeadConfig | None
    reads_state: bool
    has_film: bool
    prompt: str
    tokens: ActionTokens
    statistics: DatasetStatistics

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``config.json``."""
        return {"family": "openvla-oft", "vlm": self.vlm.to_json(), "robot": self.robot, "preset": asdict(self.preset),
                "head": None if self.head is None else asdict(self.head), "reads_state": self.reads_state,
                "has_film": self.has_film, "prompt": self.prompt, "tokens": asdict(self.tokens),
                "datasets": self.statistics.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> OftConfig:
        """Inverse of :meth:`to_json`.

        :raises CheckpointError: when a field is missing or of no use
        """
        try:
            vlm = PrismaticConfig.from_json(values["vlm"])
            preset = OftPreset(**{**values["preset"], "cameras": tuple(values["preset"]["cameras"])})
            head = None if values["head"] is None else HeadConfig(**values["head"])
            return cls(vlm, str(values["robot"]), preset, head, bool(values["reads_state"]), bool(values["has_film"]),
                       check_prompt(values["prompt"]), ActionTokens.from_json(values["tokens"], vlm.vocabulary_size),
                       DatasetStatistics.from_json(values["datasets"]))
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise CheckpointError(f"the description of an OpenVLA-OFT model is not usable: {error!r}") from error


def find_robot(asked: str, architecture: Mapping[str, Any], parts: OftParts) -> tuple[str, OftPreset]:
    """Which robot a checkpoint is for.

    :param asked: name of a preset; empty to find out by ``"robot"`` in architecture.json, or else by the parts' sizes
    :param architecture: architecture.json; its ``"cameras"`` names the pictures, where they are not the preset's
    :param parts: what lies beside the model
    :return: name and preset
    :raises ConfigError: for a name that there is not, and where nothing tells one preset from another
    :raises CheckpointError: for cameras that cannot be
    """
    name = asked or architecture.get("robot") or _find_by_size(parts)
    preset, cameras = find_preset(str(name)), architecture.get("cameras")
    if cameras is None:
        return str(name), preset
    if (not isinstance(cameras, list) or not all(isinstance(camera, str) and camera for camera in cameras)
            or len(set(cameras)) != len(cameras) or not 1 <= len(cameras) <= MAX_CAMERAS):
        raise CheckpointError(f"'{ARCHITECTURE_FILE}' states the cameras {cameras!r}; it must be a list of 1 to "
                              f"{MAX_CAMERAS} different names")
    return str(name), replace(preset, cameras=tuple(cameras))


def _find_by_size(parts: OftParts) -> str:
    actions = None if parts.head is None else parts.head.action_dims
    states = None if parts.proprio is None else parts.proprio.fc1.in_features
    fitting = [name for name, preset in PRESETS.items()
               if actions in (None, preset.action_dims) and states in (None, preset.proprio_dims)]
    if len(fitting) == 1:
        return fitting[0]
    told = [f"{what} of {size} numbers" for what, size in (("actions", actions), ("states", states)) if size]
    raise ConfigError(f"the checkpoint does not tell which robot it is for, as its {' and '.join(told) or 'files'} fit "
                      f"{len(fitting)} presets; name one of {', '.join(PRESETS)} as model.robot, or as \"robot\" in "
                      f"'{ARCHITECTURE_FILE}'")
