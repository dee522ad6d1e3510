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

    :param layer: index of the decoder layer after which they leave
    :param visual: where the visual tokens stand in the sequence
    :param select: (B, N) attention scores of the visual tokens, and (B, N, C) their hidden states behind the layer,
        to (B, K) int64 ascending indices that stay
    """

    layer: int
    visual: slice
    select: Callable[[Tensor, Tensor], Tensor]


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


def rope_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary position embedding, (B, 1, S, head_dim) each, for (B, S) positions."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=wide) / head_dim
    angles = positions.to(wide)[..., None] / theta**exponent
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, H, S, head_dim) by the tables, first half against second half."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


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

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None,
                visual: slice | None) -> tuple[Tensor, Tensor | None]:
        """Attend; when ``visual`` is given also return what the last token gives to each visual token.

        :param x: (B, S, C)
        :param rope: tables for the positions of x
        :param mask: (B, 1, S, S) bool, True where a query may look; None is plain causal
        :param visual: where the visual tokens stand
        :return: (B, S, C) and, for ``visual``, attention of the last query averaged over heads, (B, N) float32
        """
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.num_kv_heads, self.head_dim).transpose(1, 2)
        q = self.qk_online(apply_rope(q, *rope))
        k = self.qk_online(apply_rope(k, *rope))
        if self.num_kv_heads != self.num_heads:
            k = k.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)
            v = v.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        out = self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))
        return out, None if visual is None else _last_query_attention(q, k)[:, visual]


def _last_query_attention(q: Tensor, k: Tensor) -> Tensor:
    # One row instead of S x S: the last token sees everything, so no mask is needed. (B,H,1,D) @ (B,H,D,S)
    logits = q[:, :, -1:].float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
    return logits.softmax(dim=-1).mean(dim=1)[:, 0]


class LlamaMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.down_online: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, C) to (B, S, C)."""
        return self.down_proj(self.down_online(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class LlamaLayer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None,
                visual: slice | None) -> tuple[Tensor, Tensor | None]:
        """See :meth:`LlamaAttention.forward`."""
        attended, scores = self.self_attn(self.input_layernorm(x), rope, mask, visual)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), scores


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
                prune: PruneStep | None = None) -> Tensor:
        """Run one prefill.

        Kept tokens keep their positions, so their rotary phases are those of the unpruned sequence.

        :param x: (B, S, C) embeddings
        :param positions: (B, S) int64
        :param mask: (B, 1, S, S) bool or None for plain causal; only without ``prune``
        :param prune: where visual tokens leave, or None to keep all
        :return: (B, S', C) after the final norm, S' = S less the dropped tokens
        """
        rope = rope_tables(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
        for index, layer in enumerate(self.layers):
            here = prune if prune is not None and prune.layer == index else None
            x, scores = layer(x, rope, mask, None if here is None else here.visual)
            if here is not None:
                keep = _kept_positions(here, scores, x)
                x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
                positions = positions.gather(1, keep)
                rope = rope_tables(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
        return self.norm(x)


def _kept_positions(prune: PruneStep, scores: Tensor, x: Tensor) -> Tensor:
    # Everything outside the visual tokens stays, in order: (B, S') indices into the sequence.
    kept = prune.select(scores, x[:, prune.visual])
    every = torch.arange(x.shape[1], device=kept.device).expand(kept.shape[0], -1)
    return torch.cat((every[:, :prune.visual.start], kept + prune.visual.start, every[:, prune.visual.stop:]), dim=1)
