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

"""Tokens behind a prefill against one long prefill, and attention that is not causal against a mask of ones."""

import pytest
import torch
from torch import nn

from sqap_vla_ros import fused_rows
from sqap_vla_ros.models.attention import KeyValues
from sqap_vla_ros.models.llama import Choice, LlamaConfig, LlamaDecoder, PruneStep
from sqap_vla_ros.models.rope import apply_rope, rope_tables
from sqap_vla_ros.quantization.hadamard import HadamardRotation
from sqap_vla_ros.quantization.integer import quantize_normalized
from sqap_vla_ros.quantization.kernels import get_engine
from sqap_vla_ros.quantization.linear import QuantLinear, QuantRMSNorm, RoundedQueries

LENGTH, STEPS, VISUAL = 22, 6, slice(3, 15)
WHOLE = LENGTH + STEPS
KEPT = torch.tensor([1, 4, 5, 9])
CLOSE = {"atol": 1e-12, "rtol": 1e-12}


def make_decoder(kv_heads=2, dtype=torch.float64, online=None):
    torch.manual_seed(0)
    decoder = LlamaDecoder(LlamaConfig(64, 96, 3, 4, kv_heads)).to(dtype).eval().requires_grad_(False)
    for name, parameter in decoder.named_parameters():
        nn.init.uniform_(parameter, 0.5, 1.5) if "norm" in name else nn.init.normal_(parameter, std=0.15)
    for index, layer in enumerate(decoder.blocks if online else []):
        layer.self_attn.qk_online = online(index)
    return decoder


def make_input(dtype=torch.float64, batch=2):
    torch.manual_seed(1)
    return torch.randn(batch, WHOLE, 64, dtype=dtype), (3 * torch.arange(WHOLE) + 7).expand(batch, -1)


def prune_at(layer, bias=None, watchers=1, seen=None):
    def select(scores, hidden):
        if seen is not None:
            seen.append(scores)
        return Choice(KEPT.expand(len(scores), -1), bias)
    return PruneStep(layer, VISUAL, select, watchers)


def decode(decoder, x, positions, **prefill):
    """Prefill, then one token at a time; the states of all, and the cache."""
    cache = decoder.empty_cache()
    states = [decoder(x[:, :LENGTH], positions[:, :LENGTH], cache=cache, **prefill)]
    for place in range(LENGTH, WHOLE):
        states.append(decoder(x[:, place:place + 1], positions[:, place:place + 1], cache=cache))
    return torch.cat(states, dim=1), cache


def run_masked(decoder, x, positions, masks):
    rope = rope_tables(positions, decoder.config.head_dim, decoder.config.rope_theta, x.dtype)
    for block, mask in zip(decoder.blocks, masks, strict=True):
        x, _ = block(x, rope, mask)
    return decoder.norm(x)


def find_stays(length):
    stays = torch.ones(length, dtype=torch.bool)
    stays[VISUAL] = False
    stays[KEPT + VISUAL.start] = True
    return stays


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("online", [None, lambda layer: HadamardRotation(16, layer, dtype=torch.float64)])
def test_steps_behind_a_prefill_are_one_long_prefill(kv_heads, online):
    decoder = make_decoder(kv_heads, online=online)
    x, positions = make_input()
    found, cache = decode(decoder, x, positions)
    torch.testing.assert_close(found, decoder(x, positions), **CLOSE)
    assert [part.keys.shape for part in cache] == [(2, kv_heads, WHOLE, 16)] * 3
    last, _ = decode(decoder, x, positions, tail=1)
    torch.testing.assert_close(last, found[:, LENGTH - 1:], **CLOSE)


def test_what_is_cached_stays_as_it_was():
    decoder = make_decoder()
    x, positions = make_input()
    cache = decoder.empty_cache()
    first = decoder(x[:, :LENGTH], positions[:, :LENGTH], cache=cache)
    assert torch.equal(first, decoder(x[:, :LENGTH], positions[:, :LENGTH]))
    before = [(part.keys, part.values) for part in cache]
    decoder(x[:, LENGTH:LENGTH + 1], positions[:, LENGTH:LENGTH + 1], cache=cache)
    for part, (keys, values) in zip(cache, before, strict=True):
        assert part.length == LENGTH + 1 and part.bias is None
        assert torch.equal(part.keys[:, :, :LENGTH], keys) and torch.equal(part.values[:, :, :LENGTH], values)


