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

"""Checkpoints with random weights in the originals' own layouts, down to the tensors that inference never reads.

What speed, memory and loading cost does not depend on the values of weights, so this stands in for a published
checkpoint wherever only those are of interest. Actions are finite and mean nothing.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.models.dit import SIZES as DIT_SIZES
from sqap_vla_ros.models.dit import Dit, DitConfig
from sqap_vla_ros.models.family import build_empty
from sqap_vla_ros.models.key_maps import HF, NATIVE, original_name
from sqap_vla_ros.models.llama import LlamaConfig
from sqap_vla_ros.models.oft_files import head_file_name
from sqap_vla_ros.models.oft_heads import ChunkHead
from sqap_vla_ros.models.oft_presets import PRESETS
from sqap_vla_ros.models.prismatic import PrismaticConfig, PrismaticVlm
from sqap_vla_ros.models.proprio import TokenProjector
from sqap_vla_ros.models.random_tokenizer import write_tokenizer
from sqap_vla_ros.models.shards import INDEX_FILE
from sqap_vla_ros.models.towers import TowerConfig
from sqap_vla_ros.models.vla import ImageSpec
from sqap_vla_ros.quantization.folder import write_folder
from sqap_vla_ros.quantization.report import Listener

# Of safetensors files, and of what is filled at a time of one that is mapped.
SHARD_BYTES = 2 << 30
# Ends of names of what is a gain or an offset, and so is near 1 or 0.
_GAINS = ("norm.weight", "norm1.weight", "norm2.weight", "norm_in.weight", "norm_out.weight", "layernorm.weight",
          ".gamma")
_DATASET = "random"
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Size:
    """How large the parts are.

    :param vlm: vision, projector and decoder as they are read: each tower has one block more in the file
    :param dits: action transformers by CogACT's names
    """

    vlm: PrismaticConfig
    dits: Mapping[str, DitConfig]


_IMAGE = ImageSpec(224, "resize-naive", ((0.485, 0.456, 0.406), (0.5,) * 3), ((0.229, 0.224, 0.225), (0.5,) * 3))
SIZES = {
    "7b": Size(PrismaticConfig(
        {"dino": TowerConfig(224, 14, 1024, 4096, 23, 16, 4, True),
         "siglip": TowerConfig(224, 14, 1152, 4304, 26, 16, None, False)},
        (2176, 8704, 4096, 4096), LlamaConfig(4096, 11008, 32, 32, 32), 32064, _IMAGE), DIT_SIZES),
    "tiny": Size(PrismaticConfig(
        {"dino": TowerConfig(224, 14, 32, 64, 1, 2, 4, True),
         "siglip": TowerConfig(224, 14, 48, 80, 1, 3, None, False)},
        (80, 160, 64, 64), LlamaConfig(64, 172, 3, 4, 4), 32064, _IMAGE),
        {name: DitConfig(2, 32, 4, cognition_size=64) for name in DIT_SIZES}),
}


def make_random(family: str, place: str | Path, size: str = "7b", *, seed: int = 0,
                listener: Listener = lambda stage, done, total: None) -> None:
    """Write a checkpoint; it appears whole or not at all.

    :param family: a name in ``FAMILIES``
    :param place: folder that does not exist yet
    :param size: a name in ``SIZES``
    :param seed: of the weights
    :param listener: told how many tensors are written
    :raises ConfigError: for a family or size that there is not
    :raises CheckpointError: when something is at the place already, or it cannot be written
    """
    if family not in FAMILIES or size not in SIZES:
        raise ConfigError(f"there is no random checkpoint '{family}' of size '{size}'; families are "
                          f"{', '.join(FAMILIES)}, sizes {', '.join(SIZES)}")
    place = Path(place)
    if place.exists():
        raise CheckpointError(f"'{place}' exists already; name another folder")
    try:
        with write_folder(place, replace=False) as draft:
            write_tokenizer(draft)
            FAMILIES[family](draft, SIZES[size], _Filler(seed, listener))
            for path in draft.rglob("*.safetensors"):
                path.chmod(0o644)  # as any file; safetensors makes them their owner's alone
            if size != "7b":  # whose sizes are known without
                _write_json(draft / "architecture.json", _describe_architecture(SIZES[size]))
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save has no narrower one
        raise CheckpointError(f"cannot write a checkpoint to '{place}': {error}") from error


class _Filler:
    # Values for tensors, by their names, and the count of those that are done; ``total`` is set before the first.
    def __init__(self, seed: int, listener: Listener) -> None:
        self._seed, self._listener = seed, listener
        self._done = self.total = 0

    def draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """bfloat16; weights keep the size of what they multiply."""
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ self._seed)
        values = torch.empty(shape).normal_(generator=generator)
        if name.endswith(_GAINS):
            values.mul_(0.1).add_(1.0)
        else:
            values.mul_(0.02 if len(shape) < 2 or "embed" in name else 1 / math.sqrt(math.prod(shape[1:])))
        self._done += 1
        self._listener("tensors written", self._done, self.total)
        return values.to(torch.bfloat16)


def _write_cogact(dit: str) -> Callable[[Path, Size, _Filler], None]:
    def write(folder: Path, size: Size, filler: _Filler) -> None:
        vlm, net = _vlm_shapes(size.vlm, NATIVE), _dit_shapes(size.dits[dit])
        tree: dict[str, Shapes] = {}
        for name, shape in vlm.items():
            part, _, rest = name.partition(".")
            tree.setdefault(part, {})[rest] = shape
        tree["action_model"] = net
        filler.total = len(vlm) + len(net)
        (folder / "checkpoints").mkdir()
        _write_pickle(folder / "checkpoints" / "step-000000-epoch-00-loss=0.0000.pt", {"model": tree}, filler)
        _write_json(folder / "config.json", {
            "vla": {"base_vlm": "prism-dinosiglip-224px+7b"}, "action_model_type": dit,
            "future_action_window_size": size.dits[dit].chunk_steps - 1, "past_action_window_size": 0,
            "action_dim": size.dits[dit].action_size, "use_ema": False})
        _write_json(folder / "dataset_statistics.json", {_DATASET: {"action": _statistics(size.dits[dit].action_size)}})

    return write


def _write_openvla(folder: Path, size: Size, filler: _Filler) -> None:
    vlm = _vlm_shapes(size.vlm, HF)
    filler.total = len(vlm)
    _write_shards(folder, vlm, filler)
    _write_hf_config(folder, size, {_DATASET: {"action": _statistics(7)}})


def _write_oft(folder: Path, size: Size, filler: _Filler) -> None:
    preset, width = PRESETS["libero"], size.vlm.decoder.hidden_size
    vlm, head = _vlm_shapes(size.vlm, HF), _shapes_of(ChunkHead, preset.action_dims, width, width)
    state = _shapes_of(TokenProjector, preset.proprio_dims, width)
    filler.total = len(head) + len(state) + len(vlm)
    _write_pickle(folder / "action_head--0_checkpoint.pt",
                  {f"module.{head_file_name(name)}": shape for name, shape in head.items()}, filler)
    _write_pickle(folder / "proprio_projector--0_checkpoint.pt",
                  {f"module.{name}": shape for name, shape in state.items()}, filler)
    _write_shards(folder, vlm, filler)
    _write_hf_config(folder, size, {_DATASET: {"action": _statistics(preset.action_dims),
                                               "proprio": _statistics(preset.proprio_dims)}})


FAMILIES: dict[str, Callable[[Path, Size, _Filler], None]] = {
    "openvla": _write_openvla, "openvla-oft": _write_oft, "cogact-small": _write_cogact("DiT-S"),
    "cogact-base": _write_cogact("DiT-B"), "cogact-large": _write_cogact("DiT-L")}


def _vlm_shapes(config: PrismaticConfig, layout: str) -> Shapes:
    # As published: with each tower's last block, its final norm and SigLIP's pooling, which inference does not read.
    towers = {name: replace(tower, num_blocks=tower.num_blocks + 1) for name, tower in config.towers.items()}
    shapes = _shapes_of(PrismaticVlm, replace(config, towers=towers))
    for name, tower in towers.items():
        width, inner = tower.hidden_size, tower.mlp_size
        extra: Shapes = {"norm.weight": (width,), "norm.bias": (width,)}
        if name == "siglip":
            linears = {"q": (width, width), "kv": (2 * width, width), "proj": (width, width), "mlp.fc1": (inner, width),
                       "mlp.fc2": (width, inner)}
            extra |= {"attn_pool.latent": (1, 1, width), "attn_pool.norm.weight": (width,),
                      "attn_pool.norm.bias": (width,)}
            extra |= {f"attn_pool.{key}.weight": shape for key, shape in linears.items()}
            extra |= {f"attn_pool.{key}.bias": shape[:1] for key, shape in linears.items()}
        shapes |= {f"vision.{name}.{key}": shape for key, shape in extra.items()}
    return {original_name(name, layout): shape for name, shape in shapes.items()}


def _dit_shapes(config: DitConfig) -> Shapes:
    width, actions = config.hidden_size, config.action_size
    extra: Shapes = {"z_embedder.uncondition": (1, config.cognition_size),
                     "history_embedder.linear.weight": (width, actions), "history_embedder.linear.bias": (width,)}
    return {f"net.{name}": shape for name, shape in {**_shapes_of(Dit, config), **extra}.items()}


def _shapes_of(build: Callable[..., nn.Module], *values: Any) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in build_empty(build, *values).state_dict().items()}


def _write_shards(folder: Path, shapes: Shapes, filler: _Filler) -> None:
    shards: list[list[str]] = [[]]
    room = SHARD_BYTES
    for name, shape in shapes.items():
        room -= 2 * math.prod(shape)
        if room < 0 and shards[-1]:
            shards.append([])
            room = SHARD_BYTES - 2 * math.prod(shape)
        shards[-1].append(name)
    placed: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: filler.draw(name, shapes[name]) for name in names}, folder / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(names, file)
    _write_json(folder / INDEX_FILE, {"metadata": {"total_size": sum(2 * math.prod(s) for s in shapes.values())},
                                      "weight_map": placed})


def _write_pickle(path: Path, tree: dict[str, Any], filler: _Filler) -> None:
    # The frame is written first, with room for tensors whose memory nobody ever touches; then they are filled one by
    # one where they lie. Checksums within the zip are those of the empty room; torch.load compares none.
    with torch.serialization.skip_data():
        torch.save(_map_tree(tree, lambda shape: torch.empty(shape, dtype=torch.bfloat16)), path)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)  # a disk that is full is found out here
    names = list(_leaves(tree, ()))
    filled = 0
    while filled < len(names):
        with _shared_maps():
            tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        size = 0
        while filled < len(names) and size < SHARD_BYTES:
            tensor = tensors
            for key in names[filled]:
                tensor = tensor[key]
            tensor.copy_(filler.draw(".".join(names[filled]), tuple(tensor.shape)))
            size, filled = size + tensor.nbytes, filled + 1


@contextmanager
def _shared_maps() -> Iterator[None]:
    before = torch.serialization.get_default_mmap_options() or mmap.MAP_PRIVATE
    torch.serialization.set_default_mmap_options(mmap.MAP_SHARED)
    try:
        yield
    finally:
        torch.serialization.set_default_mmap_options(before)


def _map_tree(tree: dict[str, Any], make: Callable[[tuple[int, ...]], Tensor]) -> dict[str, Any]:
    return {key: _map_tree(value, make) if isinstance(value, dict) else make(value) for key, value in tree.items()}


def _leaves(tree: dict[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        yield from _leaves(value, (*above, key)) if isinstance(value, dict) else [(*above, key)]


def _statistics(count: int) -> dict[str, Any]:
    return {"q01": [-0.05] * (count - 1) + [0.0], "q99": [0.05] * (count - 1) + [1.0],
            "min": [-0.1] * (count - 1) + [0.0], "max": [0.1] * (count - 1) + [1.0],
            "mask": [True] * (count - 1) + [False]}


def _write_hf_config(folder: Path, size: Size, statistics: dict[str, Any]) -> None:
    decoder = size.vlm.decoder
    _write_json(folder / "config.json", {
        "model_type": "openvla", "image_resize_strategy": "resize-naive", "image_sizes": [224, 224],
        "llm_backbone_id": "llama2-7b-pure", "n_action_bins": 256, "pad_to_multiple_of": 64,
        "text_config": {"model_type": "llama", "vocab_size": size.vlm.vocabulary_size,
                        "num_attention_heads": decoder.num_attention_heads}, "norm_stats": statistics})


def _describe_architecture(size: Size) -> dict[str, Any]:
    vlm = size.vlm
    return {"vision": {name: {"num_heads": tower.num_attention_heads, "img_size": tower.image_size}
                       for name, tower in vlm.towers.items()},
            "llm": {"heads": vlm.decoder.num_attention_heads},
            "dit": {"heads": next(iter(size.dits.values())).num_heads}}


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
