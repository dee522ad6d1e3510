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

"""How the demo policy is trained, as read from one YAML file; ``assets/train_demo.yaml`` is the recipe that shipped."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.models.demo import DemoConfig
from sqap_vla_ros.models.llama import LlamaConfig
from sqap_vla_ros.models.vit import VitConfig
from sqap_vla_ros.models.vla import ActionSpec
from sqap_vla_ros.simulation.expert import MAX_STEP_M, MAX_TURN_RAD
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.parameters import build_layout
from sqap_vla_ros.simulation.suite import DIFFICULTIES
from sqap_vla_ros.simulation.tasks import KINDS, VOCABULARY

RECIPE = Path(__file__).parents[1] / "assets" / "train_demo.yaml"
FINE_STRIDE_PX = 14
INSTRUCTIONS_PER_FRAME = 8
TRAIN_SEEDS = range(1_000_000, 1_900_000)
T = TypeVar("T")


@dataclass(frozen=True)
class Architecture:
    """Sizes of the policy; see :class:`VitConfig` and :class:`LlamaConfig`."""

    vision: dict[str, int]
    decoder: dict[str, int]
    chunk_steps: int


@dataclass(frozen=True)
class Scenes:
    """What frames are collected from.

    :param layout: layout fields of all scenes
    :param difficulties: share of scenes by name: 'base' or a difficulty of the hard suite
    :param varied: share of scenes with another camera and light
    :param variation: layout fields of those
    :param kinds: share of episodes by the kind of task that drives them
    """

    layout: dict[str, Any]
    difficulties: dict[str, float]
    varied: float
    variation: dict[str, Any]
    kinds: dict[str, float]


@dataclass(frozen=True)
class Stage:
    """One stretch of training on one token grid.

    :param name: names the stage's files
    :param scenes: which of the recipe's scenes
    :param patch_stride: distance between visual tokens, px: 28 gives 64 tokens, 14 gives 256
    :param expert_frames: frames collected from the disturbed expert before training
    :param dagger_frames: frames collected from the policy so far and labelled by the expert
    :param samples: images seen, with repetition
    :param batch_size: images in a step; each carries several instructions
    :param peak_rate: learning rate after warm-up
    :param final_rate: learning rate at the end of the cosine
    """

    name: str
    scenes: str
    patch_stride: int
    expert_frames: int
    dagger_frames: int
    samples: int
    batch_size: int
    peak_rate: float
    final_rate: float


@dataclass(frozen=True)
class LossWeights:
    """How the losses are weighed.

    :param instructions_per_image: asked of one picture in one step
    :param own_weight: weight of the instruction the frame was collected under; the others share the rest
    :param pointer_weight: weight of the loss that makes color words point at their blocks
    :param place_weight: weight of the losses that locate target and gripper
    :param relation_weight: weight of the loss that tells the way from the gripper to the target
    :param turn_weight: weight of the loss that tells how far target and gripper are turned
    :param gripper_weight: weight of the gripper's cross-entropy
    """

    instructions_per_image: int
    own_weight: float
    pointer_weight: float
    place_weight: float
    relation_weight: float
    turn_weight: float
    gripper_weight: float


@dataclass(frozen=True)
class Optimizer:
    """AdamW and what surrounds it; ``ema_decay`` is that of the averaged weights, which are evaluated and shipped."""

    weight_decay: float
    ema_decay: float
    gradient_clip: float
    warmup_steps: int


@dataclass(frozen=True)
class Settings:
    """The whole recipe.

    :param save_every: optimizer steps between resumable saves
    :param validation_episodes: of each suite, after each stage
    :param execute_steps: steps of a chunk that validation carries out before the next look
    """

    seed: int
    model: Architecture
    scenes: dict[str, Scenes]
    stages: tuple[Stage, ...]
    loss: LossWeights
    optimizer: Optimizer
    save_every: int
    validation_episodes: int
    execute_steps: int


def load_settings(path: Path = RECIPE) -> Settings:
    """Read a recipe.

    :raises ConfigError: when it cannot be read, or a field is missing, unknown or of the wrong kind
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"the recipe '{path}' cannot be read: {error}; start from a copy of {RECIPE}") from error
    parts: dict[str, Any] = dict(values) if isinstance(values, dict) else {}
    for name, kind in (("model", Architecture), ("loss", LossWeights), ("optimizer", Optimizer)):
        parts[name] = _build(kind, parts.get(name), f"{path}: {name}")
    scenes, stages = parts.get("scenes"), parts.get("stages")
    parts["scenes"] = {name: _build(Scenes, values, f"{path}: scenes.{name}")
                       for name, values in (scenes.items() if isinstance(scenes, dict) else ())}
    parts["stages"] = tuple(_build(Stage, stage, f"{path}: stages[{index}]")
                            for index, stage in enumerate(stages if isinstance(stages, list) else [None]))
    settings = _build(Settings, parts, str(path))
    _check(settings, path)
    return settings


