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

"""A compressed checkpoint there and back to the bit, and every way in which one can be unusable."""

import dataclasses
import hashlib
import json
import struct
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.models.demo import DemoVla
from sqap_vla_ros.models.registry import load_checkpoint, load_model, verify_checkpoint
from sqap_vla_ros.quantization import artifact as artifacts
from sqap_vla_ros.quantization.artifact import Origin, check_place
from sqap_vla_ros.quantization.artifact_writer import save_artifact
from sqap_vla_ros.quantization.quantize import RECIPES, W4A4, W4A8, W8A8, Recipe, WeightOnly4, quantize_
from sqap_vla_ros.quantization.recipe import MixedWidths
from sqap_vla_ros.quantization.rotation import RotationPlan
from sqap_vla_ros.quantization.stored_tensors import TensorWriter

ORIGIN = Origin("0.0.0", "somewhere/float", {"config.json": "aa", "model.safetensors": "bb"}, 6, "cc")
OTHERS = {
    "queries": W4A4(qk_bits=4), "queries-unrotated": W8A8(qk_bits=8, rotation=None),
    "groups": W4A8(group_size=64, weight_bits_by_pattern=(("*.o_proj", 8), ("*.1.mlp.down_proj", 16)), seed=5),
    "blocks": W4A4(rotation=RotationPlan(stream_block=32, down_block=64)),
    "float-tokens-in-groups": WeightOnly4(group_size=128),
    "some-mixed": MixedWidths(act_bits=8, measured_pairs=0, weight_bits_by_pattern=(("*.layers.1.*", 16),)),
}


def write(model: DemoVla, folder: Any, recipe: Recipe, report: Any, **more: Any) -> None:
    save_artifact(model, folder, "its-name", recipe, report, config=model.config.to_json(), origin=ORIGIN,
                  pruning={"rule": "sqap", "pruned_ratio": 0.4}, **more)


def outputs(tiny: Any, model: DemoVla) -> list[Tensor]:
    with torch.inference_mode():
        return [tiny.hidden(model), *(run() for run in tiny.calibration(model, 3))]


@pytest.fixture
def saved(build_tiny, tmp_path) -> Any:
    """A small W4A4 artifact: what was saved, and where."""
    tiny = build_tiny()
    report = quantize_(tiny.model, W4A4())
    write(tiny.model, tmp_path / "saved", W4A4(), report)
    return tiny, tmp_path / "saved"


@pytest.mark.parametrize("name", [*RECIPES, *OTHERS])
def test_loaded_model_is_the_saved_one_to_the_bit(build_tiny, tmp_path, name: str) -> None:
    tiny = build_tiny(hidden=128, intermediate=384)
    recipe = (RECIPES | OTHERS)[name]
    calibration = tiny.calibration(tiny.model, 3) if recipe.needs_calibration else ()
    report = quantize_(tiny.model, recipe, calibration=calibration)
    write(tiny.model, tmp_path / "out", recipe, report)
    loaded = load_checkpoint(tmp_path / "out")
    assert [torch.equal(*pair) for pair in zip(outputs(tiny, tiny.model), outputs(tiny, loaded.model), strict=True)] \
        == [True] * 4
    before, after = tiny.model.state_dict(), loaded.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert not any(module.training for module in loaded.model.modules())
    assert loaded.report == report
    assert loaded.artifact is not None
    assert loaded.artifact.recipe_name == "its-name" and loaded.artifact.origin == ORIGIN
    assert dataclasses.asdict(loaded.artifact.recipe) == dataclasses.asdict(recipe)
    assert loaded.artifact.pruning == {"rule": "sqap", "pruned_ratio": 0.4}
    stored = {key: entry.stored_bytes for key, entry in loaded.artifact.structure.linears.items()}
    assert stored == {key: entry.stored_bytes for key, entry in report.linears.items()}
    assert {key: entry.width for key, entry in loaded.artifact.structure.linears.items()} == report.replaced


