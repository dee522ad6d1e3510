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

"""The policy as the node sees it: what it must offer, where it comes from, one inference to make."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from typing import Protocol

from sqap_vla_ros.config import Config
from sqap_vla_ros.data import Inference, Observation
from sqap_vla_ros.geometry.image_map import ImageMap
from sqap_vla_ros.knobs import PruneKnobs


class PolicyLike(Protocol):
    """What the node needs of :class:`~sqap_vla_ros.policy.policy.Policy`."""

    def infer(self, observation: Observation) -> Inference:
        """Look once, decide the next steps."""

    def check_instruction(self, text: str) -> None:
        """Raise InputError for an instruction that cannot be followed."""

    def warm_up(self) -> None:
        """Make the first inference as fast as the others."""

    def check_itself(self) -> str:
        """Compare itself with the float model; what came out, in words."""

    def adapt(self, prune: PruneKnobs) -> None:
        """Prune otherwise from the next inference on; raise ConfigError for what cannot be."""

    def describe(self) -> dict[str, str | int | float]:
        """What runs."""

    @property
    def image_size(self) -> int:
        """Side of the model's picture, px."""

    def image_map(self, width: int, height: int) -> ImageMap:
        """Camera pixels to model pixels."""


@dataclass(frozen=True)
class Job:
    """One inference to make.

    :param observation: what the policy sees
    :param frame_id: of the image
    :param generation: of the cycle in which it began
    """

    observation: Observation
    frame_id: str
    generation: int


def load_policy(config: Config) -> PolicyLike:
    """The policy of :func:`~sqap_vla_ros.policy.policy.build_policy`.

    Its libraries take seconds to import; this way configure takes them, and the node itself is up at once. Whether the
    model fits one arm is known before its weights are read, which may take minutes.

    :raises CheckpointError: when the checkpoint cannot be used, or cannot move one arm by one picture
    :raises ConfigError: when a knob does not fit the model or the machine
    """
    from sqap_vla_ros.models.registry import describe_checkpoint
    from sqap_vla_ros.policy.policy import build_policy
    from sqap_vla_ros.policy.wiring import check_arm, choose_settings

    facts = describe_checkpoint(config.model.checkpoint, settings=choose_settings(config.model), chosen=True)
    check_arm(facts.model, config.input)
    return build_policy(config)


def free_memory() -> None:
    """Give back what a policy that nobody holds any more took, on a GPU too."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