def mix_layout(scenes: Scenes, difficulty: str, *, varied: bool) -> Layout:
    """A layout that frames are collected from.

    :param varied: with another camera and light
    :raises ConfigError: when it cannot be built
    """
    return build_layout({**scenes.layout, **DIFFICULTIES.get(difficulty, {}), **(scenes.variation if varied else {})})


def _check(settings: Settings, path: Path) -> None:
    for name, scenes in settings.scenes.items():
        for what, given, known in (("difficulties", scenes.difficulties, ("base", *DIFFICULTIES)),
                                   ("kinds", scenes.kinds, KINDS)):
            if not isinstance(given, dict) or not given or not set(given) <= set(known):
                raise ConfigError(f"{path}: scenes.{name}.{what} gives shares of {', '.join(known)}; got {given!r}")
        for difficulty in scenes.difficulties:
            for varied in (False, True):
                mix_layout(scenes, difficulty, varied=varied)
    names = [stage.name for stage in settings.stages]
    for stage in settings.stages:
        if stage.scenes not in settings.scenes:
            raise ConfigError(f"{path}: stage '{stage.name}' takes scenes '{stage.scenes}'; there are "
                              f"{', '.join(settings.scenes) or 'none'}")
        if names.count(stage.name) > 1 or min(stage.samples, stage.batch_size) < 1:
            raise ConfigError(f"{path}: stage '{stage.name}' needs a name of its own, and samples and batch_size of at "
                              "least 1")
    if not 1 <= settings.loss.instructions_per_image <= INSTRUCTIONS_PER_FRAME:
        raise ConfigError(f"{path}: loss.instructions_per_image is {settings.loss.instructions_per_image}; allowed is "
                          f"1 to {INSTRUCTIONS_PER_FRAME}")


def _build(kind: type[T], values: Any, where: str) -> T:
    known = {entry.name: str(entry.type) for entry in fields(kind)}  # type: ignore[arg-type]
    given = values if isinstance(values, dict) else {}
    if set(given) != set(known):
        raise ConfigError(f"{where} needs exactly {', '.join(known)}; missing: "
                          f"{', '.join(sorted(set(known) - set(given))) or 'none'}, unknown: "
                          f"{', '.join(sorted(set(given) - set(known))) or 'none'}")
    plain: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, plain.get(known[name], (object,))):
            raise ConfigError(f"{where}.{name} takes a value of kind {known[name]}, got {value!r}")
    return kind(**given)


def scale_settings(settings: Settings, factor: float) -> Settings:
    """The same recipe with less of everything."""
    stages = tuple(replace(stage, expert_frames=math.ceil(stage.expert_frames * factor),
                           dagger_frames=math.ceil(stage.dagger_frames * factor),
                           samples=math.ceil(stage.samples * factor)) for stage in settings.stages)
    episodes = max(6, math.ceil(settings.validation_episodes * factor))
    return replace(settings, stages=stages, validation_episodes=episodes)


def demo_config(architecture: Architecture, patch_stride: int) -> DemoConfig:
    """Architecture of the demo policy on the grid that ``patch_stride`` gives.

    :raises ConfigError: when a size is missing, unknown or does not fit the others
    """
    bounds = (MAX_STEP_M,) * 3 + (MAX_TURN_RAD,) * 3
    low = tuple(-value for value in bounds) + (0.0,)
    action = ActionSpec(architecture.chunk_steps, low, bounds + (1.0,), (True,) * 6 + (False,))
    try:
        vision = VitConfig(patch_stride=patch_stride, **architecture.vision)
        return DemoConfig(vision, LlamaConfig(**architecture.decoder), VOCABULARY, action)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the recipe's model is not usable: {error}") from error