@pytest.mark.parametrize("recipe", [W4A4(), MixedWidths(act_bits=4, measured_pairs=0)])
def test_engine_is_chosen_at_load_and_agrees(tiny, tmp_path, many_threads, recipe: Recipe) -> None:
    write(tiny.model, tmp_path / "out", recipe,
          quantize_(tiny.model, recipe, calibration=tiny.calibration(tiny.model, 1)))
    model = load_model(tmp_path / "out", engine="reference")
    engines = {module.engine.name for module in model.modules() if hasattr(module, "engine")}
    assert engines == {"reference"}
    assert torch.equal(tiny.hidden(model), tiny.hidden(tiny.model))
    with pytest.raises(ConfigError, match="unknown engine 'gpu'"):
        load_model(tmp_path / "out", engine="gpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float_parts_are_stored_as_asked_and_nothing_else_is_rounded(tiny, tmp_path, dtype: torch.dtype) -> None:
    report = quantize_(tiny.model, W4A4())
    write(tiny.model, tmp_path / "out", W4A4(), report, dtype=dtype)
    before, stored = tiny.model.state_dict(), load_file(tmp_path / "out/model.safetensors")
    quantized = tuple(f"{name}." for name in report.linears)
    assert {tensor.dtype for name, tensor in stored.items() if not name.startswith(quantized)} == {dtype}
    assert stored["decoder.layers.0.mlp.up_proj.weight_scale"].dtype == torch.float32
    after = load_model(tmp_path / "out").state_dict()
    for name, tensor in before.items():
        expected = tensor if name.startswith(quantized) else tensor.to(dtype).float()
        assert torch.equal(after[name], expected)


def test_no_other_file_is_needed_and_no_random_number_drawn(saved) -> None:
    _, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    before = torch.get_rng_state()
    load_model(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_written_is_the_same_each_time(saved, build_tiny, tmp_path) -> None:
    tiny, folder = build_tiny(), tmp_path / "again"
    write(tiny.model, folder, W4A4(), quantize_(tiny.model, W4A4()))
    for name in ("config.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (saved[1] / name).read_bytes()


def test_hashes_are_those_of_the_bytes(saved) -> None:
    values = json.loads((saved[1] / "config.json").read_text())
    tensors = load_file(saved[1] / "model.safetensors")
    listed = values["sqap"]["tensors"]
    assert listed.keys() == tensors.keys()
    for name in ("decoder.layers.1.mlp.down_proj.weight_packed", "head_fc2.bias"):
        assert listed[name]["sha256"] == hashlib.sha256(tensors[name].numpy().tobytes()).hexdigest()
    assert values["family"] == "demo" and values["action"]["high"] == [1.0] * 7
    assert values["sqap"]["rotation"]["seed"] == 0 and values["sqap"]["rotation"]["plan"]["down"] is True
    assert values["sqap"]["float"].keys() == saved[0].model.float_reasons().keys()


def header_of(whole: bytes) -> tuple[dict[str, Any], int]:
    length = struct.unpack("<Q", whole[:8])[0]
    return json.loads(whole[8:8 + length]), 8 + length


def test_flipped_bit_names_file_and_tensor(saved) -> None:
    path = saved[1] / "model.safetensors"
    whole = path.read_bytes()
    header, begin = header_of(whole)
    header.pop("__metadata__")
    for index, (name, entry) in enumerate(header.items()):
        place = begin + entry["data_offsets"][index % 2] - index % 2  # first and last bytes in turn
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << index % 8]) + whole[place + 1:])
        with pytest.raises(CheckpointError, match=rf"the tensor '{name}' in '.*model\.safetensors' is not as it was"):
            load_model(saved[1])
    assert len(header) > 60


def test_truncated_at_any_place_names_file_and_tensor(saved) -> None:
    path = saved[1] / "model.safetensors"
    whole = path.read_bytes()
    header, begin = header_of(whole)
    header.pop("__metadata__")
    for size in (0, 4, 20, begin - 1, begin, begin + 1, (begin + len(whole)) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        named = next(name for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"])
                     if begin + entry["data_offsets"][1] > size)
        words = rf"model\.safetensors' is cut short within the tensor '{named}'" if size >= begin else \
            r"header of '.*model\.safetensors' is damaged or cut short, so that no tensor, '\w[\w.]+' and all others"
        with pytest.raises(CheckpointError, match=words):
            load_model(saved[1])


def test_damaged_header_never_gives_a_model(saved) -> None:
    path = saved[1] / "model.safetensors"
    whole = path.read_bytes()
    begin = header_of(whole)[1]
    before = saved[0].hidden(saved[0].model)
    for place in range(0, begin, 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1:])
        try:
            model = load_model(saved[1])
        except CheckpointError as error:
            assert "model.safetensors" in str(error)
        else:  # only where nothing is said, such as the padding
            assert torch.equal(saved[0].hidden(model), before)


