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

"""Attention of a Llama layer, in which some of the tokens may look and all are looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sqap_vla_ros import fused_rows
from sqap_vla_ros.models.rope import Rope, apply_rope
from sqap_vla_ros.quantization import fused_layer
from sqap_vla_ros.quantization.integer import QuantizedTokens, Rows, take_rows
from sqap_vla_ros.quantization.linear import Siblings

if TYPE_CHECKING:
    from sqap_vla_ros.models.llama import LlamaConfig

# Told of the visual tokens' scores, or of None where they are not wanted, says which tokens look.
Chooser = Callable[[Tensor | None], Rows]


class Watch(NamedTuple):
    """Whose attention counts, and to what.

    :param visual: where the visual tokens stand
    :param watchers: how many of the last tokens look at them; more than one only where every token sees every other
    """

    visual: slice
    watchers: int = 1


class KeyValues:
    """What later tokens look at in one layer; empty at first.

    Tokens that left in front of the layer are not in it, so its length says nothing of positions.
    """

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.bias: Tensor | None = None

    @property
    def length(self) -> int:
        """How many tokens there are to look at."""
        return 0 if self.keys is None else self.keys.shape[2]

    def extend(self, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Put tokens behind those that are there: any number at first, then one at a time.

        :param k: (B, kv heads, S, head_dim) keys as queries meet them: turned, behind ``qk_online``
        :param v: as k
        :param bias: (B, S) float32 added to the logits of each key, or None for nothing
        :return: the same of all tokens
        :raises ValueError: for more than one token behind others, of which the earlier ones would see the later
        """
        if self.keys is not None and self.values is not None:
            if k.shape[2] > 1:
                raise ValueError(f"{k.shape[2]} tokens came to a cache that holds {self.length}; give them one by one, "
                                 "or all at once with an empty cache")
            if self.bias is not None:
                bias = F.pad(self.bias, (0, 1)) if bias is None else torch.cat((self.bias, bias), dim=1)
            elif bias is not None:
                bias = F.pad(bias, (self.length, 0))
            k, v = torch.cat((self.keys, k), dim=2), torch.cat((self.values, v), dim=2)
        self.keys, self.values, self.bias = k, v, bias
        return k, v, bias


