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

"""Random checkpoints are what a loader of the published ones takes, down to the number of weights."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from sqap_vla_ros.cli import main as cli
from sqap_vla_ros.cli import make_random as verb
from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.models import random_checkpoint
from sqap_vla_ros.models.key_maps import HF, NATIVE, translate_name
from sqap_vla_ros.models.llama_tokenizer import LlamaTokenizer
from sqap_vla_ros.models.oft_heads import ChunkHead
from sqap_vla_ros.models.proprio import TokenProjector
from sqap_vla_ros.models.random_checkpoint import FAMILIES, SIZES, make_random
from sqap_vla_ros.models.registry import describe_checkpoint, load_checkpoint

KINDS = {"openvla": "openvla", "openvla-oft": "openvla-oft", "cogact-small": "cogact", "cogact-base": "cogact",
         "cogact-large": "cogact"}


def count(shapes):
    return sum(map(math.prod, shapes.values()))


def test_full_size_has_as_many_weights_as_what_was_published():
    size = SIZES["7b"]
    hf, native = (random_checkpoint._vlm_shapes(size.vlm, layout) for layout in (HF, NATIVE))
    assert count(hf) == count(native) == 7_541_237_184
    assert count({name: shape for name, shape in hf.items() if ".featurizer." in name}) == 303_230_976
    assert count({name: shape for name, shape in native.items() if "siglip" in name}) == 427_680_704
    assert [count(random_checkpoint._dit_shapes(size.dits[name])) for name in ("DiT-S", "DiT-B", "DiT-L")] == [
        12_476_807, 88_986_887, 307_764_231]
    assert count(random_checkpoint._shapes_of(ChunkHead, 7, 4096, 4096)) == 151_117_831
    assert count(random_checkpoint._shapes_of(TokenProjector, 8, 4096)) == 16_818_176


@pytest.mark.parametrize("layout", [HF, NATIVE])
def test_names_are_the_originals(layout):
    names = random_checkpoint._vlm_shapes(SIZES["tiny"].vlm, layout)
    here = {translate_name(name, layout) for name in names}
    assert None not in here and len(here) == len(names)
    one = {HF: "vision_backbone.featurizer.blocks.0.ls1.scale_factor",
           NATIVE: "vision_backbone.dino_featurizer.blocks.0.ls1.gamma"}[layout]
    assert one in names
    last = {HF: "language_model.lm_head.weight", NATIVE: "llm_backbone.llm.lm_head.weight"}[layout]
    assert names[last] == (32064, 64)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_it_opens_and_loads_as_its_family(family, tmp_path):
    told = []
    make_random(family, tmp_path / "out", "tiny", listener=lambda *step: told.append(step))
    assert told == [("tensors written", done, len(told)) for done in range(1, len(told) + 1)]
    facts = describe_checkpoint(tmp_path / "out")
    assert facts.family == KINDS[family] and facts.artifact is None
    model = load_checkpoint(tmp_path / "out").model
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
    ids = model.tokenize("put spoon on plate")
    assert ids[:4] == [1, 512, 29901, 1724] and 29871 in ids
    again = tmp_path / "again"
    make_random(family, again, "tiny")
    other = load_checkpoint(again).model.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in model.state_dict().items())


def test_an_instruction_of_any_characters_is_read(tmp_path):
    make_random("openvla", tmp_path / "out", "tiny")
    tokenizer = LlamaTokenizer(tmp_path / "out")
    assert len(tokenizer.encode("pick up the red block")) == 20
    assert len(tokenizer.encode("Ünï 字")) > 20


def test_what_cannot_be_made_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no random checkpoint 'openvla' of size '1b'; families are openvla, "):
        make_random("openvla", tmp_path / "out", "1b")
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="out' exists already"):
        make_random("openvla", tmp_path / "out", "tiny")


def test_the_verb_writes_and_tells(tmp_path, capsys):
    assert tuple(FAMILIES) == verb.FAMILIES and tuple(SIZES) == verb.SIZES
    assert cli.main(["make-random", "cogact-small", str(tmp_path / "out"), "--size", "tiny", "--seed", "3"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["family"] == "cogact-small" and found["bytes"] == sum(
        path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert cli.main(["make-random", "cogact-small", str(tmp_path / "out"), "--size", "tiny"]) == 1


@pytest.mark.parametrize("family", ["openvla", "openvla-oft"])
@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_what_does_not_fit_is_found_before_any_weight_is_read(family, change, tmp_path):
    make_random(family, tmp_path / "out", "tiny")
    (path,) = (tmp_path / "out").glob("*.safetensors")
    tensors, name = load_file(path), "language_model.model.layers.2.mlp.up_proj.weight"
    if change == "missing":
        del tensors[name]
    else:
        extra = {"extra": "language_model.model.layers.2.mlp.up_proj.bias", "shape": name}[change]
        tensors[extra] = torch.zeros(3, dtype=torch.bfloat16)
    save_file(tensors, path)
    index = tmp_path / "out" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, path.name)}))
    with pytest.raises(CheckpointError, match=r"decoder\.layers\.2\.mlp\.up_proj|layers\.2\.mlp\.up_proj"):
        describe_checkpoint(tmp_path / "out")
