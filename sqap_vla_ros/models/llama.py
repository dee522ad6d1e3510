"""A Llama decoder that runs one prefill and may drop visual tokens on the way.

Two submodules, ``qk_online`` and ``down_online``, are identities here; rotation puts its transforms there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sqap_vla_ros import fused_rows
from sqap_vla_ros.models.rope import Rope, apply_rope, rope_tables
from sqap_vla_ros.quantization.feed_forward import feed_forward
from sqap_vla_ros.quantization.integer import QuantizedTokens, Rows, take_rows
from sqap_vla_ros.quantization.linear import Siblings


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a Llama decoder; names as in ``transformers.LlamaConfig``."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


class PruneStep(NamedTuple):
    """Where tokens leave, and who chooses.

    They leave inside the layer: as soon as its scores are known. Of tokens that leave it computes keys and values,
    which those that stay look at, and nothing else.

    :param layer: index of the decoder layer in which they leave
    :param visual: where the visual tokens stand in the sequence
    :param select: (B, N) attention scores of the visual tokens, and (B, N, C) their hidden states in front of the
        layer, to (B, K) int64 ascending indices that stay
    """

    layer: int
    visual: slice
    select: Callable[[Tensor, Tensor], Tensor]


# Told of the visual tokens' scores, or of None where they are not wanted, says which tokens look.
Chooser = Callable[[Tensor | None], Rows]


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain, computed in float32 or wider."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        wide = x if x.dtype == torch.float64 else x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


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

    def forward(self, x: Tensor | QuantizedTokens, rope: Rope, mask: Tensor | None, visual: slice | None = None,
                choose: Chooser | None = None) -> tuple[Tensor, Rows | None]:
        """Attend.

        :param x: (B, S, C), rounded or not
        :param rope: tables for the positions of x
        :param mask: (B, 1, S, S) bool, True where a query may look; None is plain causal, and needed for ``choose``
        :param visual: where the visual tokens stand
        :param choose: told of the attention that the last token gives to each visual token, mean over heads, (B, N)
            float32, or of None without ``visual``; says which tokens shall look. The others are only looked at. None
            is all of them
        :return: (B, R, C), and what ``choose`` said, None for all
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
                x, rope = _take_tokens(x, rows), rope.take(rows)
            (q,) = self._project(x, rope, end=1)
        # A float model is torch's alone, so that what compressed ones are measured against is what everybody has.
        if mask is None and isinstance(x, QuantizedTokens) and fused_rows.can_attend(q, k, v):
            return self.o_proj(fused_rows.attend(q, k, v, _last_seen(rows, q.shape[0], length))), rows
        if rows is not None:
            mask = _see_before(rows, length, k.device)
        if self.num_kv_heads != self.num_heads:
            k = k.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)
            v = v.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and rows is None)
        return self.o_proj(out.transpose(1, 2).flatten(2)), rows

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


def _last_query_attention(q: Tensor, k: Tensor) -> Tensor:
    # One row instead of S x S: the last token sees everything, so no mask is needed. (B,H,1,D) @ (B,KV,D,S)
    if k.shape[1] != q.shape[1]:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
    return logits.softmax(dim=-1).mean(dim=1)[:, 0]


class LlamaMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.down_online: nn.Module = nn.Identity()
        self._siblings = Siblings()

    def forward(self, x: Tensor | QuantizedTokens) -> Tensor:
        """(B, S, C), rounded or not, to (B, S, C)."""
        whole = feed_forward(self._siblings, self.gate_proj, self.up_proj, self.down_online, self.down_proj, x)
        if whole is not None:
            return whole
        product = self._siblings.multiply((self.gate_proj, self.up_proj), x)
        gated = F.silu(self.gate_proj(x)) * self.up_proj(x) if product is None else product.gated()
        return self.down_proj(self.down_online(gated))


class LlamaLayer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(self, x: Tensor, rope: Rope, mask: Tensor | None, visual: slice | None = None,
                choose: Chooser | None = None) -> tuple[Tensor, Rows | None]:
        """See :meth:`LlamaAttention.forward`; tokens that are only looked at go no further."""
        attended, rows = self.self_attn(self.input_layernorm(x), rope, mask, visual, choose)
        if rows is not None:
            x = take_rows(x, rows)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), rows


class LlamaDecoder(nn.Module):
    """Layers and final norm; embeddings and heads belong to the model families."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(LlamaLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    @property
    def blocks(self) -> list[LlamaLayer]:
        """The layers, first to last."""
        return cast(list[LlamaLayer], list(self.layers))

    def forward(self, x: Tensor, positions: Tensor, *, mask: Tensor | None = None,
                prune: PruneStep | None = None, tail: int | None = None) -> Tensor:
        """Run one prefill.

        Kept tokens keep their positions, so their rotary phases are those of the unpruned sequence.

        :param x: (B, S, C) embeddings
        :param positions: (B, S) int64
        :param mask: (B, 1, S, S) bool or None for plain causal; only without ``prune`` and ``tail``
        :param prune: where visual tokens leave, or None to keep all
        :param tail: how many of the last tokens are wanted, none of them visual; the last layer then computes nothing
            else that only the others need. None is all that are left
        :return: (B, S', C) after the final norm, S' = ``tail``, or S less the dropped tokens
        """
        rope = rope_tables(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
        for index, layer in enumerate(self.blocks):
            here = prune if prune is not None and prune.layer == index else None
            is_end = tail is not None and index + 1 == len(self.layers)
            choose = _choose_rows(here, x, tail if is_end else None)
            x, rows = layer(x, rope, mask, None if here is None else here.visual, choose)
            if rows is not None:
                rope = rope.take(rows)
        return self.norm(x if tail is None else x[:, -tail:])


def _choose_rows(prune: PruneStep | None, x: Tensor, tail: int | None) -> Chooser | None:
    if prune is None and tail is None:
        return None

    def choose(scores: Tensor | None) -> Rows:
        kept = None if prune is None or scores is None else _kept_rows(prune, scores, x)
        rows = kept if tail is None else tail
        assert rows is not None
        return rows

    return choose


def _kept_rows(prune: PruneStep, scores: Tensor, x: Tensor) -> Tensor:
    # Everything outside the visual tokens stays, in order: (B, S') indices into the sequence.
    kept = prune.select(scores, x[:, prune.visual])
    every = torch.arange(x.shape[1], device=kept.device).expand(kept.shape[0], -1)
    return torch.cat((every[:, :prune.visual.start], kept + prune.visual.start, every[:, prune.visual.stop:]), dim=1)