class LlamaAttention(nn.Module):
    """Grouped-query attention, causal or not."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.qk_online: nn.Module = nn.Identity()
        self._siblings = Siblings()

    def forward(self, x: Tensor | QuantizedTokens, onto: Tensor, rope: Rope, mask: Tensor | None,
                watch: Watch | None = None, choose: Chooser | None = None, bias: Tensor | None = None,
                causal: bool = True, seen: KeyValues | None = None) -> tuple[Tensor, Rows | None]:
        """Attend.

        :param x: (B, S, C), rounded or not
        :param onto: (B, S, C) residual stream
        :param rope: tables for the positions of x
        :param mask: (B, 1, S, S) bool, True where a query may look; None, as ``causal`` says. Only without ``choose``
        :param watch: of which tokens ``choose`` wants to know how they look at the visual ones
        :param choose: told of the attention that each visual token is given, mean over heads and watchers, (B, N)
            float32, or of None without ``watch``; says which tokens shall look. The others are only looked at. None
            is all of them
        :param bias: (B, S) float32 added to the logits of each key
        :param causal: each token sees those before it and itself; False is every token
        :param seen: tokens before x that are looked at too; x is put behind them
        :return: (B, R, C) stream of those that look, and what ``choose`` said, None for all
        """
        rows: Rows | None = None
        length = x.shape[1]
        if choose is None:
            q, k, v = self._project(x, rope)
        else:
            k, v = self._project(x, rope, first=1)
            scores = None
            if watch is not None:
                (last,) = self._project(_take_tokens(x, watch.watchers), rope.take(watch.watchers), end=1)
                scores = _average_attention(last, k)[:, watch.visual]
            rows = choose(scores)
            if (rows if isinstance(rows, int) else rows.shape[1]) == length:
                rows = None
            else:
                x, onto, rope = _take_tokens(x, rows), take_rows(onto, rows), rope.take(rows)
            (q,) = self._project(x, rope, end=1)
        if seen is not None:
            k, v, bias = seen.extend(k, v, bias)
        # A float model is torch's alone, so that what compressed ones are measured against is what everybody has.
        if mask is None and isinstance(x, QuantizedTokens) and fused_rows.can_attend(q, k, v):
            ends = _last_seen(rows, q, k.shape[2], causal)
            whole = fused_layer.attend(q, k, v, ends, bias, self.o_proj, onto)
            return (onto + self.o_proj(fused_rows.attend(q, k, v, ends, bias)) if whole is None else whole), rows
        is_plain = mask is None and causal and rows is None and bias is None and q.shape[2] == k.shape[2]
        if mask is None and causal and not is_plain:
            mask = _see_before(q.shape[2] if rows is None else rows, k.shape[2], k.device)
        if bias is not None:
            mask = _add_bias(mask, bias, q.dtype)
        if self.num_kv_heads != self.num_heads:
            k = k.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)
            v = v.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_plain)
        return onto + self.o_proj(out.transpose(1, 2).flatten(2)), rows

    def _project(self, x: Tensor | QuantizedTokens, rope: Rope, first: int = 0, end: int = 3) -> list[Tensor]:
        # Of q, k and v those from ``first`` to before ``end``: (B, heads, S, head_dim) each.
        linears = (self.q_proj, self.k_proj, self.v_proj)
        counts = [self.num_heads, self.num_kv_heads, self.num_kv_heads][first:end]
        product = self._siblings.multiply(linears, x, first, end)
        turned = None if product is None else product.turned(*rope.flatten(), sum(counts[:2 - first]))
        if turned is not None:
            heads = list(self._split(turned).split(counts, dim=1))
        else:
            values = ([linear(x) for linear in linears[first:end]] if product is None
                      else product.scaled().split([count * self.head_dim for count in counts], dim=-1))
            heads = [apply_rope(self._split(value), *rope) if index < 2 else self._split(value)
                     for index, value in enumerate(values, first)]
        return [self.qk_online(part) if index < 2 else part for index, part in enumerate(heads, first)]

    def _split(self, x: Tensor) -> Tensor:
        # (B, S, heads x head_dim) to (B, heads, S, head_dim)
        return x.view(x.shape[0], x.shape[1], -1, self.head_dim).transpose(1, 2)


def _take_tokens(x: Tensor | QuantizedTokens, rows: Rows) -> Tensor | QuantizedTokens:
    return x.take(rows) if isinstance(x, QuantizedTokens) else take_rows(x, rows)


def _last_seen(rows: Rows | None, q: Tensor, keys: int, causal: bool) -> Tensor:
    # (B, R): each query sees the keys up to its own, or all.
    batch, _, queries, _ = q.shape
    if not causal:
        return torch.full((batch, queries), keys - 1)
    return rows if isinstance(rows, Tensor) else torch.arange(keys - queries, keys).expand(batch, -1)


def _see_before(rows: Rows, length: int, device: torch.device) -> Tensor | None:
    # The causal mask of some queries; the very last sees everything.
    places = torch.arange(length, device=device)
    if isinstance(rows, int):
        return None if rows == 1 else places[-rows:, None] >= places
    return rows[:, None, :, None] >= places


def _add_bias(seen: Tensor | None, bias: Tensor, dtype: torch.dtype) -> Tensor:
    # (B, 1, 1 or R, S) float mask; nothing of what is not seen, and the bias of the rest.
    wide = bias[:, None, None].to(dtype)
    return wide if seen is None else torch.where(seen, wide, float("-inf"))


def _average_attention(q: Tensor, k: Tensor) -> Tensor:
    # A few rows instead of S x S; each sees everything, so no mask is needed. (B,H,R,D) @ (B,KV,D,S) to (B, S)
    if k.shape[1] != q.shape[1]:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
    return logits.softmax(dim=-1).mean(dim=1).mean(dim=1)
