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

"""The recipes of an evaluation, each carried out once and kept in its folder for every process and every later run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.evaluation.methods import FLOAT, STORED, Method
from sqap_vla_ros.models.registry import describe_checkpoint, hash_checkpoint, load_checkpoint
from sqap_vla_ros.policy.compression import (
    compress_checkpoint,
    find_observations,
    get_recipe,
    tell_missing_observations,
)
from sqap_vla_ros.policy.observations import hash_observations
from sqap_vla_ros.quantization.artifact import check_place
from sqap_vla_ros.quantization.report import Listener

FOLDER = "compressed"


@dataclass(frozen=True)
class Source:
    """What recipes are carried out on.

    :param checkpoint: folder of a float checkpoint, or a name of one in the package
    :param sha256: of its files, by name
    :param calibration: folder of observations; None for those that come with the checkpoint
    :param observations_sha256: of the observations; None where no recipe needs any
    """

    checkpoint: str
    sha256: dict[str, str]
    calibration: Path | None
    observations_sha256: str | None


def list_recipes(methods: Sequence[Method]) -> list[str]:
    """The recipes that methods need carried out, each once, in the order of the methods."""
    return list(dict.fromkeys(method.recipe for method in methods if method.recipe not in (FLOAT, STORED)))


def find_source(checkpoint: str, methods: Sequence[Method], calibration: Path | None = None) -> Source:
    """Find out whether the methods can be made of a checkpoint, before anything is made.

    :raises CheckpointError: when the checkpoint cannot be used
    :raises ConfigError: for a method that it does not allow, or observations that are missing or cannot be used
    """
    _check_kind(checkpoint, methods)
    needing = [name for name in list_recipes(methods) if get_recipe(name).needs_calibration]
    if calibration is not None and not needing:
        raise ConfigError(f"--calibration {calibration} is for recipes that must see observations, and none of "
                          f"{', '.join(method.name for method in methods)} must; leave it out")
    observations = find_observations(checkpoint, calibration) if needing else []
    if needing and not observations:
        raise ConfigError(tell_missing_observations(checkpoint, needing[0], get_recipe(needing[0])))
    return Source(checkpoint, hash_checkpoint(checkpoint), calibration,
                  hash_observations(observations) if needing else None)


def describe_recipes(methods: Sequence[Method]) -> dict[str, str]:
    """A hash of each recipe's values, by name: the same name may have meant something else when a run was begun."""
    return {name: hashlib.sha256(json.dumps(asdict(get_recipe(name)), sort_keys=True).encode()).hexdigest()[:16]
            for name in list_recipes(methods)}


def list_folders(folder: Path, methods: Sequence[Method]) -> dict[str, str]:
    """Where each recipe's result is or will be, by recipe."""
    return {name: str(folder / FOLDER / name) for name in list_recipes(methods)}


def forget_compressed(folders: Mapping[str, str]) -> None:
    """Remove what recipes have made, all of it before any is carried out: a run that ends early leaves none behind.

    :param folders: of the results, by recipe
    :raises CheckpointError: when a folder holds something else
    """
    for folder in map(Path, folders.values()):
        if folder.exists():
            check_place(folder, replace=True)
            shutil.rmtree(folder)


def compress_missing(source: Source, folders: dict[str, str], listener: Listener) -> list[str]:
    """Carry out every recipe whose result is not there, or was made of something else.

    :param folders: where each result goes, by recipe
    :param listener: told of each step
    :return: the recipes that were carried out
    :raises ConfigError: for a recipe that does not fit the model
    :raises CheckpointError: when a folder cannot be written, or holds something else
    """
    made = []
    for name, folder in folders.items():
        if not is_current(folder, name, source):
            compress_checkpoint(
                source.checkpoint, folder, name, observations=source.calibration, replace_old=True,
                listener=partial(_tell, listener, name))
            made.append(name)
    return made


def is_current(folder: str | Path, recipe_name: str, source: Source) -> bool:
    """Whether a folder holds, undamaged, what the recipe as it is now makes of that checkpoint and its observations."""
    try:
        if describe_checkpoint(folder).artifact is None:
            return False
        artifact: Any = load_checkpoint(folder).artifact
    except CheckpointError:
        return False
    recipe = get_recipe(recipe_name)
    wanted = source.observations_sha256 if recipe.needs_calibration else None
    # By their values: what is read back is no subclass.
    return (artifact.recipe_name == recipe_name and asdict(artifact.recipe) == asdict(recipe)
            and artifact.origin.sha256 == source.sha256 and artifact.origin.observations_sha256 == wanted)


def _tell(listener: Listener, recipe_name: str, stage: str, done: int, total: int) -> None:
    listener(f"{recipe_name}: {stage}", done, total)


def _check_kind(checkpoint: str, methods: Sequence[Method]) -> None:
    artifact = describe_checkpoint(checkpoint).artifact
    for method in methods:
        if artifact is None and method.recipe == STORED:
            raise ConfigError(f"the method '{method.name}' plays a compressed checkpoint as it is, and '{checkpoint}' "
                              f"is a float one; write '{FLOAT}' instead of '{STORED}' to play it as it is, or a recipe")
        if artifact is not None and method.recipe != STORED:
            raise ConfigError(
                f"'{checkpoint}' is compressed with the recipe '{artifact.recipe_name}', and the method "
                f"'{method.name}' needs a float checkpoint; write '{STORED}' instead of '{method.recipe}' to play it "
                f"as it is, or take what it was made from, '{artifact.origin.checkpoint}'")
