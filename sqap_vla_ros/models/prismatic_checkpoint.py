"""A Prismatic model's checkpoint in either of the originals' layouts: a transformers folder, or a CogACT run.

Sizes are read from the tensors' shapes. What shapes do not tell, the number of attention heads foremost, follows from
the ids in config.json, or from architecture.json in the checkpoint's folder or beside it, which overrides them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.models.key_maps import HF, KeyMap, map_keys
from sqap_vla_ros.models.llama import LlamaConfig
from sqap_vla_ros.models.llama_tokenizer import TOKENIZER_FILE
from sqap_vla_ros.models.pictures import STRATEGIES
from sqap_vla_ros.models.prismatic import PrismaticConfig
from sqap_vla_ros.models.shards import INDEX_FILE, SINGLE_FILE, TensorFiles, open_pickle, open_safetensors
from sqap_vla_ros.models.towers import TowerConfig
from sqap_vla_ros.models.vla import ImageSpec

CONFIG_FILE, ARCHITECTURE_FILE, PICTURE_FILE = "config.json", "architecture.json", "preprocessor_config.json"
# Width to attention heads, as timm has them: DINOv2 S to g, and SigLIP's shape-optimised ViT.
_TOWER_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16, 1536: 24}
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


def open_prismatic(folder: str | Path) -> PrismaticCheckpoint:
    """Find out what a folder holds.

    :param folder: as transformers saves OpenVLA and OpenVLA-OFT, or a run of CogACT with ``checkpoints/*.pt``
    :raises CheckpointError: naming the file or tensor that is missing, damaged, or of another kind of model
    """
    folder = Path(folder)
    values = read_json(folder / CONFIG_FILE)
    architecture = _read_architecture(folder)
    tensors = _open_tensors(folder)
    keys = map_keys(tensors.names)
    shapes = _Shapes(tensors, keys)
    try:
        config, prompt = _describe(folder, values, architecture, shapes)
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        raise CheckpointError(f"'{folder / CONFIG_FILE}', or '{PICTURE_FILE}' or '{ARCHITECTURE_FILE}' beside it, has "
                              f"something that no Prismatic model can be built by: {error!r}") from error
    return PrismaticCheckpoint(folder, config, values, architecture, tensors, keys, prompt)


def _describe(folder: Path, values: dict[str, Any], architecture: dict[str, Any],
              shapes: _Shapes) -> tuple[PrismaticConfig, str]:
    base = None if shapes.keys.layout == HF else _find_base(folder, values)
    decoder = _read_decoder(folder, shapes, values, architecture, base)
    sizes = _stated_sizes(folder, values) if base is None else [base.image_size]
    towers = {name: _read_tower(shapes, name, sizes[min(index, len(sizes) - 1)] if sizes else None,
                                _tower_architecture(architecture, name))
              for index, name in enumerate(name for name in ("dino", "siglip") if shapes.has(f"vision.{name}."))}
    place = shapes.tensors.place
    if not towers:
        raise CheckpointError(f"{place} has no tensors of a vision tower; early files of CogACT leave them out: take a "
                              "later one")
    if len({(tower.image_size, tower.grid_size) for tower in towers.values()}) != 1:
        raise CheckpointError(f"'{folder}' must have vision towers of one picture size and grid, it has "
                              f"{ {name: (tower.image_size, tower.grid_size) for name, tower in towers.items()} }")
    projector = _read_projector(shapes)
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


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    :raises CheckpointError: when the file is missing, damaged or holds something else
    """
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' is not readable as JSON: {error}; copy it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"'{path}' must hold a JSON object, it holds {type(values).__name__}")
    return values


def _read_architecture(folder: Path) -> dict[str, Any]:
    for place in (folder, folder.resolve().parent):
        if (place / ARCHITECTURE_FILE).is_file():
            return read_json(place / ARCHITECTURE_FILE)
    return {}


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


class _Shapes:
    # Shapes of tensors by their names here; errors name them as the checkpoint does.
    def __init__(self, tensors: TensorFiles, keys: KeyMap) -> None:
        self.tensors, self.keys = tensors, keys

    def has(self, begin: str) -> bool:
        return any(name.startswith(begin) for name in self.keys.stored)

    def of(self, name: str) -> tuple[int, ...]:
        if name not in self.keys.stored:
            raise CheckpointError(f"{self.tensors.place} has no tensor for '{name}'; the checkpoint is of another "
                                  "model, or not whole")
        return self.tensors.shape(self.keys.stored[name])

    def two(self, name: str) -> tuple[int, int]:
        shape = self.of(name)
        if len(shape) != 2:
            raise self.fault(name, "must have two dimensions")
        return shape[0], shape[1]

    def count(self, begin: str) -> int:
        numbers = {int(name[len(begin):].split(".")[0]) for name in self.keys.stored if name.startswith(begin)}
        return max(numbers, default=-1) + 1

    def fault(self, name: str, what: str) -> CheckpointError:
        stored = self.keys.stored[name]
        return CheckpointError(f"the tensor '{stored}' in '{self.tensors.path(stored)}' has shape {self.of(name)}; it "
                               f"{what}")


def _read_decoder(folder: Path, shapes: _Shapes, values: dict[str, Any], architecture: dict[str, Any],
                  base: _Base | None) -> LlamaConfig:
    stated: dict[str, Any]
    if base is None:
        # What transformers leaves out of the file is as LlamaConfig has it by default.
        stated = {"num_attention_heads": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                  **(values.get("text_config") or {})}
        rope = {**(stated.get("rope_scaling") or {}), **(stated.get("rope_parameters") or {})}
        stated["rope_theta"] = rope.get("rope_theta", stated["rope_theta"])
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise CheckpointError(f"'{folder / CONFIG_FILE}' stretches rotary positions ({rope}); only plain ones are "
                                  "known here")
    else:
        # Of meta-llama/Llama-2 and Vicuna 1.5, which such a run builds its Llama from.
        stated = {"num_attention_heads": base.heads, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
    llm = architecture.get("llm") or {}
    heads = int(llm.get("heads", stated["num_attention_heads"]))
    eps, theta = float(llm.get("rms_norm_eps", stated["rms_norm_eps"])), float(stated["rope_theta"])
    _, hidden = shapes.two("embed_tokens.weight")
    layer = "decoder.layers.0."
    if hidden % heads:
        raise shapes.fault("embed_tokens.weight", f"cannot be split among {heads} attention heads; state the number in "
                                                  f"'{ARCHITECTURE_FILE}' as llm.heads")
    kv_rows, _ = shapes.two(f"{layer}self_attn.k_proj.weight")
    kv_heads, rest = divmod(kv_rows, hidden // heads)
    if rest or not kv_heads or heads % kv_heads:
        raise shapes.fault(f"{layer}self_attn.k_proj.weight", f"is no whole number of heads of {hidden // heads}")
    return LlamaConfig(hidden, shapes.two(f"{layer}mlp.gate_proj.weight")[0], shapes.count("decoder.layers."), heads,
                       kv_heads, eps, theta)


def _tower_architecture(architecture: dict[str, Any], name: str) -> dict[str, Any]:
    vision = architecture.get("vision", architecture)
    return next((sizes for key, sizes in vision.items() if name in key and isinstance(sizes, dict)), {})


def _read_tower(shapes: _Shapes, name: str, image_size: int | None, architecture: dict[str, Any]) -> TowerConfig:
    begin = f"vision.{name}."
    kernel, places = shapes.of(f"{begin}patch_embed.proj.weight"), shapes.of(f"{begin}pos_embed")
    if len(kernel) != 4 or kernel[2] != kernel[3]:
        raise shapes.fault(f"{begin}patch_embed.proj.weight", "must be a square patch's")
    width, patch = kernel[0], kernel[2]
    grid = math.isqrt(places[1]) if len(places) == 3 else 0
    if not grid or grid * grid != places[1]:
        raise shapes.fault(f"{begin}pos_embed", "must have one position for each patch of a square, and no others")
    size = int(architecture.get("img_size", image_size or grid * patch))
    if size // patch != grid:
        raise shapes.fault(f"{begin}pos_embed", f"does not fit pictures of {size} px in patches of {patch} px")
    heads = architecture.get("num_heads", _TOWER_HEADS.get(width))
    if heads is None or width % int(heads):
        raise shapes.fault(f"{begin}patch_embed.proj.weight", f"does not tell the number of attention heads ({heads}? "
                                                              f"Width is {width}); state it in '{ARCHITECTURE_FILE}'")
    registers = shapes.of(f"{begin}reg_token")[1] if shapes.has(f"{begin}cls_token") else None
    blocks = shapes.count(f"{begin}blocks.")
    held = {"embed_dim": width, "patch_size": patch, "depth": blocks + 1, "reg_tokens": registers or 0}
    for key, value in held.items():
        if architecture.get(key, value) != value:
            raise CheckpointError(f"'{ARCHITECTURE_FILE}' states {key} {architecture[key]} for the vision tower "
                                  f"{name!r}, but by the tensors in {shapes.tensors.place} it is {value}")
    return TowerConfig(size, patch, width, shapes.two(f"{begin}blocks.0.mlp.fc1.weight")[0], blocks, int(heads),
                       registers, shapes.has(f"{begin}blocks.0.ls1."))


def _read_projector(shapes: _Shapes) -> tuple[int, ...]:
    linears = [shapes.two(f"projector.fc{index}.weight") for index in range(1, shapes.count("projector.fc"))]
    if not linears:
        shapes.of("projector.fc1.weight")
    return linears[0][1], *(written for written, _ in linears)


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
