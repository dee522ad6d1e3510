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

"""A Prismatic model's checkpoint in either of the originals' layouts: a transformers folder, or a CogACT run.

Sizes are read from the tensors' shapes. What shapes do not tell, the number of attention heads foremost, follows from
the ids in config.json, or from architecture.json in the checkpoint's folder or beside it, which overrides them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.models.json_file import read_json
from sqap_vla_ros.models.key_maps import HF, KeyMap, map_keys
from sqap_vla_ros.models.llama_tokenizer import TOKENIZER_FILE
from sqap_vla_ros.models.lora import LoraAdapter, MergedTensors, find_adapter
from sqap_vla_ros.models.pictures import STRATEGIES
from sqap_vla_ros.models.prismatic import PrismaticConfig
from sqap_vla_ros.models.prismatic_sizes import ARCHITECTURE_FILE, Shapes, read_decoder, read_projector, read_tower
from sqap_vla_ros.models.shards import INDEX_FILE, SINGLE_FILE, TensorFiles, open_pickle, open_safetensors
from sqap_vla_ros.models.towers import TowerConfig
from sqap_vla_ros.models.vla import ImageSpec

CONFIG_FILE, PICTURE_FILE = "config.json", "preprocessor_config.json"
# What pictures are normalised by: mean and deviation.
_NORMALISATION = {"dino": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "siglip": ((0.5,) * 3, (0.5,) * 3)}


@dataclass(frozen=True)
class _Base:
    # What a CogACT run does not store of the VLM it was trained from.
    strategy: str
    image_size: int
    heads: int
    prompt: str = "openvla"


_BASES = {
    "prism-dinosiglip-224px+7b": _Base("resize-naive", 224, 32),
    "prism-dinosiglip-224px-controlled+7b": _Base("resize-naive", 224, 32),
    "prism-dinosiglip+7b": _Base("resize-naive", 384, 32),
    "prism-dinosiglip+13b": _Base("resize-naive", 384, 40),
    "siglip-224px+7b": _Base("letterbox", 224, 32, "openvla-v01"),
}


@dataclass(frozen=True)
class PrismaticCheckpoint:
    """What can be told of a checkpoint before its weights are read.

    :param folder: where it is
    :param config: sizes
    :param values: config.json
    :param architecture: architecture.json, empty where there is none
    :param tensors: all of them, of an action head too where they lie in the same file
    :param keys: which of them is what
    :param prompt: name of the prompt, see :data:`~sqap_vla_ros.models.llama_tokenizer.PROMPTS`
    """

    folder: Path
    config: PrismaticConfig
    values: dict[str, Any]
    architecture: dict[str, Any]
    tensors: TensorFiles
    keys: KeyMap
    prompt: str

    @property
    def sources(self) -> tuple[Path, ...]:
        """Every file that decides what the model does; what lies beside the model's own is for a family to add."""
        beside = [self.folder / name for name in (CONFIG_FILE, PICTURE_FILE, INDEX_FILE)]
        return (*(path for path in beside if path.is_file()), *find_architecture(self.folder), *self.tensors.paths)

    @property
    def stored(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """safetensors' type, and shape, of each tensor by its name here."""
        return {name: self.tensors.stored(stored) for name, stored in self.keys.stored.items()}


def open_prismatic(folder: str | Path) -> PrismaticCheckpoint:
    """Find out what a folder holds.

    An adapter among its files is merged into what is read; see :func:`~sqap_vla_ros.models.lora.find_adapter`.

    :param folder: as transformers saves OpenVLA and OpenVLA-OFT, or a run of CogACT with ``checkpoints/*.pt``
    :raises CheckpointError: naming the file or tensor that is missing, damaged, or of another kind of model
    """
    folder = Path(folder)
    values = read_json(folder / CONFIG_FILE)
    architecture = read_architecture(folder)
    tensors, adapter = _open_tensors(folder), find_adapter(folder)
    if adapter is not None:
        tensors = MergedTensors(tensors, LoraAdapter(adapter))
    keys = map_keys(tensors.names)
    shapes = Shapes(tensors, keys)
    try:
        config, prompt = _describe(folder, values, architecture, shapes)
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        raise CheckpointError(f"'{folder / CONFIG_FILE}', or '{PICTURE_FILE}' or '{ARCHITECTURE_FILE}' beside it, has "
                              f"something that no Prismatic model can be built by: {error!r}") from error
    return PrismaticCheckpoint(folder, config, values, architecture, tensors, keys, prompt)


def _describe(folder: Path, values: dict[str, Any], architecture: dict[str, Any],
              shapes: Shapes) -> tuple[PrismaticConfig, str]:
    base = None if shapes.keys.layout == HF else _find_base(folder, values)
    decoder = read_decoder(shapes, values, architecture, None if base is None else base.heads)
    sizes = _stated_sizes(folder, values) if base is None else [base.image_size]
    towers = {name: read_tower(shapes, name, sizes[min(index, len(sizes) - 1)] if sizes else None, architecture)
              for index, name in enumerate(name for name in ("dino", "siglip") if shapes.has(f"vision.{name}."))}
    place = shapes.tensors.place
    if not towers:
        raise CheckpointError(f"{place} has no tensors of a vision tower; early files of CogACT leave them out: take a "
                              "later one")
    if len({(tower.image_size, tower.grid_size) for tower in towers.values()}) != 1:
        raise CheckpointError(f"'{folder}' must have vision towers of one picture size and grid, it has "
                              f"{ {name: (tower.image_size, tower.grid_size) for name, tower in towers.items()} }")
    projector = read_projector(shapes)
    ends, widths = (projector[0], projector[-1]), (sum(t.hidden_size for t in towers.values()), decoder.hidden_size)
    if ends != widths:
        raise CheckpointError(f"the projector in {place} goes from {ends[0]} numbers to {ends[1]}, but vision towers "
                              f"and decoder are {widths[0]} and {widths[1]} wide; the parts are of different models")
    image = _read_image_spec(folder, values, towers, base)
    vicuna = str(values.get("llm_backbone_id", "")).startswith("vicuna")
    prompt = base.prompt if base is not None else "openvla-v01" if vicuna else "openvla"
    return PrismaticConfig(towers, projector, decoder, shapes.of("embed_tokens.weight")[0], image), prompt


def find_tokenizer(folder: str | Path) -> Path:
    """The tokenizer of a checkpoint, in its folder, or in ``tokenizer`` within it or beside it.

    :raises CheckpointError: when there is none; a run of CogACT carries none by itself
    """
    folder = Path(folder)
    for place in (folder, folder / "tokenizer", folder.resolve().parent / "tokenizer"):
        if (place / TOKENIZER_FILE).is_file():
            return place / TOKENIZER_FILE
    raise CheckpointError(f"'{folder}' has no '{TOKENIZER_FILE}', nor has a folder 'tokenizer' in it or beside it; "
                          "copy it there from OpenVLA-7B, whose tokenizer all these models share")


def find_architecture(folder: Path) -> tuple[Path, ...]:
    """The architecture.json of a checkpoint, in its folder or beside it; one path, or none."""
    places = (folder / ARCHITECTURE_FILE, folder.resolve().parent / ARCHITECTURE_FILE)
    return tuple(path for path in places if path.is_file())[:1]


def read_architecture(folder: Path) -> dict[str, Any]:
    """What architecture.json says; nothing where there is none.

    :raises CheckpointError: when it is damaged
    """
    return next(map(read_json, find_architecture(folder)), {})


def _open_tensors(folder: Path) -> TensorFiles:
    if (folder / INDEX_FILE).is_file() or (folder / SINGLE_FILE).is_file():
        return open_safetensors(folder)
    found = sorted((folder / "checkpoints").glob("*.pt"))
    if len(found) != 1:
        raise CheckpointError(f"'{folder}' must have '{INDEX_FILE}', '{SINGLE_FILE}', or exactly one file "
                              f"'checkpoints/*.pt'; of the last it has {len(found)}")
    return open_pickle(found[0], root="model")


def _find_base(folder: Path, values: dict[str, Any]) -> _Base:
    vla = values.get("vla")
    name = vla.get("base_vlm") if isinstance(vla, dict) else None
    if name in _BASES:
        return _BASES[name]
    raise CheckpointError(f"'{folder / CONFIG_FILE}' names {name!r} as vla.base_vlm; known are {', '.join(_BASES)}")


def _stated_sizes(folder: Path, values: dict[str, Any]) -> list[int]:
    sizes = values.get("image_sizes")
    if sizes is None and (folder / PICTURE_FILE).is_file():
        sizes = [size[-1] for size in read_json(folder / PICTURE_FILE).get("input_sizes", [])]
    return [int(size) for size in sizes or []]


def _read_image_spec(folder: Path, values: dict[str, Any], towers: dict[str, TowerConfig],
                     base: _Base | None) -> ImageSpec:
    size = next(iter(towers.values())).image_size
    known = [_NORMALISATION[name] for name in towers]
    if base is not None:
        return ImageSpec(size, base.strategy, tuple(mean for mean, _ in known), tuple(std for _, std in known))
    stated = read_json(folder / PICTURE_FILE) if (folder / PICTURE_FILE).is_file() else {}
    strategy = stated.get("image_resize_strategy", values.get("image_resize_strategy", "resize-naive"))
    # OpenVLA's processor pads for all towers with the last one's mean.
    strategy = "letterbox-last" if strategy == "letterbox" else strategy
    if strategy not in STRATEGIES:
        raise CheckpointError(f"'{folder}' wants its pictures made square by {strategy!r}; known are "
                              f"{', '.join(STRATEGIES)}")
    means, stds = ([tuple(map(float, tower)) for tower in stated.get(key) or [pair[index] for pair in known]]
                   for index, key in enumerate(("means", "stds")))
    if {len(means), len(stds)} != {len(towers)} or {len(tower) for tower in means + stds} != {3}:
        raise CheckpointError(f"'{folder / PICTURE_FILE}' must give three means and stds for each of {len(towers)} "
                              f"vision towers, it gives {means} and {stds}")
    return ImageSpec(size, strategy, tuple((a, b, c) for a, b, c in means), tuple((a, b, c) for a, b, c in stds))