@pytest.mark.parametrize("tail", [None, 2])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_steps_see_what_stayed_with_its_bias(layer, with_bias, tail):
    decoder = make_decoder()
    x, positions = make_input()
    bias = torch.rand(2, len(KEPT)) * 3 if with_bias else None
    found, cache = decode(decoder, x, positions, prune=prune_at(layer, bias), tail=tail)

    stays, causal = find_stays(WHOLE), torch.ones(WHOLE, WHOLE, dtype=torch.bool).tril()
    wide = torch.zeros(2, 1, 1, WHOLE, dtype=torch.float64)
    if bias is not None:
        wide[..., KEPT + VISUAL.start] = bias[:, None, None].double()
    # A hidden token still sees itself, so that its own row of the softmax is defined.
    hidden = torch.where(causal & (stays | torch.eye(WHOLE, dtype=torch.bool)), wide, float("-inf"))
    masks = [causal[None, None] if index <= layer else hidden for index in range(3)]
    expected = run_masked(decoder, x, positions, masks)[:, stays]
    torch.testing.assert_close(found, expected if tail is None else expected[:, -tail - STEPS:], **CLOSE)

    dropped = VISUAL.stop - VISUAL.start - len(KEPT)
    assert [part.length for part in cache] == [WHOLE if index <= layer else WHOLE - dropped for index in range(3)]
    for part in cache[layer + 1:] if with_bias else []:
        begin = VISUAL.start
        assert torch.equal(part.bias[:, begin:begin + len(KEPT)], bias)
        assert part.bias.count_nonzero() == bias.numel() and part.bias.shape[1] == part.length
    assert all(part.bias is None for part in (cache[:layer + 1] if with_bias else cache))


def test_bias_and_none_meet_in_a_cache():
    seen, ones = KeyValues(), torch.ones(1, 2, 3, 4)
    seen.extend(ones, ones, None)
    *_, bias = seen.extend(ones[:, :, :1], ones[:, :, :1], torch.full((1, 1), 0.5))
    assert bias.tolist() == [[0.0, 0.0, 0.0, 0.5]]
    *_, bias = seen.extend(ones[:, :, :1], ones[:, :, :1], torch.full((1, 1), 2.0))
    assert bias.tolist() == [[0.0, 0.0, 0.0, 0.5, 2.0]] and seen.length == 5


def test_what_no_decoder_does_is_refused():
    decoder = make_decoder()
    x, positions = make_input()
    with pytest.raises(ValueError, match="2 watchers came to a causal decoder"):
        decoder(x, positions, prune=prune_at(1, watchers=2))
    cache = decoder.empty_cache()
    decoder(x[:, :LENGTH], positions[:, :LENGTH], cache=cache)
    with pytest.raises(ValueError, match="6 tokens came to a cache that holds 22"):
        decoder(x[:, LENGTH:], positions[:, LENGTH:], cache=cache)
    with pytest.raises(ValueError, match="the cache holds 22; give prune with the prefill"):
        decoder(x[:, -1:], positions[:, -1:], cache=cache, prune=prune_at(1))
    assert [part.length for part in cache] == [LENGTH] * 3


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_not_causal_is_a_mask_of_ones(kv_heads):
    decoder = make_decoder(kv_heads)
    x, positions = make_input()
    ones = torch.ones(WHOLE, WHOLE, dtype=torch.bool)[None, None]
    expected = decoder(x, positions, mask=ones)
    torch.testing.assert_close(decoder(x, positions, causal=False), expected, **CLOSE)
    torch.testing.assert_close(decoder(x, positions, causal=False, tail=5), expected[:, -5:], **CLOSE)
    assert (expected - decoder(x, positions)).abs().max() > 1e-2


