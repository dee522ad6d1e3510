"""Attention of a Llama layer, in which some of the tokens may look and all are looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

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


class LlamaAttention(nn.Module):
    """Causal grouped-query attention."""

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
                visual: slice | None = None, choose: Chooser | None = None,
                bias: Tensor | None = None) -> tuple[Tensor, Rows | None]:
        """Attend.

        :param x: (B, S, C), rounded or not
        :param onto: (B, S, C) residual stream
        :param rope: tables for the positions of x
        :param mask: (B, 1, S, S) bool, True where a query may look; None is plain causal, and needed for ``choose``
        :param visual: where the visual tokens stand
        :param choose: told of the attention that the last token gives to each visual token, mean over heads, (B, N)
            float32, or of None without ``visual``; says which tokens shall look. The others are only looked at. None
            is all of them
        :param bias: (B, S) float32 added to the logits of each key; only without ``mask``
        :return: (B, R, C) stream of those that look, and what ``choose`` said, None for all
        """
        rows: Rows | None = None
        length = x.shape[1]
        if choose is None:
            q, k, v = self._project(x, rope)
        else:
            k, v = self._project(x, rope, first=1)
            scores = None
            if visual is not None:
                (last,) = self._project(_take_tokens(x, 1), rope.take(1), end=1)
                scores = _last_query_attention(last, k)[:, visual]
            rows = choose(scores)
            if (rows if isinstance(rows, int) else rows.shape[1]) == length:
                rows = None
            else:
                x, onto, rope = _take_tokens(x, rows), take_rows(onto, rows), rope.take(rows)
            (q,) = self._project(x, rope, end=1)
        # A float model is torch's alone, so that what compressed ones are measured against is what everybody has.
        if mask is None and isinstance(x, QuantizedTokens) and fused_rows.can_attend(q, k, v):
            last = _last_seen(rows, q.shape[0], length)
            whole = fused_layer.attend(q, k, v, last, bias, self.o_proj, onto)
            return (onto + self.o_proj(fused_rows.attend(q, k, v, last, bias)) if whole is None else whole), rows
        if rows is not None:
            mask = _see_before(rows, length, k.device)
        if bias is not None:
            mask = _add_bias(mask if rows is not None else _see_before(length, length, k.device), bias, q.dtype)
        if self.num_kv_heads != self.num_heads:
            k = k.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)
            v = v.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and rows is None)
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


def _last_seen(rows: Rows | None, batch: int, length: int) -> Tensor:
    # (B, R): each query sees the keys up to its own.
    if isinstance(rows, Tensor):
        return rows
    return torch.arange(0 if rows is None else length - rows, length).expand(batch, -1)


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


def _last_query_attention(q: Tensor, k: Tensor) -> Tensor:
    # One row instead of S x S: the last token sees everything, so no mask is needed. (B,H,1,D) @ (B,KV,D,S)
    if k.shape[1] != q.shape[1]:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
    return logits.softmax(dim=-1).mean(dim=1)[:, 0]
