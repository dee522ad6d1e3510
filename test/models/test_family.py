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

"""Building without memory, and what the registry does with a family's published folders."""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.models import registry
from sqap_vla_ros.models.demo import DemoConfig, DemoVla
from sqap_vla_ros.models.dit import SIZES, Dit
from sqap_vla_ros.models.family import Family, Opened, build_empty, fill_module, without_draws
from sqap_vla_ros.models.oft_heads import ChunkHead
from sqap_vla_ros.models.own_format import save_model
from sqap_vla_ros.models.registry import describe_checkpoint, hash_checkpoint, load_checkpoint, load_model
from sqap_vla_ros.models.shards import open_safetensors
from sqap_vla_ros.models.vla import ModelSettings, VlaModel
from sqap_vla_ros.quantization.artifact import Origin
from sqap_vla_ros.quantization.artifact_writer import save_artifact
from sqap_vla_ros.quantization.quantize import W4A4, quantize_

WORDS_FILE = "words.json"


@dataclass(frozen=True)
class WordyConfig:
    """A demo model's configuration, whose words lie in a file of their own."""

    inner: DemoConfig

    def to_json(self):
        return {**self.inner.to_json(), "family": "wordy"}


class Wordy(DemoVla):
    """A demo model that was published in a layout of its own."""

    family = "wordy"

    def __init__(self, config, files):
        super().__init__(config.inner)
        self.config, self.words = config, tuple(json.loads(files[WORDS_FILE].read_text()))

    def choose(self, settings):
        if settings.robot:
            raise ConfigError(f"there is no robot {settings.robot!r}")
        super().choose(settings)


def open_wordy(folder: Path, values, settings):
    config = WordyConfig(DemoConfig.from_json(values["inner"]))
    tensors = open_safetensors(folder)

    def load_(model, dtype, wanted):
        model.load_state_dict({name: tensors.read(f"x.{name}").to(dtype) for name in model.state_dict()
                               if wanted(name)}, strict=False, assign=True)

    stored = {name.removeprefix("x."): tensors.stored(name) for name in tensors.names}
    words = folder / "words" / WORDS_FILE
    return Opened(config, load_, stored, (folder / "config.json", *tensors.paths, words), {WORDS_FILE: words})


@pytest.fixture
def folder(tiny_demo, tmp_path, monkeypatch):
    """A published folder of a family that is known only here."""
    family = Family(lambda values: WordyConfig(DemoConfig.from_json(values)), Wordy, (WORDS_FILE,),
                    lambda folder, values: values.get("model_type") == "wordy", open_wordy, settings=("robot",))
    monkeypatch.setitem(registry.FAMILIES, "wordy", family)
    place, model = tmp_path / "published", tiny_demo()
    (place / "words").mkdir(parents=True)
    (place / "config.json").write_text(json.dumps({"model_type": "wordy", "inner": model.config.to_json()}))
    (place / "words" / WORDS_FILE).write_text('["red", "blue"]')
    save_file({f"x.{name}": tensor.bfloat16() for name, tensor in model.state_dict().items()},
              place / "model.safetensors")
    return place


def test_a_published_folder_becomes_a_model(tiny_demo, folder):
    model = load_model(folder)
    assert isinstance(model, VlaModel) and not model.training
    assert (model.family, model.words) == ("wordy", ("red", "blue"))
    for name, tensor in tiny_demo().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.bfloat16().float())


def test_a_model_computes_in_the_type_that_is_asked_for(tiny_demo, folder, tmp_path):
    save_model(tiny_demo(), tmp_path / "own")
    for place in (folder, tmp_path / "own"):
        model = load_checkpoint(place, dtype=torch.bfloat16).model
        assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
    compress(folder, tmp_path / "out")
    model = load_checkpoint(tmp_path / "out", dtype=torch.bfloat16).model
    assert (model.head_fc1.weight.dtype, model.decoder.layers[0].mlp.up_proj.weight_scale.dtype) == (
        torch.bfloat16, torch.float32)
    sequence = model.build_sequence(torch.zeros(1, 64, 64, dtype=torch.bfloat16), model.tokenize("pick up the block"))
    with torch.inference_mode():
        assert model.decoder(sequence.embeddings, sequence.positions).dtype == torch.bfloat16


def test_settings_reach_the_model_and_may_be_refused(folder):
    model = load_checkpoint(folder, settings=ModelSettings(pictures="libero")).model
    assert model.pictures == "libero"
    for read in (load_checkpoint, partial(describe_checkpoint, chosen=True)):
        with pytest.raises(ConfigError, match="no robot 'dog'"):
            read(folder, settings=ModelSettings(robot="dog"))
    assert describe_checkpoint(folder, settings=ModelSettings(robot="dog")).model.pictures == "none"