@pytest.mark.parametrize("tail", [None, 5])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("layer", [0, 2])
def test_tokens_leave_where_attention_is_not_causal(layer, with_bias, tail):
    decoder = make_decoder()
    x, positions = make_input()
    bias = torch.rand(2, len(KEPT)) * 3 if with_bias else None
    found = decoder(x, positions, causal=False, prune=prune_at(layer, bias, watchers=4), tail=tail)
    stays, wide = find_stays(WHOLE), torch.zeros(2, 1, 1, WHOLE, dtype=torch.float64)
    if bias is not None:
        wide[..., KEPT + VISUAL.start] = bias[:, None, None].double()
    hidden = torch.where(stays | torch.eye(WHOLE, dtype=torch.bool), wide, float("-inf"))
    ones = torch.ones(1, 1, WHOLE, WHOLE, dtype=torch.bool)
    expected = run_masked(decoder, x, positions, [ones if index <= layer else hidden for index in range(3)])[:, stays]
    torch.testing.assert_close(found, expected if tail is None else expected[:, -tail:], **CLOSE)


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("watchers", [1, 4])
def test_scores_are_the_mean_over_heads_and_watchers(watchers, kv_heads):
    decoder = make_decoder(kv_heads)
    x, positions = make_input()
    inputs, seen = [], []
    decoder.blocks[1].self_attn.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for tail in (None, 5):
        decoder(x, positions, causal=False, prune=prune_at(1, watchers=watchers, seen=seen), tail=tail)
    attention, (cos, sin) = decoder.blocks[1].self_attn, rope_tables(positions, 16, 10000.0, torch.float64)
    q, k = (apply_rope(linear(inputs[0]).view(2, WHOLE, -1, 16).transpose(1, 2), cos, sin)
            for linear in (attention.q_proj, attention.k_proj))
    weights = [(q[:, head] @ k[:, head * kv_heads // 4].mT / 4.0).softmax(-1) for head in range(4)]
    expected = torch.stack(weights).mean(0)[:, -watchers:, VISUAL].mean(1)
    for scores in seen:
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores.double(), expected, atol=1e-6, rtol=1e-5)
    assert (torch.stack(weights).mean(0)[:, -1, VISUAL] - expected).abs().max() > 1e-3 or watchers == 1


def round_(decoder):
    """Everything in 8 bits, keys and queries too."""
    for layer in decoder.blocks:
        layer.self_attn.qk_online = RoundedQueries(8)
        for part in (layer.self_attn, layer.mlp):
            for name, linear in part.named_children():
                if isinstance(linear, nn.Linear):
                    setattr(part, name, QuantLinear.from_linear(linear, weight_bits=8, act_bits=8,
                                                                engine=get_engine("cpu"), act_clip_ratio=1.0))
        layer.input_layernorm = layer.post_attention_layernorm = QuantRMSNorm(1e-6, 8, 1.0)
    return decoder


def test_a_rounded_model_caches_what_one_long_prefill_caches(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    decoder = round_(make_decoder(dtype=torch.float32))
    x, positions = make_input(torch.float32)
    calls = []
    monkeypatch.setattr(fused_rows, "can_attend", lambda *qkv, f=fused_rows.can_attend: (
        calls.append(qkv[0].shape[2]), f(*qkv))[1])
    found, cache = decode(decoder, x, positions)
    assert calls == [LENGTH] * 3 + [1] * 3 * STEPS
    whole = decoder.empty_cache()
    expected = decoder(x, positions, cache=whole)
    for part, other in zip(cache, whole, strict=True):
        assert torch.equal(part.keys, other.keys) and torch.equal(part.values, other.values)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rows", [None, 3, torch.tensor([[0, 4, 21], [2, 3, 9]])])
@pytest.mark.parametrize("behind", [0, 9])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_of_rounded_tokens_is_that_of_torch(causal, behind, rows, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    attention = round_(make_decoder(dtype=torch.float32)).blocks[0].self_attn
    x, positions = make_input(torch.float32)
    length = 1 if behind else WHOLE
    onto, rope = x[:, :length], rope_tables(positions[:, :length] + 99, 16, 10000.0, torch.float32)
    torch.manual_seed(2)
    keys, bias = torch.randn(2, 2, 2, behind, 16), torch.randn(2, length)

    def attend():
        seen = KeyValues()
        if behind:
            seen.extend(keys[0], keys[1], torch.linspace(-1, 1, behind).expand(2, -1))
        choose = None if rows is None or behind else lambda _: rows
        return attention(quantize_normalized(onto, 8, 1.0, 1e-6), onto, rope, None, None, choose, bias, causal, seen)[0]

    fused = attend()
    monkeypatch.setattr(fused_rows, "can_attend", lambda *_: False)
    plain = attend()
    # One code of the input of o_proj may be rounded the other way.
    assert (fused - plain).norm() < 2e-3 * (plain - (onto if fused.shape == onto.shape else 0)).norm()
