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

"""A float checkpoint in, a compressed one out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.knobs import PruneKnobs
from sqap_vla_ros.models.registry import (
    DEFAULT_SETTINGS,
    FAMILIES,
    PACKAGED,
    CheckpointFacts,
    checkpoint_folder,
    describe_checkpoint,
    hash_sources,
    verify_checkpoint,
)
from sqap_vla_ros.models.vla import ModelSettings, VlaModel
from sqap_vla_ros.policy.observations import (
    INDEX,
    StoredObservation,
    calibrate,
    hash_observations,
    read_observations,
)
from sqap_vla_ros.policy.reference import REFERENCE_FILE, Reference
from sqap_vla_ros.quantization.artifact import Origin, check_place
from sqap_vla_ros.quantization.artifact_writer import ArtifactWriter, write_artifact
from sqap_vla_ros.quantization.parts import Part, forget_
from sqap_vla_ros.quantization.quantize import quantize_
from sqap_vla_ros.quantization.recipe import RECIPES, Recipe
from sqap_vla_ros.quantization.report import Listener, QuantizationReport
from sqap_vla_ros.quantization.stored_tensors import name_dtype

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Compression:
    """What was written.

    :param facts: what the folder tells of itself
    :param report: what each linear became
    :param source_bytes: size of the float checkpoint
    :param seconds: it took
    """

    facts: CheckpointFacts
    report: QuantizationReport
    source_bytes: int
    seconds: float

    @property
    def file_bytes(self) -> int:
        """Size of the compressed checkpoint."""
        return sum(self.facts.file_bytes.values())


def get_recipe(name: str) -> Recipe:
    """Find a recipe by name.

    :raises ConfigError: for an unknown name
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe '{name}'; known are {', '.join(RECIPES)}")
    return RECIPES[name]


def find_observations(checkpoint: str | Path, folder: str | Path | None = None) -> list[StoredObservation]:
    """The observations to calibrate a checkpoint with; a checkpoint that comes with the package may have its own.

    :param checkpoint: folder, or name of a packaged one
    :param folder: of observations; None looks for those that come with the checkpoint
    :return: none where there are none
    :raises ConfigError: naming file and line of what is missing or cannot be used
    """
    if folder is not None:
        return read_observations(folder)
    packaged = checkpoint_folder(checkpoint) / "calibration"
    return read_observations(packaged) if str(checkpoint) in PACKAGED and (packaged / INDEX).is_file() else []


def compress_checkpoint(checkpoint: str | Path, place: str | Path, recipe_name: str, *,
                        observations: str | Path | None = None, engine: str = "cpu", seed: int | None = None,
                        dtype: str | None = None, replace_old: bool = False, settings: ModelSettings = DEFAULT_SETTINGS,
                        refer: Callable[[StoredObservation], Reference | None] = lambda observation: None,
                        listener: Listener = lambda stage, done, total: None) -> Compression:
    """Quantize a float checkpoint and write the result, which is read back before it counts as done.

    Of what stays float each tensor is stored in the type that the checkpoint has it in, or all of them in ``dtype``;
    but those that the family computes with in float32 in any case, such as CogACT's action model, are stored so, as
    are those that the checkpoint does not hold. So nothing is rounded that the model would not round itself.

    :param checkpoint: folder, or name of a packaged one
    :param place: folder that does not exist yet
    :param recipe_name: by name
    :param observations: folder to calibrate with; None takes what comes with the checkpoint
    :param engine: what multiplies integers while blocks are calibrated; any gives the same result
    :param seed: of the rotations' signs; None takes the recipe's
    :param dtype: how float parts are stored, a name in ``DTYPES``; None keeps each tensor's own
    :param replace_old: put it in the place of a compressed checkpoint that is there
    :param settings: of the model while it is calibrated: the pictures' preset, whose statistics a state is read by
    :param refer: what the float model does on the first observation, to be stored for comparison
    :param listener: told of each step
    :raises ConfigError: for a recipe, observations or an engine that cannot be used
    :raises CheckpointError: when the checkpoint cannot be read, or the place not be written
    """
    began = time.monotonic()
    recipe = get_recipe(recipe_name)
    recipe = recipe if seed is None else replace(recipe, seed=seed)
    check_place(place, replace=replace_old)
    source = describe_checkpoint(checkpoint, settings=settings)
    if source.artifact is not None:
        raise ConfigError(f"'{checkpoint}' is compressed already, with the recipe '{source.artifact.recipe_name}'; "
                          f"compress what it was made from, '{source.artifact.origin.checkpoint}'")
    model: Any = source.model
    check_smoothness(model, recipe_name, recipe)
    seen = find_observations(checkpoint, observations)
    if recipe.needs_calibration and not seen:
        raise ConfigError(tell_missing_observations(checkpoint, recipe_name, recipe))
    stored = seen if recipe.needs_calibration else []
    if stored:
        model.choose(settings)  # what is observed may have units, such as the robot's state
    origin = Origin(_find_version(), str(checkpoint), hash_sources(source.sources, listener), len(stored),
                    hash_observations(stored) if stored else None)
    reference = refer(seen[0]) if seen else None
    dtypes = _choose_dtypes(source, dtype)
    with (TemporaryDirectory() as beside,
          write_artifact(model, place, dtypes=dtypes, replace=replace_old) as writer):
        report = quantize_(model, recipe, engine=engine, calibration=calibrate(model, stored),
                           store=_Pages(source, writer), listener=listener)
        files = dict(source.companions)
        if reference is not None:
            files[REFERENCE_FILE] = reference.save(Path(beside))
        writer.finish(recipe_name, recipe, report, config=model.config.to_json(), origin=origin,
                      pruning=asdict(PruneKnobs()), files=files)
        verify_checkpoint(writer.draft, listener)
    return Compression(describe_checkpoint(place), report, sum(source.file_bytes.values()),
                       time.monotonic() - began)


