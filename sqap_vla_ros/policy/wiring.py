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

"""What building a policy asks of device, recipe and model, before anything is run."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sqap_vla_ros.config import Config
from sqap_vla_ros.data import ACTION_NAMES
from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.knobs import InputKnobs, ModelKnobs
from sqap_vla_ros.models.pictures import check_pictures
from sqap_vla_ros.models.registry import CheckpointFacts
from sqap_vla_ros.models.vla import ModelSettings, VlaModel
from sqap_vla_ros.policy.compression import DTYPES, check_smoothness, find_observations
from sqap_vla_ros.policy.observations import StoredObservation, calibrate
from sqap_vla_ros.pruning.pruner import Pruner
from sqap_vla_ros.quantization.quantize import RECIPES, QuantizationReport, check_model, quantize_
from sqap_vla_ros.quantization.recipe import FLOAT, STORED


def find_device(name: str) -> torch.device:
    """The torch device of a name.

    :raises ConfigError: for one that torch does not have here
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"model.device is '{name}', which is no torch device; use 'cpu' or 'cuda'") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"model.device is '{name}'; allowed are cpu and cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"model.device is '{name}', but torch sees {torch.cuda.device_count()} CUDA devices here")
    return device


def find_dtype(knobs: ModelKnobs) -> torch.dtype:
    """What a model computes in where it is not quantized.

    :raises ConfigError: for another type than float32 with a recipe that quantizes, which would round what is rounded
    """
    if knobs.recipe in RECIPES and knobs.dtype != "float32":
        raise ConfigError(f"model.dtype is '{knobs.dtype}', and model.recipe '{knobs.recipe}' quantizes a float32 "
                          "model; set model.dtype to 'float32', or compress the checkpoint once with `sqap compress` "
                          f"and run that with model.recipe '{STORED}'")
    return DTYPES[knobs.dtype]


def choose_settings(knobs: ModelKnobs) -> ModelSettings:
    """What the knobs choose about a model, apart from its checkpoint."""
    return ModelSettings(knobs.dataset, knobs.pictures, knobs.robot, knobs.sampler_steps, knobs.guidance)


def check_recipe(config: Config, facts: CheckpointFacts) -> None:
    """Keep 'stored' to compressed checkpoints and every other recipe to float ones, so that none is taken for another.

    :raises ConfigError: when ``model.recipe`` is not for the checkpoint
    """
    name, recipe = config.model.checkpoint, config.model.recipe
    if facts.artifact is not None and recipe != STORED:
        raise ConfigError(f"model.checkpoint '{name}' is compressed with the recipe '{facts.artifact.recipe_name}', "
                          f"and model.recipe is '{recipe}'; set model.recipe to '{STORED}' to run it as it is, or "
                          f"model.checkpoint to the float one it was made from, '{facts.artifact.origin.checkpoint}'")
    if facts.artifact is None and recipe == STORED:
        raise ConfigError(f"model.recipe is '{STORED}', which runs a compressed checkpoint, and model.checkpoint "
                          f"'{name}' is a float one; set model.recipe to '{FLOAT}' to run it as it is, or to one of "
                          f"{', '.join(RECIPES)}")


def token_grids(model: VlaModel) -> tuple[tuple[int, int], ...]:
    """Rows and columns of the visual tokens of each camera's picture."""
    return (model.grid,) * len(model.cameras)


def build_pruner(config: Config, model: VlaModel, device: torch.device) -> Pruner | None:
    """What chooses a model's visual tokens; None keeps all of them.

    :raises ConfigError: for a layer that the decoder does not have
    """
    if config.prune.rule == "none":
        return None
    pruner = Pruner(config.prune, token_grids(model), device)
    pruner.check_depth(model.decoder.config.num_hidden_layers)
    return pruner


def check_fit(config: Config, facts: CheckpointFacts) -> list[StoredObservation]:
    """Refuse what can be refused without a checkpoint's weights, which may take minutes to read.

    :param config: every knob
    :param facts: of ``model.checkpoint``, with what the knobs choose about the model
    :return: what the recipe is calibrated with; none for one that needs none
    :raises ConfigError: when knobs do not fit the model or the machine
    """
    find_dtype(config.model)
    check_recipe(config, facts)
    knobs, dimensions = config.model, len(facts.model.action_spec.low)
    if not (knobs.meters_per_unit == knobs.radians_per_unit == 1.0 or dimensions == len(ACTION_NAMES)):
        raise ConfigError(f"model.meters_per_unit and model.radians_per_unit are for actions of {len(ACTION_NAMES)} "
                          f"numbers, and those of '{config.model.checkpoint}' have {dimensions}; leave them at 1")
    horizon = config.control.ensemble_horizon
    if horizon > 1 and facts.model.action_spec.chunk_steps == 1:
        raise ConfigError(f"control.ensemble_horizon is {horizon}, and '{config.model.checkpoint}' decides one step at "
                          "a time, so no two of its answers are for the same moment; leave it at 1")
    check_pictures(facts.model.image_spec, facts.model.pictures)
    build_pruner(config, facts.model, find_device(config.model.device))
    if config.model.recipe not in RECIPES:
        return []
    name, recipe = config.model.checkpoint, RECIPES[config.model.recipe]
    check_smoothness(facts.model, config.model.recipe, recipe)
    check_model(facts.model, recipe)  # type: ignore[arg-type]
    observations = find_observations(name) if recipe.needs_calibration else []
    if recipe.needs_calibration and not observations:
        raise ConfigError(
            f"model.recipe '{config.model.recipe}' must see observations, and model.checkpoint '{name}' comes without; "
            f"compress it once: `sqap compress {name} OUT --recipe {config.model.recipe} --calibration DIR`, then set "
            f"model.checkpoint to OUT and model.recipe to '{STORED}'")
    calibrate(facts.model, observations)
    return observations


def quantize_model(model: VlaModel, config: Config, observations: Sequence[StoredObservation]) -> QuantizationReport:
    """Quantize a float model by ``model.recipe``.

    :param observations: see :func:`check_fit`
    """
    return quantize_(model, RECIPES[config.model.recipe],  # type: ignore[arg-type]
                     engine=config.model.engine, calibration=calibrate(model, observations))


def check_arm(model: VlaModel, inputs: InputKnobs) -> None:
    """Refuse a model that one arm with these inputs cannot be moved by.

    :param inputs: which cameras there are, and what is known of the robot's state
    :raises CheckpointError: when its actions are others than ``ACTION_NAMES``, it sees another number of pictures, or
        reads another state
    """
    cameras, states = len(inputs.cameras), count_state(inputs)
    dimensions = len(model.action_spec.low)
    if dimensions != len(ACTION_NAMES):
        raise CheckpointError(f"the model's actions have {dimensions} dimensions; to move one arm {len(ACTION_NAMES)} "
                              f"are needed: {', '.join(ACTION_NAMES)}")
    if len(model.cameras) != cameras:
        raise CheckpointError(f"the model sees {len(model.cameras)} camera(s) ({', '.join(model.cameras)}), and here "
                              f"are {cameras}; name as many as input.cameras, or take another model")
    if model.state_size not in (0, states):
        raise CheckpointError(f"the model reads a robot state of {model.state_size} numbers, and here are {states}; "
                              "set input.state and input.joints, or take a model that reads pictures only")


def count_state(inputs: InputKnobs) -> int:
    """Numbers of the robot's state that is read: of the tool's pose, which has six, and of the joints."""
    if inputs.state == "none":
        return 0
    return (0 if inputs.state == "joints" else 6) + sum(1 for joint in inputs.joints if joint)