@pytest.mark.parametrize(("change", "words"), [
    (lambda tensors: tensors.pop("head_fc1.bias"), r"lacks the tensor 'head_fc1\.bias'"),
    (lambda tensors: tensors.update(x=torch.zeros(2)), "has the tensor 'x', of which"),
    (lambda tensors: tensors.update({"head_fc1.bias": torch.zeros(64)}), r"'head_fc1\.bias' .* hash, type or shape"),
    (lambda tensors: tensors.update({"head_fc1.bias": tensors["head_fc1.bias"].view(8, 8)}), r"'head_fc1\.bias'"),
    (lambda tensors: tensors.update({"head_fc1.bias": tensors["head_fc1.bias"].view(torch.int32)}), "'head_fc1.bias'"),
])
def test_tensors_of_another_checkpoint_are_named(saved, change: Any, words: str) -> None:
    tensors = load_file(saved[1] / "model.safetensors")
    change(tensors)
    save_file(tensors, saved[1] / "model.safetensors")
    with pytest.raises(CheckpointError, match=words):
        load_model(saved[1])


def change_config(folder: Any, change: Any, *, hashed: bool) -> None:
    values = json.loads((folder / "config.json").read_text())
    change(values)
    if hashed:
        values["sqap"]["sha256"] = artifacts.digest_config(values)
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("change", [
    lambda values: values["sqap"]["structure"]["linears"]["decoder.layers.0.mlp.up_proj"].update(act_clip_ratio=0.8),
    lambda values: values["sqap"]["structure"]["online"]["decoder.layers.0.mlp.down_online"][0].update(seed=7),
    lambda values: values["decoder"].update(rope_theta=20000.0), lambda values: values["sqap"].pop("sha256"),
    lambda values: values["quantization_config"].update(format="dense")])
def test_changed_configuration_is_found_out(saved, change: Any) -> None:
    change_config(saved[1], change, hashed=False)
    with pytest.raises(CheckpointError, match=r"config\.json' is not as it was written"):
        load_model(saved[1])


def test_layout_of_the_configuration_does_not_matter(saved) -> None:
    change_config(saved[1], lambda values: None, hashed=False)
    assert torch.equal(saved[0].hidden(load_model(saved[1])), saved[0].hidden(saved[0].model))


UP = "decoder.layers.0.mlp.up_proj"


@pytest.mark.parametrize(("change", "words"), [
    (lambda values: values["sqap"].update(format=2), "is of format 2, and this package reads 1"),
    (lambda values: values["sqap"].pop("origin"), "not usable: KeyError"),
    (lambda values: values["sqap"]["recipe"].update(colour=1), "not usable: TypeError"),
    (lambda values: values["sqap"]["structure"]["linears"][UP].update(shape=[64, 96]), rf"'{UP}' is .*\(64, 96\)"),
    (lambda values: values["sqap"]["structure"]["linears"].update(
        x=values["sqap"]["structure"]["linears"][UP]), "the model has none of that name"),
    (lambda values: values["sqap"]["structure"]["linears"].pop(UP), rf"tensor '{UP}\.weight' of .* is not listed"),
    (lambda values: values["sqap"]["structure"]["linears"][UP].update(weight_bits=8), rf"'{UP}\.weight_packed'"),
    (lambda values: values["sqap"]["structure"]["linears"][UP].update(weight_bits="4"), "not usable|cannot be built"),
    (lambda values: values["sqap"]["structure"]["norms"].update(x={"eps": 1.0, "bits": 4, "clip_ratio": 1.0}),
     "'x' is to be a rounding norm"),
    (lambda values: values["sqap"]["structure"]["online"].update(x=[{"bits": 4}]), "stands at 'x'"),
    (lambda values: values["sqap"]["structure"]["online"]["decoder.layers.0.mlp.down_online"][0].update(size=22),
     "cannot be built: no Hadamard matrix of size 22"),
    (lambda values: values["sqap"]["tensors"].pop("head_fc1.bias"), r"'head_fc1\.bias' of .* is not listed"),
    (lambda values: values["sqap"]["tensors"].update(x=values["sqap"]["tensors"]["head_fc1.bias"]), "'x' .* is extra"),
    (lambda values: values["sqap"]["tensors"]["head_fc1.bias"].update(dtype="I32"), r"'head_fc1\.bias' .* is I32"),
])
def test_sections_that_contradict_the_model(saved, change: Any, words: str) -> None:
    change_config(saved[1], change, hashed=True)
    for read in (load_model, verify_checkpoint):
        with pytest.raises(CheckpointError, match=words):
            read(saved[1])


