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

"""Pictures and instructions on disk, for recipes that must see what the model sees.

A folder with PNG files and ``observations.jsonl``, a line each: ``{"image": "0000.png", "instruction": "pick up the
red block"}``. For a model with several cameras ``"images"`` lists a file of each in place of ``"image"``, and for one
that reads the robot's state ``"state"`` lists its numbers. They should be what the robot sees at work: a few dozen,
from many scenes and stages of a task.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from sqap_vla_ros.errors import ConfigError, InputError
from sqap_vla_ros.models.vla import VlaModel
from sqap_vla_ros.policy.preprocess import prepare_pictures, prepare_state
from sqap_vla_ros.quantization.calibration import Run

INDEX = "observations.jsonl"
_KEYS = ({"image", "instruction"}, {"images", "instruction"})
_EXAMPLE = '{"image": "0000.png", "instruction": "pick up the red block"}'


@dataclass(frozen=True)
class StoredObservation:
    """What was seen and asked for.

    :param images: one (H, W, 3) uint8 picture per camera
    :param instruction: in words
    :param source: where it was read, for errors
    :param state: (D,) float64, the robot's own; None where nothing is told of it
    """

    images: tuple[np.ndarray, ...]
    instruction: str
    source: str
    state: np.ndarray | None = None


def write_observations(folder: str | Path, observations: Iterable[tuple[np.ndarray, str]]) -> int:
    """Write a folder that :func:`read_observations` reads.

    The index comes last, so that a folder with one is complete.

    :param folder: created when missing
    :param observations: (H, W, 3) uint8 RGB and its instruction
    :return: how many there were
    :raises ConfigError: when there is none, one is unusable, or the folder holds an index or cannot be written
    """
    folder, lines = Path(folder), []
    if (folder / INDEX).exists():
        raise ConfigError(f"'{folder}' holds observations already; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (rgb, instruction) in enumerate(observations):
            if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size or not instruction.strip():
                raise ConfigError(f"observation {number} for '{folder}' is {rgb.dtype} {rgb.shape} with the "
                                  f"instruction {instruction!r}; it must be a uint8 picture of shape (height, width, "
                                  "3) with some words")
            name = f"{number:04d}.png"
            (folder / name).write_bytes(cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes())
            lines.append(json.dumps({"image": name, "instruction": instruction}))
        if not lines:
            raise ConfigError(f"there are no observations to write to '{folder}'")
        (folder / INDEX).write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"observations cannot be written to '{folder}': {error}") from error
    return len(lines)


def read_observations(folder: str | Path) -> list[StoredObservation]:
    """Read a folder of observations, in the order of its index.

    :raises ConfigError: naming file and line of what is missing or cannot be used
    """
    folder, index = Path(folder), Path(folder) / INDEX
    try:
        text = index.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"'{index}' is missing; a folder of observations has one, with lines such as "
                          f"{_EXAMPLE}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{index}' is not readable as UTF-8 text: {error}") from error
    if not text:
        raise ConfigError(f"'{index}' is empty; it needs a line such as {_EXAMPLE} for each observation")
    return [_read_line(folder, line, f"'{index}', line {number}")
            for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1)]


def read_picture(path: str | Path) -> np.ndarray:
    """Read a picture file.

    :return: (H, W, 3) uint8 RGB
    :raises InputError: when there is none, or it is no picture
    """
    try:
        content = np.frombuffer(Path(path).read_bytes(), dtype=np.uint8)
    except (OSError, ValueError) as error:
        raise InputError(f"the image {Path(path).name!r} cannot be read: {error}") from error
    bgr = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    if bgr is None:
        raise InputError(f"'{path}' is no picture, or a damaged one; it must be a PNG or JPEG file")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def hash_observations(observations: Sequence[StoredObservation]) -> str:
    """SHA-256 of what a model sees of them: pixels, sizes, words and states."""
    digest = hashlib.sha256()
    for observation in observations:
        shapes = "".join(str(rgb.shape) for rgb in observation.images)
        digest.update(f"{shapes}{len(observation.instruction)}{observation.instruction}".encode())
        for values in observation.images if observation.state is None else (*observation.images, observation.state):
            digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def calibrate(model: VlaModel, observations: Sequence[StoredObservation],
              device: torch.device | str = "cpu") -> list[Run]:
    """Functions that run a model on observations as a policy does, but with every visual token and with gradients.

    :param model: that is to be quantized
    :param observations: to run it on
    :param device: where the model is
    :raises ConfigError: naming file and line of what the model cannot use
    """
    return [_build_run(model, observation, device) for observation in observations]


def _build_run(model: VlaModel, observation: StoredObservation, device: torch.device | str) -> Run:
    try:
        ids = model.tokenize(observation.instruction)
        state = prepare_state(observation.state, model)
        pixels, _ = prepare_pictures(observation.images, model)
    except InputError as error:
        raise ConfigError(f"{observation.source}: {error}") from error
    pixels = pixels.to(device, next(model.vision.parameters()).dtype)

    def run() -> Tensor:
        sequence = model.build_sequence(model.encode_images(pixels, ids), ids, state)
        return model.predict_actions(model.decoder(sequence.embeddings, sequence.positions, causal=sequence.causal))

    return run


def _read_line(folder: Path, line: str, source: str) -> StoredObservation:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{source} is not readable as JSON: {error}; a line is like {_EXAMPLE}") from error
    if not isinstance(values, dict) or values.keys() - {"state"} not in _KEYS:
        raise ConfigError(f"{source} holds {_say(values)}; it must be an object with image and instruction, or images "
                          f"and instruction, and maybe state, and nothing else, like {_EXAMPLE}")
    images, instruction = values.get("images", [values.get("image")]), values["instruction"]
    if not isinstance(instruction, str) or not instruction.strip():
        raise ConfigError(f"{source} has the instruction {instruction!r}; it must be some words")
    if not isinstance(images, list) or not images:
        raise ConfigError(f"{source} has the images {images!r}; it must be a list of files, one of each camera")
    pictures = tuple(_read_picture(folder, image, source) for image in images)
    return StoredObservation(pictures, instruction, source,
                             _read_state(values["state"], source) if "state" in values else None)


def _read_picture(folder: Path, image: object, source: str) -> np.ndarray:
    if not isinstance(image, str) or image != Path(image).name or not image:
        raise ConfigError(f"{source} names the image {image!r}; it must be the name of a file in '{folder}'")
    try:
        return read_picture(folder / image)
    except InputError as error:
        raise ConfigError(f"{source}: {error}") from error


def _read_state(state: object, source: str) -> np.ndarray:
    if not isinstance(state, list) or not all(type(number) in (int, float) for number in state):
        raise ConfigError(f"{source} has the state {state!r}; it must be a list of numbers")
    return np.array(state, dtype=np.float64)


def _say(values: object) -> str:
    return ", ".join(values) or "nothing" if isinstance(values, dict) else type(values).__name__
