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

"""A float checkpoint in, a compressed one out, and what is refused before any work is done."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.models import registry
from sqap_vla_ros.models.own_format import save_model
from sqap_vla_ros.models.random_checkpoint import make_random
from sqap_vla_ros.models.registry import describe_checkpoint, hash_checkpoint, load_checkpoint, load_model
from sqap_vla_ros.policy import compression
from sqap_vla_ros.policy.compression import compress_checkpoint, find_observations
from sqap_vla_ros.policy.observations import hash_observations, read_observations, write_observations

TEXT = "pick up the red block"


@pytest.fixture
def source(tiny_demo, tmp_path):
    """A float checkpoint in bfloat16."""
    save_model(tiny_demo(), tmp_path / "float", dtype=torch.bfloat16)
    return tmp_path / "float"


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    write_observations(tmp_path / "pictures", [(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8), TEXT)] * 2)
    return tmp_path / "pictures"


def test_what_comes_out_says_where_it_comes_from(source, pictures, tmp_path):
    told = []
    done = compress_checkpoint(source, tmp_path / "out", "w4a4", observations=pictures, seed=3,
                               listener=lambda *step: told.append(step))
    loaded = load_checkpoint(tmp_path / "out")
    assert loaded.report == done.report and done.seconds > 0.0
    count = len(load_file(tmp_path / "out" / "model.safetensors"))
    assert told == [*[("hash files, MB", 1, 1)] * 2, *(("linears rounded", done, 21) for done in range(1, 22)),
                    *(("tensors read back", done, count) for done in range(1, count + 1))]
    artifact = loaded.artifact
    assert (artifact.recipe_name, artifact.recipe.seed, artifact.recipe.rounding) == ("w4a4", 3, "gptq")
    assert artifact.origin.checkpoint == str(source) and artifact.origin.sha256 == hash_checkpoint(source)
    assert artifact.origin.sha256["model.safetensors"] == hashlib.sha256(
        (source / "model.safetensors").read_bytes()).hexdigest()
    assert (artifact.origin.observations, artifact.origin.observations_sha256) == (
        2, hash_observations(read_observations(pictures)))
    assert artifact.pruning["rule"] == "sqap" and artifact.float_reasons == loaded.model.float_reasons()
    assert done.file_bytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert done.source_bytes == sum(path.stat().st_size for path in source.iterdir())
    assert describe_checkpoint(tmp_path / "out").artifact == artifact


def test_recipe_without_need_sees_no_observations(source, pictures, tmp_path):
    compress_checkpoint(source, tmp_path / "out", "w8a8", observations=pictures)
    assert load_checkpoint(tmp_path / "out").artifact.origin.observations == 0


@pytest.mark.parametrize(("dtype", "stored"), [(None, torch.bfloat16), ("float32", torch.float32),
                                               ("float16", torch.float16)])
def test_float_parts_keep_the_type_of_the_source(source, tmp_path, dtype, stored):
    compress_checkpoint(source, tmp_path / "out", "w4a4-rtn", dtype=dtype)
    assert load_file(tmp_path / "out/model.safetensors")["vision.norm.weight"].dtype == stored


def test_of_several_types_each_tensor_keeps_its_own(source, tmp_path):
    tensors = load_file(source / "model.safetensors")
    large = torch.full_like(tensors["head_fc1.bias"], 1e5, dtype=torch.float32) + 1 / 64
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    save_file(halves | {"head_fc1.bias": large}, source / "model.safetensors")
    compress_checkpoint(source, tmp_path / "out", "w4a4-rtn")
    stored = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(stored["head_fc1.bias"], large)
    assert stored["vision.norm.weight"].dtype == stored["embed_tokens.weight"].dtype == torch.float16


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_what_computes_in_float32_in_any_case_is_stored_so(tmp_path, dtype):
    make_random("cogact-base", tmp_path / "float", "tiny")
    compress_checkpoint(tmp_path / "float", tmp_path / "out", "w4a4-rtn", dtype=dtype)
    stored, half = load_file(tmp_path / "out/model.safetensors"), {None: "bfloat16"}.get(dtype, dtype)
    head = {name: tensor for name, tensor in stored.items() if name.startswith("action_model.")}
    assert len(head) > 20 and {tensor.dtype for tensor in head.values()} == {torch.float32}
    assert stored["embed_tokens.weight"].dtype == stored["vision.dino.pos_embed"].dtype == getattr(torch, half)
    loaded = load_checkpoint(tmp_path / "out", dtype=torch.bfloat16).model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in head.items())


def test_one_side_file_in_float32_doubles_nothing(tmp_path):
    make_random("openvla-oft", tmp_path / "float", "tiny")
    side = tmp_path / "float" / "proprio_projector--0_checkpoint.pt"
    torch.save({name: tensor.float() for name, tensor in torch.load(side).items()}, side)
    compress_checkpoint(tmp_path / "float", tmp_path / "out", "w4a4-rtn")
    stored = load_file(tmp_path / "out/model.safetensors")
    assert stored["proprio.fc1.weight"].dtype == stored["unfold.weight"].dtype == torch.float32
    assert stored["head.fc_in.weight"].dtype == stored["embed_tokens.weight"].dtype == torch.bfloat16


def test_a_source_is_opened_once(source, tmp_path, monkeypatch):
    opened, find = [], registry._find
    monkeypatch.setattr(registry, "_find",
                        lambda folder, settings: opened.append(str(folder)) or find(folder, settings))
    compress_checkpoint(source, tmp_path / "out", "w4a4-rtn")
    assert opened.count(str(source)) == 1


def test_what_cannot_be_read_is_not_told_of_as_what_cannot_be_written(source, tmp_path, monkeypatch):
    def fail(*parts):
        raise OSError("Input/output error")

    monkeypatch.setattr(registry, "load_own_", fail)
    with pytest.raises(CheckpointError) as caught:
        compress_checkpoint(source, tmp_path / "out", "w4a4-rtn")
    assert str(caught.value) == f"what is compressed to '{tmp_path / 'out'}' cannot be read: Input/output error"
    assert not (tmp_path / "out").exists()


def test_what_rotation_leaves_alone_is_not_rounded_again(source, tmp_path):
    compress_checkpoint(source, tmp_path / "out", "w4a4-rtn")
    before, after = load_model(source).state_dict(), load_model(tmp_path / "out").state_dict()
    for name in ("vision.norm.weight", "projector_fc1.weight", "head_fc2.weight", "head_fc2.bias"):
        assert torch.equal(before[name], after[name])


def test_engine_does_not_change_what_is_written(source, pictures, tmp_path):
    for engine in ("cpu", "reference"):
        compress_checkpoint(source, tmp_path / engine, "w4a4", observations=pictures, engine=engine)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "cpu" / name).read_bytes() == (tmp_path / "reference" / name).read_bytes()


def test_refusals_come_before_the_work(source, pictures, tmp_path, monkeypatch):
    compress_checkpoint(source, tmp_path / "done", "w4a4-rtn")
    monkeypatch.setattr(compression, "hash_sources", None)
    for error, words, arguments, more in (
            (ConfigError, "unknown recipe 'w3a3'; known are w4a4", (source, tmp_path / "out", "w3a3"), {}),
            (CheckpointError, "done' exists already", (source, tmp_path / "done", "w4a4-rtn"), {}),
            (CheckpointError, "is no compressed checkpoint, or holds other files",
             (source, source, "w4a4-rtn"), {"replace_old": True}),
            (CheckpointError, "no checkpoint folder", (tmp_path / "nowhere", tmp_path / "out", "w4a4-rtn"), {}),
            (ConfigError, "compressed already, with the recipe 'w4a4-rtn'; compress what it was made from, '.*float'",
             (tmp_path / "done", tmp_path / "out", "w4a4-rtn"), {}),
            (ConfigError, r"'w4a4' \(rounding 'gptq'\) must see observations, .* take a recipe that needs none: "
             "w4a4-rtn, w4a4-rtn-plain, w4a8-rtn, w8a8, w4a16$", (source, tmp_path / "out", "w4a4"), {}),
            (ConfigError, "observations.jsonl' is missing", (source, tmp_path / "out", "qvla-4bit"),
             {"observations": tmp_path})):
        with pytest.raises(error, match=words):
            compress_checkpoint(*arguments, **more)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["done", "float", "pictures"]


def test_replacing_leaves_the_new_one(source, tmp_path):
    for recipe in ("w4a4-rtn", "w8a8"):
        compress_checkpoint(source, tmp_path / "out", recipe, replace_old=True)
        assert load_checkpoint(tmp_path / "out").artifact.recipe_name == recipe


def test_only_packaged_checkpoints_bring_observations(pictures, tmp_path, source):
    pictures.rename(source / "calibration")
    assert find_observations(source) == []
    assert len(find_observations(source, source / "calibration")) == 2


def test_facts_are_read_from_the_header_alone(source, tmp_path):
    compress_checkpoint(source, tmp_path / "out", "w4a4-rtn")
    facts = describe_checkpoint(tmp_path / "out")
    assert facts.tensors.keys() == facts.artifact.tensors.keys()
    assert all((entry.dtype, entry.shape) == facts.tensors[name] for name, entry in facts.artifact.tensors.items())
    assert facts.family == "demo" and facts.model.config == load_model(source).config
    assert all(tensor.is_meta for tensor in facts.model.state_dict().values())
    (tmp_path / "out/model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors' is damaged or cut short, so that no tensor can"):
        describe_checkpoint(tmp_path / "out")
    (tmp_path / "out/config.json").write_text(json.dumps({"family": "demo"}))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        describe_checkpoint(tmp_path / "out")
