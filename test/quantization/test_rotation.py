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

"""Every rotation leaves the model's output as it was: float64, 1e-9 relative."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.models.llama import Choice, PruneStep
from sqap_vla_ros.quantization.hadamard import HadamardRotation
from sqap_vla_ros.quantization.rotation import Reader, RotationPlan, RotationSites, fold_norms_, rotate_

NOTHING = RotationPlan(stream=False, heads=False, down=False, queries_keys=False)
EACH = {
    "nothing": NOTHING,
    "stream": RotationPlan(heads=False, down=False, queries_keys=False),
    "heads": RotationPlan(stream=False, down=False, queries_keys=False),
    "down": RotationPlan(stream=False, heads=False, queries_keys=False),
    "queries_keys": RotationPlan(stream=False, heads=False, down=False),
    "all": RotationPlan(),
    "all in blocks": RotationPlan(stream_block=16, head_block=4, down_block=32),
}


def relative_error(reference: Tensor, other: Tensor) -> float:
    return float((reference - other).norm() / reference.norm())


@pytest.mark.parametrize("name", EACH)
def test_output_is_unchanged(tiny, name: str) -> None:
    model = tiny.model.double()
    before = tiny.hidden(model)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    rotate_(model.rotation_sites(), 11, EACH[name])
    assert relative_error(before, tiny.hidden(model)) < 1e-9
    changed = {key.rpartition(".")[0].rpartition(".")[2] for key, value in model.state_dict().items()
               if not torch.equal(value, weights[key])}
    folded = {"input_layernorm", "post_attention_layernorm", "norm", "q_proj", "k_proj", "v_proj", "gate_proj",
              "up_proj", "head_fc1"}
    assert changed == folded | {"stream": {"embed_tokens", "projector_fc2", "o_proj", "down_proj"},
                                "heads": {"o_proj"}, "down": {"down_proj"}}.get(name, set()) | (
        {"embed_tokens", "projector_fc2", "o_proj", "down_proj"} if name.startswith("all") else set())


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_shared_and_separate_keys_are_unchanged(build_tiny, kv_heads: int) -> None:
    tiny = build_tiny(hidden=48, intermediate=80, heads=4, kv_heads=kv_heads)
    model = tiny.model.double()
    before = tiny.hidden(model)
    rotate_(model.rotation_sites(), 0)
    assert relative_error(before, tiny.hidden(model)) < 1e-9


def test_one_missing_fold_is_noticed(tiny) -> None:
    model = tiny.model.double()
    before = tiny.hidden(model)
    sites = model.rotation_sites()
    rotate_(RotationSites(sites.stream_size, sites.embeddings, sites.writers[:-1], sites.readers, sites.attentions,
                          sites.mlps), 0)
    assert relative_error(before, tiny.hidden(model)) > 1e-2


def test_attention_scores_are_unchanged(tiny) -> None:
    model = tiny.model.double()
    scores: list[Tensor] = []

    def select(given: Tensor, _: Tensor) -> Choice:
        scores.append(given)
        return Choice(given.topk(5).indices.sort().values)

    prune = PruneStep(0, slice(1, 17), select)
    before = tiny.hidden(model, prune)
    rotate_(model.rotation_sites(), 2)
    assert relative_error(before, tiny.hidden(model, prune)) < 1e-9
    assert relative_error(scores[0], scores[1]) < 1e-6  # float32 by design


def test_float32_fold_stays_at_float32_precision(tiny) -> None:
    before = tiny.hidden(tiny.model)
    rotate_(tiny.model.rotation_sites(), 0)
    assert relative_error(before, tiny.hidden(tiny.model)) < 3e-6
    assert {parameter.dtype for parameter in tiny.model.parameters()} == {torch.float32}
    assert {buffer.dtype for buffer in tiny.model.buffers()} == {torch.float32}


def test_same_seed_gives_the_same_model(tiny) -> None:
    first, second, third = (copy.deepcopy(tiny.model) for _ in range(3))
    rotate_(first.rotation_sites(), 4)
    rotate_(second.rotation_sites(), 4)
    rotate_(third.rotation_sites(), 5)
    name = "decoder.layers.1.mlp.down_proj.weight"
    assert torch.equal(first.state_dict()[name], second.state_dict()[name])
    assert not torch.allclose(first.state_dict()[name], third.state_dict()[name])


def test_gains_become_one(tiny) -> None:
    model = tiny.model.double()
    before = tiny.hidden(model)
    sites = model.rotation_sites()
    fold_norms_(sites)
    assert all(bool((reader.norm.weight == 1).all()) for reader in sites.readers)
    assert relative_error(before, tiny.hidden(model)) < 1e-12


def test_online_sites_hold_the_rotations(tiny) -> None:
    rotate_(tiny.model.rotation_sites(), 0)
    layer = tiny.model.decoder.layers[0]
    assert isinstance(layer.mlp.down_online, HadamardRotation) and layer.mlp.down_online.size == 96
    assert isinstance(layer.self_attn.qk_online, HadamardRotation) and layer.self_attn.qk_online.size == 16


def test_size_without_construction_leaves_the_model_whole(build_tiny) -> None:
    tiny = build_tiny(hidden=64, intermediate=88)
    before = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    with pytest.raises(ConfigError, match="of size 88 is"):
        rotate_(tiny.model.rotation_sites(), 0)
    assert all(torch.equal(value, before[key]) for key, value in tiny.model.state_dict().items())
    output = tiny.hidden(tiny.model)
    rotate_(copy.deepcopy(tiny.model).rotation_sites(), 0, RotationPlan(down=False))
    rotate_(tiny.model.rotation_sites(), 0, RotationPlan(down_block=8))
    assert relative_error(output, tiny.hidden(tiny.model)) < 3e-6


def test_rotating_twice_is_refused(tiny) -> None:
    rotate_(tiny.model.rotation_sites(), 0)
    with pytest.raises(ConfigError, match="rotated already"):
        rotate_(tiny.model.rotation_sites(), 0)


def test_layer_norm_and_tied_weights_are_refused() -> None:
    reads, writes = nn.Linear(8, 8), nn.Linear(8, 8)
    with pytest.raises(ConfigError, match="LayerNorm is no RMSNorm"):
        rotate_(RotationSites(8, (), (writes,), (Reader(nn.LayerNorm(8), (reads,)),), (), ()), 0)
    gain = SimpleNamespace(weight=torch.ones(8))
    with pytest.raises(ConfigError, match="untie it"):
        rotate_(RotationSites(8, (reads.weight,), (writes,), (Reader(gain, (reads,)),), (), ()), 0)
    with pytest.raises(ConfigError, match="untie it"):
        rotate_(RotationSites(8, (), (writes,), (Reader(gain, (reads,)),), (), (), (reads,)), 0)


def test_who_reads_behind_no_norm_takes_the_rotation_and_no_gain() -> None:
    embedding = nn.Parameter(torch.randn(5, 8, dtype=torch.float64), requires_grad=False)
    behind, plain, writes = (nn.Linear(*sizes).double().requires_grad_(False) for sizes in ((8, 3), (8, 3), (2, 8)))
    gain = SimpleNamespace(weight=torch.rand(8, dtype=torch.float64) + 0.5)
    normed, read, before = behind(embedding * gain.weight), plain(embedding), embedding.clone()
    rotate_(RotationSites(8, (embedding,), (writes,), (Reader(gain, (behind,)),), (), (), (plain,)), 1)
    assert relative_error(before, embedding) > 0.1
    assert relative_error(read, plain(embedding)) < 1e-12 and relative_error(normed, behind(embedding)) < 1e-12
