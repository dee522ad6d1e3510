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

"""A model that comes and goes part by part becomes what it becomes in memory."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.models.demo import DemoVla
from sqap_vla_ros.models.own_format import load_own_, save_model
from sqap_vla_ros.models.registry import describe_checkpoint, verify_checkpoint
from sqap_vla_ros.quantization.artifact import Origin
from sqap_vla_ros.quantization.artifact_writer import save_artifact, write_artifact
from sqap_vla_ros.quantization.parts import Part, forget_, split_parts
from sqap_vla_ros.quantization.quantize import RECIPES, W4A8, quantize_, works_in_parts
from sqap_vla_ros.quantization.stored_tensors import TensorWriter

ABOUT: dict[str, Any] = {"origin": Origin("0.0.0", "float", {}), "pruning": {}}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums of floats come out the same each time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Pages:
    """Reads parts of a folder, writes them away, and looks at what is there meanwhile."""

    def __init__(self, source: Any, writer: Any) -> None:
        self.source, self.writer = source, writer
        self.present: list[list[str]] = []

    def bring_(self, part: Part) -> None:
        self.source.load_(part.holds)
        state = self.source.model.state_dict()
        self.present.append(sorted({".".join(name.split(".")[:3]) for name, tensor in state.items()
                                    if name.startswith("decoder.layers.") and not tensor.is_meta}))

    def put_away_(self, part: Part) -> None:
        self.writer.add(part.holds)
        forget_(self.source.model, part)
        assert all(tensor.is_meta for module in part.modules for tensor in module.parameters(recurse=False))


@pytest.mark.parametrize("name", [*RECIPES, "groups"])
def test_what_is_written_is_the_same_and_one_block_at_a_time_is_there(build_tiny, tmp_path, one_thread,
                                                                                  name: str) -> None:
    tiny = build_tiny(hidden=128, intermediate=384)
    recipe = {**RECIPES, "groups": W4A8(group_size=64, weight_bits_by_pattern=(("*.1.mlp.down_proj", 16),))}[name]
    save_model(tiny.model, tmp_path / "float")
    calibration = tiny.calibration(tiny.model, 3) if recipe.needs_calibration else ()
    report = quantize_(tiny.model, recipe, calibration=calibration)
    save_artifact(tiny.model, tmp_path / "whole", "r", recipe, report, config=tiny.model.config.to_json(), **ABOUT)
    source = describe_checkpoint(tmp_path / "float")
    calibration = tiny.calibration(source.model, 3) if recipe.needs_calibration else ()
    with write_artifact(source.model, tmp_path / "parts") as writer:
        pages = Pages(source, writer)
        told = quantize_(source.model, recipe, calibration=calibration, store=pages)
        writer.finish("r", recipe, told, config=source.model.config.to_json(), files={}, **ABOUT)
    first, second = "decoder.layers.0", "decoder.layers.1"
    assert pages.present == ([[], [first], [second]] if works_in_parts(recipe) else
                             [[], [first], [first, second]])
    assert all(tensor.is_meta for tensor in source.model.state_dict().values())
    whole, parts = (json.loads((tmp_path / place / "config.json").read_text()) for place in ("whole", "parts"))
    tensors = load_file(tmp_path / "parts" / "model.safetensors")
    for key, tensor in load_file(tmp_path / "whole" / "model.safetensors").items():
        assert torch.equal(tensor, tensors[key]), key
    assert whole == parts
    assert dataclasses.asdict(told) == dataclasses.asdict(report)
    verify_checkpoint(tmp_path / "parts")


def test_every_tensor_is_of_one_part(tiny) -> None:
    parts = split_parts(tiny.model, tiny.model.blocks())
    assert len(parts) == 3
    for name in tiny.model.state_dict():
        assert sum(part.holds(name) for part in parts) == 1
    modules = [module for part in parts for module in part.modules]
    assert len(modules) == len(set(modules)) == len(list(tiny.model.modules()))


def test_a_part_is_read_without_the_others(tiny, tmp_path) -> None:
    save_model(tiny.model, tmp_path)
    with torch.device("meta"):
        model = DemoVla(tiny.model.config)
    load_own_(model, tmp_path / "model.safetensors", torch.float32, lambda name: name.startswith("decoder.layers.1."))
    there = {name for name, tensor in model.state_dict().items() if not tensor.is_meta}
    assert there == {name for name in tiny.model.state_dict() if name.startswith("decoder.layers.1.")}
    assert all(torch.equal(model.state_dict()[name], tiny.model.state_dict()[name]) for name in there)


def test_a_changed_bit_is_found_when_it_is_verified(tiny, tmp_path) -> None:
    report = quantize_(tiny.model, RECIPES["w4a4-rtn"])
    save_artifact(tiny.model, tmp_path / "out", "r", RECIPES["w4a4-rtn"], report, config=tiny.model.config.to_json(),
                  **ABOUT)
    steps: list[tuple[str, int, int]] = []
    verify_checkpoint(tmp_path / "out", lambda *step: steps.append(step))
    assert steps[-1][1] == steps[-1][2] == len(load_file(tmp_path / "out" / "model.safetensors"))
    path = tmp_path / "out" / "model.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-5] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="is not as it was written"):
        verify_checkpoint(tmp_path / "out")
    save_model(tiny.model.float(), tmp_path / "float")
    with pytest.raises(CheckpointError, match="is no compressed checkpoint"):
        verify_checkpoint(tmp_path / "float")


def test_tensors_of_any_size_lie_where_they_can_be_read(tmp_path) -> None:
    tensors = {"a": torch.randn(3).to(torch.bfloat16), "b": torch.randn(7), "c": torch.arange(5),
               "d": torch.arange(9, dtype=torch.uint8), "e": torch.randn(2, 4).to(torch.float16), "f": torch.randn(())}
    with (tmp_path / "x").open("wb") as file:
        writer = TensorWriter(file, 1000, {"format": "pt"})
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        assert writer.finish().keys() == tensors.keys()
    whole = (tmp_path / "x").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:8 + length])
    begins = {name: 8 + length + header[name]["data_offsets"][0] for name in tensors}
    assert all(begins[name] % tensor.itemsize == 0 for name, tensor in tensors.items())
    found = load_file(tmp_path / "x")
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
               for name, tensor in tensors.items())
    with (tmp_path / "y").open("wb") as file:
        writer = TensorWriter(file, 1, {})
        writer.add("a-long-name" * 30, torch.zeros(4))
        with pytest.raises(ValueError, match="the header takes"):
            writer.finish()
