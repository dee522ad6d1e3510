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

"""CogACT's action transformer against its formulas and its published sizes."""

import numpy as np
import pytest
import torch

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.models.dit import SIZES, UNUSED_TENSORS, Dit, DitConfig, read_dit, read_sizes, time_features

TINY = DitConfig(depth=2, hidden_size=24, num_heads=3, chunk_steps=5, action_size=4, cognition_size=10)


def make_dit(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    dit = Dit(TINY).to(dtype).eval().requires_grad_(False)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # large enough that attention is far from uniform
    return dit


def to_weights(dit):
    return {name: tensor.numpy() for name, tensor in dit.state_dict().items()}


def normalize(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def predict_plainly(weights, actions, condition, heads):
    """The transformer for one chunk, (T, D) and (C,), token by token and head by head."""
    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = np.vstack((condition, linear("x_embedder.linear", actions))) + weights["positional_embedding"]
    width = x.shape[1]
    for block in range(TINY.depth):
        name = f"blocks.{block}"
        q, k, v = np.split(linear(f"{name}.attn.qkv", normalize(x)), 3, axis=1)
        out = np.zeros_like(x)
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            logits = np.exp(q[:, part] @ k[:, part].T / np.sqrt(width // heads))
            out[:, part] = logits / logits.sum(1, keepdims=True) @ v[:, part]
        x = x + linear(f"{name}.attn.proj", out)
        inner = linear(f"{name}.mlp.fc1", normalize(x))
        inner = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
        x = x + linear(f"{name}.mlp.fc2", inner)
    return linear("final_layer.linear", normalize(x))[1:]


def test_predictions_follow_the_formulas():
    dit = make_dit()
    actions, conditions = torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(3, 24, dtype=torch.float64)
    predicted = dit(actions, conditions).numpy()
    for row in range(3):
        expected = predict_plainly(to_weights(dit), actions[row].numpy(), conditions[row].numpy(), heads=3)
        np.testing.assert_allclose(predicted[row], expected, atol=1e-11)


def test_a_condition_is_time_plus_cognition():
    dit = make_dit()
    weights, cognition = to_weights(dit), torch.randn(2, 10, dtype=torch.float64)
    conditions = dit.embed_times(torch.tensor([90, 0, 7]))[:, None] + dit.embed_cognition(cognition)
    assert conditions.shape == (3, 2, 24)
    seen = cognition.numpy() @ weights["z_embedder.linear.weight"].T + weights["z_embedder.linear.bias"]
    for row, time in enumerate((90, 0, 7)):
        angles = time * 10000.0 ** (-np.arange(128) / 128)
        inner = np.concatenate((np.cos(angles), np.sin(angles))) @ weights["t_embedder.mlp.0.weight"].T
        inner = inner + weights["t_embedder.mlp.0.bias"]
        inner = inner / (1 + np.exp(-inner))
        when = weights["t_embedder.mlp.2.weight"] @ inner + weights["t_embedder.mlp.2.bias"]
        np.testing.assert_allclose(conditions[row].numpy(), when + seen, atol=2e-4)  # angles are float32


def test_time_is_told_by_cosines_then_sines():
    features = time_features(torch.tensor([0, 50]))
    assert features.dtype == torch.float32 and features.shape == (2, 256)
    assert torch.equal(features[0], torch.cat((torch.ones(128), torch.zeros(128))))
    np.testing.assert_allclose(features[1, [0, 64, 128, 192]], [np.cos(50), np.cos(0.5), np.sin(50), np.sin(0.5)],
                               atol=1e-5)


@pytest.mark.parametrize(("size", "published"), [
    ("DiT-S", 12_476_807), ("DiT-B", 88_986_887), ("DiT-L", 307_764_231)])
def test_sizes_are_the_published_ones(size, published):
    config = SIZES[size]
    with torch.device("meta"):
        dit = Dit(config)
    unused = 7 * config.hidden_size + config.hidden_size  # an embedding of past actions, of which there are none
    no_cognition = config.cognition_size
    assert sum(parameter.numel() for parameter in dit.parameters()) + unused + no_cognition == published
    assert read_sizes(dit.state_dict()) == config


def test_weights_are_read_as_they_are():
    source = make_dit(torch.bfloat16)
    tensors = dict(source.state_dict()) | {name: torch.zeros(1) for name in UNUSED_TENSORS}
    dit = read_dit(tensors, num_heads=3)
    assert dit.config == TINY
    for name, tensor in dit.state_dict().items():
        assert tensor.dtype == torch.bfloat16 and tensor.data_ptr() == tensors[name].data_ptr()


@pytest.mark.parametrize(("change", "named"), [
    ({"blocks.1.mlp.fc2.bias": None}, r"'action_model' lacks tensors: blocks\.1\.mlp\.fc2\.bias"),
    ({"positional_embedding": None}, "positional_embedding must have two dimensions, got nothing"),
    ({"x_embedder.linear.weight": torch.zeros(24)}, r"x_embedder\.linear\.weight must .* got shape \(24,\)"),
    ({"final_layer.linear.weight": torch.zeros(8, 24)}, r"final_layer\.linear\.weight with shape \(8, 24\).*\(4, 24\)"),
    ({"blocks.1.adaLN.weight": torch.zeros(2)}, r"'action_model' has unknown tensors: blocks\.1\.adaLN\.weight"),
    ({"blocks.last.mlp.fc1.bias": torch.zeros(2)}, r"has unknown tensors: blocks\.last")])
def test_unfit_weights_are_named(change, named):
    tensors = {name: tensor for name, tensor in {**make_dit().state_dict(), **change}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=named):
        read_dit(tensors, num_heads=3)


@pytest.mark.parametrize(("heads", "named"), [(None, "24 wide, .* only for 384, 768, 1024"), (5, "which 5 .* heads"),
                                              (0, "which 0 .* heads")])
def test_heads_that_cannot_be_are_refused(heads, named):
    with pytest.raises(CheckpointError, match=named):
        read_dit(make_dit().state_dict(), num_heads=heads)
