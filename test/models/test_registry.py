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

"""Checkpoints there and back, and every way in which one can be unusable."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.models import own_format, registry
from sqap_vla_ros.models.own_format import save_model
from sqap_vla_ros.models.registry import load_model
from sqap_vla_ros.models.vla import VlaModel


@pytest.fixture
def folder(tiny_demo, tmp_path):
    save_model(tiny_demo(), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_config(folder, change):
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))


def test_round_trip_is_exact(tiny_demo, folder):
    model, loaded = tiny_demo(), load_model(folder)
    assert isinstance(loaded, VlaModel)
    assert loaded.config == model.config
    assert not loaded.training
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_stored_and_float32_computes(tiny_demo, tmp_path, dtype):
    model = tiny_demo()
    save_model(model, tmp_path, dtype=dtype)
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    loaded = load_model(str(tmp_path)).state_dict()
    for name, tensor in model.state_dict().items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], tensor.to(dtype).float())


def test_saving_again_replaces_and_leaves_nothing_else(tiny_demo, folder):
    save_model(tiny_demo(seed=1), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(load_model(folder).head_fc1.weight, tiny_demo(seed=1).head_fc1.weight)


def test_an_interrupted_save_leaves_the_old_checkpoint(tiny_demo, folder, monkeypatch):
    def write_half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(own_format, "save_file", write_half)
    with pytest.raises(CheckpointError, match="No space left"):
        save_model(tiny_demo(seed=1), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(load_model(folder).head_fc1.weight, tiny_demo().head_fc1.weight)


def test_a_file_appears_by_renaming(tiny_demo, folder, monkeypatch):
    def fail(draft, path):
        raise OSError("Read-only file system")

    monkeypatch.setattr(own_format.os, "replace", fail)
    with pytest.raises(CheckpointError, match="Read-only"):
        save_model(tiny_demo(seed=1), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(load_model(folder).head_fc1.weight, tiny_demo().head_fc1.weight)


def test_loading_draws_no_random_numbers(folder):
    before = torch.get_rng_state()
    load_model(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_packaged_names_resolve_to_the_assets():
    assert registry.checkpoint_folder("demo") == registry.ASSETS / "demo"
    assert registry.checkpoint_folder("elsewhere/demo").parts == ("elsewhere", "demo")


def test_missing_folder_and_files(folder):
    with pytest.raises(CheckpointError, match=r"no checkpoint folder at '.*nowhere'.*one of: demo"):
        load_model(folder / "nowhere")
    (folder / "model.safetensors").rename(folder / "other")
    with pytest.raises(CheckpointError, match=r"model.safetensors' is missing"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json' is missing"):
        load_model(folder)


@pytest.mark.parametrize(("text", "words"), [
    ("{", "not readable as JSON"), ("[1]", "holds list"), ("\xff", "not readable as JSON"),
    ('{"family": "rt1"}', "'rt1'; known families are demo"), ("{}", "None; known families are demo"),
    ('{"family": ["demo"]}', "known families are demo"), ('{"family": "demo"}', "not usable: 'action'")])
def test_unusable_configuration(folder, text, words):
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(folder)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(("section", "key", "value"), [
    ("decoder", "num_attention_heads", 0), ("decoder", "hidden_size", -64), ("decoder", "hidden_size", "wide"),
    ("vision", "patch_stride", 0), ("vision", "surprise", 1),
    ("vision", "stem_channels", -1), ("vision", "patch_size", 5), ("action", "low", 3)])
def test_configuration_that_cannot_be_built(folder, section, key, value):
    change_config(folder, lambda values: values[section].update({key: value}))
    with pytest.raises(CheckpointError, match=r"config.json"):
        load_model(folder)


def test_other_sizes_than_stored(folder):
    change_config(folder, lambda values: values["decoder"].update(intermediate_size=96))
    with pytest.raises(CheckpointError, match=r"mlp.\w+_proj.weight' in .* has shape .*config.json describes"):
        load_model(folder)


def test_truncated_at_any_place(folder):
    whole = (folder / "model.safetensors").read_bytes()
    for size in (0, 4, 20, 2000, len(whole) // 2, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"model.safetensors' is damaged or cut short"):
            load_model(folder)


def test_missing_and_extra_tensors(folder):
    change_tensors(folder, lambda tensors: tensors.pop("head_fc1.bias"))
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'head_fc1\.bias';"):
        load_model(folder)
    change_tensors(folder, lambda tensors: tensors.update({"head_fc1.bias": torch.zeros(64), "x": torch.zeros(1),
                                                           "y": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="does not know, the tensor 'x' and 1 more"):
        load_model(folder)


@pytest.mark.parametrize(("tensor", "words"), [
    (torch.zeros(65), r"has shape \(65,\); config.json describes \(64,\)"),
    (torch.zeros(64, dtype=torch.int8), "is torch.int8; allowed"), (torch.full((64,), torch.nan), "not finite")])
def test_wrong_tensors_are_named(folder, tensor, words):
    change_tensors(folder, lambda tensors: tensors.update({"head_fc1.bias": tensor}))
    with pytest.raises(CheckpointError, match=r"'head_fc1\.bias'.*" + words):
        load_model(folder)


def test_saving_into_a_file_is_refused(tiny_demo, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write a checkpoint to"):
        save_model(tiny_demo(), tmp_path / "file")


def test_float_checkpoint_tells_of_no_compression(tiny_demo, folder):
    checkpoint, facts = registry.load_checkpoint(folder), registry.describe_checkpoint(folder)
    assert (checkpoint.artifact, checkpoint.report, facts.artifact) == (None, None, None)
    assert facts.tensors == {name: ("F32", tuple(tensor.shape)) for name, tensor in tiny_demo().state_dict().items()}
    assert facts.file_bytes == {path.name: path.stat().st_size for path in folder.iterdir()}


def test_hash_is_of_the_files(folder):
    before = registry.hash_checkpoint(folder)
    assert before.keys() == {"config.json", "model.safetensors"}
    change_config(folder, lambda values: values.update(family="demo "))
    after = registry.hash_checkpoint(folder)
    assert [after[name] == before[name] for name in before] == [False, True]
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors' cannot be read"):
        registry.hash_checkpoint(folder)


def test_vocabulary_decides_the_embedding(tiny_demo, tmp_path):
    model = tiny_demo()
    model.config = dataclasses.replace(model.config, vocabulary=(*model.config.vocabulary, "tray"))
    save_model(model, tmp_path)
    with pytest.raises(CheckpointError, match=r"'embed_tokens.weight'.*\(8, 64\); config.json describes \(9, 64\)"):
        load_model(tmp_path)