def test_rows_of_other_widths_than_those_told_of(build_tiny, tmp_path) -> None:
    tiny, recipe = build_tiny(), MixedWidths(act_bits=8, measured_pairs=0)
    write(tiny.model, tmp_path / "out", recipe,
          quantize_(tiny.model, recipe, calibration=tiny.calibration(tiny.model, 1)))
    verify_checkpoint(tmp_path / "out")
    tensors, name = load_file(tmp_path / "out/model.safetensors"), f"{UP}.row_bits"
    tensors[name] = torch.full_like(tensors[name], 4)
    save_file(tensors, tmp_path / "out/model.safetensors")
    digest = hashlib.sha256(tensors[name].numpy().tobytes()).hexdigest()
    change_config(tmp_path / "out", lambda values: values["sqap"]["tensors"][name].update(sha256=digest), hashed=True)
    for read in (load_model, verify_checkpoint):
        with pytest.raises(CheckpointError, match="row_bits"):
            read(tmp_path / "out")


def test_section_that_is_no_object(saved) -> None:
    (saved[1] / "config.json").write_text(json.dumps({**saved[0].model.config.to_json(), "sqap": 3}))
    with pytest.raises(CheckpointError, match="must be an object, it is int"):
        load_model(saved[1])


def test_existing_folders_are_only_replaced_when_they_are_artifacts(saved, tmp_path) -> None:
    tiny, folder = saved
    report = load_checkpoint(folder).report
    with pytest.raises(CheckpointError, match="saved' exists already"):
        write(tiny.model, folder, W4A4(), report)
    write(tiny.model, folder, W4A4(seed=0), report, replace=True, dtype=torch.bfloat16)
    assert load_file(folder / "model.safetensors")["head_fc1.bias"].dtype == torch.bfloat16
    (folder / "diary.txt").write_text("dear diary")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for place in (folder, tmp_path / "file", tmp_path / "empty", tmp_path):
        with pytest.raises(CheckpointError, match="is not replaced; name another folder"):
            check_place(place, replace=True)
        with pytest.raises(CheckpointError, match="is not replaced; name another folder"):
            write(tiny.model, place, W4A4(), report, replace=True)
    with pytest.raises(CheckpointError, match=r"file/deep/out' cannot be made, since '.*file' is no folder"):
        check_place(tmp_path / "file/deep/out", replace=False)
    check_place(tmp_path / "deep/er/out", replace=False)
    assert (folder / "diary.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "saved"]


def test_failure_to_write_leaves_everything_as_it_was(saved, monkeypatch, tmp_path) -> None:
    def write_half(self: Any, name: str, tensor: Tensor) -> None:
        self._file.write(b"half")
        raise OSError("No space left on device")

    tiny, folder = saved
    report, before = load_checkpoint(folder).report, (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(TensorWriter, "add", write_half)
    for place, more in ((tmp_path / "new", {}), (folder, {"replace": True})):
        with pytest.raises(CheckpointError, match="No space left"):
            write(tiny.model, place, W4A4(), report, **more)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert (folder / "model.safetensors").read_bytes() == before


def test_what_cannot_be_stored_is_refused(tiny, tmp_path) -> None:
    report = quantize_(tiny.model, W4A4())
    with pytest.raises(CheckpointError, match=r"stored as torch\.int8; allowed"):
        write(tiny.model, tmp_path / "out", W4A4(), report, dtype=torch.int8)
    with torch.no_grad():
        tiny.model.head_fc1.bias[3] = 1e5
    with pytest.raises(CheckpointError, match=r"'head_fc1\.bias' has values that are not finite, as float16 cannot"):
        write(tiny.model, tmp_path / "out", W4A4(), report, dtype=torch.float16)
    with torch.no_grad():
        tiny.model.head_fc1.bias[3] = torch.nan
    with pytest.raises(CheckpointError, match=r"'head_fc1\.bias' has values that are not finite$"):
        write(tiny.model, tmp_path / "out", W4A4(), report)
    assert not list(tmp_path.iterdir())