class _Pages:
    # Parts come from a checkpoint's files when they are worked on, and go into an artifact; memory holds no others.
    def __init__(self, source: CheckpointFacts, writer: ArtifactWriter) -> None:
        self._source, self._writer = source, writer

    def bring_(self, part: Part) -> None:
        self._source.load_(part.holds)

    def put_away_(self, part: Part) -> None:
        self._writer.add(part.holds)
        forget_(cast(Any, self._source.model), part)


def check_smoothness(model: VlaModel, recipe_name: str, recipe: Recipe) -> None:
    """Refuse recipes that follow actions back to the weights, where the model writes them as words.

    :raises ConfigError: when the recipe reads gradients of actions that have none
    """
    if recipe.mean_bits is not None and not model.has_smooth_actions:
        others = [name for name, other in RECIPES.items() if other.mean_bits is None]
        raise ConfigError(f"the recipe '{recipe_name}' (mean_bits {recipe.mean_bits:g}) reads gradients of actions, "
                          f"and a model of the family '{model.family}' writes actions as words, which have none; take "
                          f"one of {', '.join(others)}")


def tell_missing_observations(checkpoint: str | Path, recipe_name: str, recipe: Recipe) -> str:
    """Why a recipe cannot be carried out without observations, and where to get some."""
    others = [name for name, other in RECIPES.items() if not other.needs_calibration]
    return (f"the recipe '{recipe_name}' ({recipe.calibrated_part}) must see observations, and '{checkpoint}' comes "
            f"without; give --calibration a folder with {INDEX}, a line of image and instruction for each picture of "
            f"the robot's camera (`sqap compress --help` shows one), or take a recipe that needs none: "
            f"{', '.join(others)}")


def _choose_dtypes(source: CheckpointFacts, asked: str | None) -> dict[str, torch.dtype]:
    # By the tensors' names; of those that quantization replaces it does not matter.
    known = {name_dtype(dtype): dtype for dtype in DTYPES.values()}
    held = {name: known.get(stored, torch.float32) for name, (stored, _) in source.tensors.items()}
    chosen = held if asked is None else dict.fromkeys(cast(Any, source.model).state_dict(), DTYPES[asked])
    return {name: dtype for name, dtype in chosen.items()
            if not name.startswith(FAMILIES[source.family].float32_parts)}


def _find_version() -> str:
    try:
        return metadata.version("sqap_vla_ros")
    except metadata.PackageNotFoundError:  # run from a folder that was never installed
        return "unknown"