@pytest.mark.parametrize("family", ["demo", "wordy", "openvla", "cogact", "openvla-oft"])
@pytest.mark.parametrize("setting", ["dataset", "robot"])
def test_a_setting_that_means_nothing_to_a_family_is_refused(tiny_demo, folder, tmp_path, monkeypatch, family, setting):
    takes = {"demo": (), "wordy": ("robot",), "openvla": ("dataset",), "cogact": ("dataset",),
             "openvla-oft": ("dataset", "robot")}[family]
    assert registry.FAMILIES[family].settings == takes
    save_model(tiny_demo(), tmp_path / "own")
    as_named = replace(registry.FAMILIES["demo"], settings=takes)
    monkeypatch.setitem(registry.FAMILIES, family, as_named)
    values = json.loads((tmp_path / "own" / "config.json").read_text())
    (tmp_path / "own" / "config.json").write_text(json.dumps({**values, "family": family}))
    settings = ModelSettings(**{setting: "dog"})
    for read in (load_checkpoint, describe_checkpoint):
        if setting in takes:
            read(tmp_path / "own", settings=settings)
            continue
        with pytest.raises(ConfigError) as caught:
            read(tmp_path / "own", settings=settings)
        assert str(caught.value) == (f"model.{setting} is 'dog', and '{tmp_path / 'own'}' holds a model of the family "
                                     f"'{family}', which has no use for it; leave model.{setting} empty")


def test_a_published_folder_is_described_and_hashed_without_its_weights(tiny_demo, folder, monkeypatch):
    monkeypatch.setattr("sqap_vla_ros.models.shards.TensorFiles.read", None)
    facts = describe_checkpoint(folder)
    assert (facts.family, facts.artifact) == ("wordy", None)
    assert facts.tensors == {name: ("BF16", tuple(tensor.shape)) for name, tensor in tiny_demo().state_dict().items()}
    names = {"config.json", "model.safetensors", "words/words.json"}
    assert facts.file_bytes == {name: (folder / name).stat().st_size for name in names}
    assert facts.companions == {WORDS_FILE: folder / "words/words.json"}
    told = []
    before = hash_checkpoint(folder, listener=lambda *step: told.append(step))
    assert before.keys() == names and told[-1] == ("hash files, MB", 1, 1)
    (folder / "words/words.json").write_text("[]")
    assert [name for name, value in hash_checkpoint(folder).items() if value != before[name]] == ["words/words.json"]


def compress(folder, place):
    model = load_model(folder)
    facts = describe_checkpoint(folder)
    save_artifact(model, place, "its-name", W4A4(), quantize_(model, W4A4()), config=model.config.to_json(),
                  origin=Origin("0.0.0", str(folder), hash_checkpoint(folder)), pruning={}, files=facts.companions)
    return model


def test_an_artifact_is_read_without_what_it_was_made_from(folder, tmp_path):
    before = compress(folder, tmp_path / "out")
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    after = load_checkpoint(tmp_path / "out")
    assert after.model.words == before.words and after.model.config == before.config
    assert sorted(after.artifact.files) == [WORDS_FILE]
    facts = describe_checkpoint(tmp_path / "out")
    assert facts.file_bytes == {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert facts.companions == {WORDS_FILE: tmp_path / "out" / WORDS_FILE}
    ids = before.tokenize("pick up the red block")
    sequence = before.build_sequence(torch.zeros(1, 64, 64), ids)
    with torch.inference_mode():
        outputs = [model.decoder(sequence.embeddings, sequence.positions) for model in (before, after.model)]
    assert torch.equal(*outputs)


def test_a_folder_without_a_file_that_the_family_needs_is_refused(folder, tmp_path):
    model = load_model(folder)
    save_artifact(model, tmp_path / "out", "its-name", W4A4(), quantize_(model, W4A4()),
                  config=model.config.to_json(), origin=Origin("0.0.0", "x", {}), pruning={})
    for place in (tmp_path / "out" / WORDS_FILE, None):
        with pytest.raises(CheckpointError, match=r"lacks 'words\.json', which a model of the family 'wordy'"):
            load_model(tmp_path / "out")
        if place is not None:  # one that happens to lie there is not taken for the model's
            place.write_text("[]")


def test_a_folder_that_no_family_recognizes_is_refused(folder):
    (folder / "config.json").write_text('{"model_type": "speech"}')
    with pytest.raises(CheckpointError, match=r"family None; known families are demo, .*wordy, .* no published"):
        load_model(folder)


def test_building_empty_draws_nothing_and_takes_no_memory():
    before = torch.get_rng_state()
    modules = build_empty(Dit, SIZES["DiT-L"]), build_empty(ChunkHead, 7, 4096, 4096), build_empty(nn.Linear, 3, 4)
    assert {parameter.device.type for module in modules for parameter in module.parameters()} == {"meta"}
    with without_draws():
        assert nn.Linear(3, 4).weight.device.type == "cpu"
    assert torch.equal(torch.get_rng_state(), before)


def test_a_module_is_filled_with_the_tensors_themselves():
    tensors = {"weight": torch.ones(4, 3, dtype=torch.bfloat16), "bias": torch.zeros(4)}
    linear = fill_module("a file", build_empty(nn.Linear, 3, 4), tensors)
    assert linear.weight.data_ptr() == tensors["weight"].data_ptr() and linear.weight.dtype == torch.bfloat16
    assert not linear.training and not linear.weight.requires_grad
    with pytest.raises(CheckpointError, match=r"'a file' has weight with shape \(4, 3\); .* must be \(4, 2\)"):
        fill_module("a file", build_empty(nn.Linear, 2, 4), tensors)
