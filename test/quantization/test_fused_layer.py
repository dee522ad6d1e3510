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

"""Half a layer in one call is what it is in many."""

import pytest
import torch
from torch import nn

from sqap_vla_ros import fused_rows
from sqap_vla_ros.models import llama
from sqap_vla_ros.models.llama import LlamaConfig, LlamaDecoder, RMSNorm
from sqap_vla_ros.models.rope import rope_tables
from sqap_vla_ros.quantization import fused_layer
from sqap_vla_ros.quantization.fused_layer import feed_forward
from sqap_vla_ros.quantization.hadamard import HadamardRotation
from sqap_vla_ros.quantization.integer import quantize_normalized
from sqap_vla_ros.quantization.kernels import get_engine
from sqap_vla_ros.quantization.linear import QuantLinear, QuantRMSNorm
from sqap_vla_ros.quantization.rotation import RotationPlan

needs_product = pytest.mark.skipif(not fused_rows.HAS_INTEGER_PRODUCT, reason="needs AVX-512 VNNI")


def round_linears_(module: nn.Module, act_bits: int, **bits: int) -> None:
    """All of a module's own; ``bits`` are those of inputs that differ, by name."""
    for name, linear in list(module.named_children()):
        if isinstance(linear, nn.Linear):
            setattr(module, name, QuantLinear.from_linear(
                linear, weight_bits=4, act_bits=bits.get(name, act_bits), engine=get_engine("cpu"),
                act_clip_ratio=0.95 if name in bits else 0.8))


@needs_product
@pytest.mark.parametrize("plan", [None, RotationPlan(), RotationPlan(down_block=32)])
@pytest.mark.parametrize(("act_bits", "down_bits"), [(4, 8), (8, 4)])
def test_feed_forward_in_one_call_is_that_in_many(plan, act_bits, down_bits, monkeypatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    decoder = LlamaDecoder(LlamaConfig(64, 192, 2, 2, 2)).eval()
    mlp, norm, x = decoder.blocks[0].mlp, QuantRMSNorm(0.3, act_bits, 0.8), torch.randn(2, 55, 64)
    round_linears_(mlp, act_bits, down_proj=down_bits)
    if plan is not None:
        mlp.down_online = HadamardRotation(192, 3, block=plan.down_block)
    parts = mlp._siblings, mlp.gate_proj, mlp.up_proj, mlp.down_online, mlp.down_proj
    whole = feed_forward(norm, *parts, x)
    assert whole is not None and torch.equal(whole, mlp.add_behind(norm, x))
    monkeypatch.setattr(llama, "feed_forward", lambda *_: None)
    torch.testing.assert_close(whole, mlp.add_behind(norm, x))
    torch.testing.assert_close(whole, x + mlp(norm(x)))
    assert feed_forward(RMSNorm(64, 1e-6), *parts, x) is None
    assert feed_forward(norm, *parts[:3], nn.Tanh(), mlp.down_proj, x) is None
    assert feed_forward(norm, *parts[:4], nn.Linear(192, 64), x) is None
    with_bias, narrow = nn.Linear(192, 64), nn.Linear(96, 64, bias=False)
    for down in (with_bias, narrow):
        other = QuantLinear.from_linear(down, weight_bits=4, act_bits=act_bits, engine=get_engine("cpu"))
        assert feed_forward(norm, *parts[:4], other, x) is None
    assert feed_forward(norm, *parts, x.double()) is None


@needs_product
@pytest.mark.parametrize("act_bits", [4, 8])
@pytest.mark.parametrize(("kv_heads", "rows"), [(4, None), (2, None), (4, 1), (2, 60), (4, -3), (2, -1)])
def test_attention_and_its_linear_in_one_call_are_those_in_many(act_bits, kv_heads, rows, monkeypatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    attention = LlamaDecoder(LlamaConfig(64, 192, 1, 4, kv_heads)).eval().blocks[0].self_attn
    round_linears_(attention, act_bits)
    onto = torch.randn(2, 101, 64)
    x = quantize_normalized(onto, act_bits, 0.9, 1e-6)
    rope = rope_tables(torch.arange(101).expand(2, -1), 16, 10000.0, torch.float32)
    choose = None if rows is None else (lambda scores: -rows) if rows < 0 else lambda scores: torch.stack([
        torch.randperm(101, generator=torch.Generator().manual_seed(one))[:rows].sort().values for one in (1, 2)])
    calls = []
    monkeypatch.setattr(fused_rows, "attend_and_project", lambda *a, f=fused_rows.attend_and_project: (
        calls.append(1), f(*a))[1])
    for bias in (None, torch.randn(2, 101)):
        whole, _ = attention(x, onto, rope, None, None, choose, bias)
        with monkeypatch.context() as patch:
            patch.setattr(fused_layer, "attend", lambda *_: None)
            many, _ = attention(x, onto, rope, None, None, choose, bias)
        torch.testing.assert_close(whole, many)
    assert len(calls) == 2
