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

"""The decoder against transformers, and what pruning inside it may and may not change."""

import pytest
import torch
import transformers

from sqap_vla_ros.models.llama import Choice, LlamaConfig, LlamaDecoder, PruneStep
from sqap_vla_ros.models.rope import rope_tables

LENGTH, VISUAL = 40, slice(3, 27)


def make_decoder(kv_heads=2, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(64, 160, 4, 4, kv_heads, rms_norm_eps=1e-5, rope_theta=5000.0)
    decoder = LlamaDecoder(config).to(dtype).eval()
    for name, parameter in decoder.named_parameters():
        # Large enough that attention is far from uniform and every gain matters.
        torch.nn.init.uniform_(parameter, 0.5, 1.5) if "norm" in name else torch.nn.init.normal_(parameter, std=0.15)
    return decoder.requires_grad_(False)


def make_reference(decoder):
    config = transformers.LlamaConfig(**vars(decoder.config), vocab_size=8, max_position_embeddings=512,
                                      rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
                                      attn_implementation="eager")
    reference = transformers.LlamaModel(config).eval()
    missing, unexpected = reference.load_state_dict(decoder.state_dict(), strict=False)
    assert missing == ["embed_tokens.weight"] and not unexpected
    return reference


def make_input(batch=2, dtype=torch.float32):
    torch.manual_seed(1)
    return torch.randn(batch, LENGTH, 64, dtype=dtype), torch.arange(LENGTH).expand(batch, -1)


def keep_of(count, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(VISUAL.stop - VISUAL.start, generator=generator)[:count].sort().values


def prune_at(layer, kept, seen=None):
    def select(scores, hidden):
        if seen is not None:
            seen.append((scores, hidden))
        return Choice(kept.expand(scores.shape[0], -1))
    return PruneStep(layer, VISUAL, select)


def biased(step, bias):
    return step._replace(select=lambda scores, hidden: step.select(scores, hidden)._replace(bias=bias))


def tables(decoder, positions, dtype=torch.float64):
    return rope_tables(positions, decoder.config.head_dim, decoder.config.rope_theta, dtype)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_hidden_states_equal_those_of_transformers(kv_heads):
    decoder = make_decoder(kv_heads)
    x, positions = make_input()
    shifted = positions * 3 + 7
    expected = make_reference(decoder)(inputs_embeds=x, position_ids=shifted).last_hidden_state
    torch.testing.assert_close(decoder(x, shifted), expected, atol=1e-5, rtol=1e-5)


def test_selection_sees_the_last_tokens_attention_and_the_hidden_states_in_front_of_the_layer():
    decoder = make_decoder()
    x, positions = make_input()
    expected = make_reference(decoder)(inputs_embeds=x, position_ids=positions, output_attentions=True,
                                       output_hidden_states=True)
    for layer in range(4):
        seen = []
        decoder(x, positions, prune=prune_at(layer, keep_of(5), seen))
        ((scores, hidden),) = seen
        assert scores.dtype == torch.float32
        attention = expected.attentions[layer][:, :, -1, VISUAL].mean(dim=1)
        torch.testing.assert_close(scores, attention, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(hidden, expected.hidden_states[layer][:, VISUAL], atol=1e-5, rtol=1e-5)


def test_an_explicit_causal_mask_changes_nothing():
    decoder = make_decoder(dtype=torch.float64)
    x, positions = make_input(dtype=torch.float64)
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[None, None]
    torch.testing.assert_close(decoder(x, positions, mask=causal), decoder(x, positions), atol=1e-12, rtol=1e-12)


def test_keeping_every_token_is_the_identity_to_the_bit():
    decoder = make_decoder()
    x, positions = make_input()
    plain = decoder(x, positions)
    every = torch.arange(VISUAL.stop - VISUAL.start)
    for layer in range(4):
        assert torch.equal(decoder(x, positions, prune=prune_at(layer, every)), plain)


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_dropping_tokens_equals_hiding_them(layer, dtype, tolerance):
    decoder = make_decoder(dtype=dtype)
    x, positions = make_input(dtype=dtype)
    kept = keep_of(9)
    pruned = decoder(x, positions, prune=prune_at(layer, kept))

    stays = torch.ones(LENGTH, dtype=torch.bool)
    stays[VISUAL] = False
    stays[kept + VISUAL.start] = True
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    # A hidden token still sees itself, so that its own row of the softmax is defined.
    hidden = causal & (stays[None] | torch.eye(LENGTH, dtype=torch.bool))
    reference = make_hidden_reference(decoder, x, positions, layer, causal[None, None], hidden[None, None])

    assert pruned.shape == (2, LENGTH - 24 + 9, 64)
    torch.testing.assert_close(pruned, reference[:, stays], atol=tolerance, rtol=tolerance)


def make_hidden_reference(decoder, x, positions, layer, before, after):
    rope = tables(decoder, positions, x.dtype)
    for index, block in enumerate(decoder.layers):
        x, *_ = block(x, rope, before if index <= layer else after)
    return decoder.norm(x)


def test_positions_matter_to_what_is_kept():
    # Renumbering the kept tokens, as a pruner that forgets positions would, is not the same computation.
    decoder = make_decoder(dtype=torch.float64)
    x, positions = make_input(dtype=torch.float64)
    kept = keep_of(9)
    right = decoder(x, positions, prune=prune_at(0, kept))
    stays = torch.cat((torch.arange(3), kept + 3, torch.arange(27, LENGTH)))
    first, *_ = decoder.layers[0](x, tables(decoder, positions), None)
    short = first[:, stays]
    renumbered = torch.arange(short.shape[1]).expand(2, -1)
    for block in list(decoder.layers)[1:]:
        short, *_ = block(short, tables(decoder, renumbered), None)
    assert (decoder.norm(short) - right).abs().max() > 1e-2


def test_each_of_a_batch_keeps_its_own():
    decoder = make_decoder()
    x, positions = make_input()
    choices = torch.stack((keep_of(9, seed=5), keep_of(9, seed=6)))
    both = decoder(x, positions, prune=PruneStep(1, VISUAL, lambda scores, hidden: Choice(choices)))
    for index in range(2):
        alone = decoder(x[index:index + 1], positions[:1], prune=prune_at(1, choices[index]))
        torch.testing.assert_close(both[index:index + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tail", [None, 1, 3])
@pytest.mark.parametrize("layer", [0, 2, 3])
def test_a_bias_is_added_to_the_keys_of_kept_tokens_in_the_layers_behind(layer, tail):
    decoder = make_decoder(2, dtype=torch.float64)
    x, positions = make_input(dtype=torch.float64)
    kept, bias = keep_of(9), torch.rand(2, 9)
    found = decoder(x, positions, prune=biased(prune_at(layer, kept), bias), tail=tail)
    stays = torch.ones(LENGTH, dtype=torch.bool)
    stays[VISUAL] = False
    stays[kept + VISUAL.start] = True
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    wide = torch.zeros(2, 1, 1, LENGTH, dtype=torch.float64)
    wide[..., kept + VISUAL.start] = bias[:, None, None].double()
    hidden = torch.where(causal & (stays[None] | torch.eye(LENGTH, dtype=torch.bool)), wide, float("-inf"))
    reference = make_hidden_reference(decoder, x, positions, layer, causal[None, None], hidden)[:, stays]
    torch.testing.assert_close(found, reference if tail is None else reference[:, -tail:], atol=1e-7, rtol=1e-7)


def count_rows(decoder):
    rows = []
    for block in decoder.layers:
        block.mlp.register_forward_hook(lambda _, args, out: rows.append(out.shape[1]))
    return rows


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_tokens_leave_before_the_rest_of_the_layer(layer, kv_heads):
    decoder = make_decoder(kv_heads, dtype=torch.float64)
    x, positions = make_input(dtype=torch.float64)
    inputs, seen = [], []
    for block in decoder.layers:
        block.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    rows = count_rows(decoder)
    decoder(x, positions, prune=prune_at(layer, keep_of(9), seen))
    assert torch.equal(seen[0][1], inputs[layer][:, VISUAL])
    assert rows == [LENGTH] * layer + [LENGTH - 24 + 9] * (4 - layer)


@pytest.mark.parametrize("tail", [1, 3, LENGTH - VISUAL.stop])
@pytest.mark.parametrize("prune", [None, 0, 2, 3])
def test_the_tail_alone_is_the_end_of_the_whole(prune, tail):
    decoder = make_decoder(dtype=torch.float64)
    x, positions = make_input(dtype=torch.float64)
    seen = []
    step = None if prune is None else prune_at(prune, keep_of(9), seen)
    whole = decoder(x, positions, prune=step)
    rows = count_rows(decoder)
    found = decoder(x, positions, prune=step, tail=tail)
    assert found.shape == (2, tail, 64)
    torch.testing.assert_close(found, whole[:, -tail:], atol=1e-12, rtol=1e-12)
    assert rows[-1] == tail
    if prune is not None:
        torch.testing.assert_close(seen[1][0], seen[0][0], atol=1e-7, rtol=1e-6)


def test_tokens_that_only_are_looked_at_are_looked_at():
    # Dropped tokens still give keys and values in the layer in which they leave.
    decoder = make_decoder(dtype=torch.float64)
    x, positions = make_input(dtype=torch.float64)
    kept = keep_of(9)
    dropped = sorted(set(range(24)) - set(kept.tolist()))
    step = prune_at(1, kept)
    before = decoder(x, positions, prune=step)
    x[:, VISUAL.start + dropped[0]] += 1.0
    assert (decoder(x, positions, prune=step)[:, -1] - before[:, -1]).abs().max() > 1e-3
