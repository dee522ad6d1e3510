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

"""A Llama decoder that runs a prefill, in which visual tokens may leave on the way, and one token at a time behind it.

Two submodules, ``qk_online`` and ``down_online``, are identities here; rotation puts its transforms there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sqap_vla_ros.models.attention import Chooser, KeyValues, LlamaAttention, Watch
from sqap_vla_ros.models.rope import Rope, rope_tables
from sqap_vla_ros.quantization.fused_layer import feed_forward
from sqap_vla_ros.quantization.integer import QuantizedTokens, Rows
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


class Choice(NamedTuple):
    """The visual tokens that stay.

    :param kept: (B, K) int64 indices, ascending
    :param bias: (B, K) float32 added to the logits of their keys in the layers behind, or None
    """

    kept: Tensor
    bias: Tensor | None = None


class PruneStep(NamedTuple):
    """Where tokens leave, and who chooses.

    They leave inside the layer: as soon as its scores are known. Of tokens that leave it computes keys and values,
    which those that stay look at, and nothing else.

    :param layer: index of the decoder layer in which they leave
    :param visual: where the visual tokens stand in the sequence
    :param select: (B, N) attention scores of the visual tokens, and (B, N, C) their hidden states in front of the
        layer, to those that stay
    :param watchers: how many of the last tokens' attention is the score, as a mean; more than one only where attention
        is not causal
    """

    layer: int
    visual: slice
    select: Callable[[Tensor, Tensor], Choice]
    watchers: int = 1


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
        product = self._siblings.multiply((self.gate_proj, self.up_proj), x)
        gated = F.silu(self.gate_proj(x)) * self.up_proj(x) if product is None else product.gated()
        return self.down_proj(self.down_online(gated))

    def add_behind(self, norm: nn.Module, x: Tensor) -> Tensor:
        """x + self(norm(x)).

        :param norm: in front of this MLP
        :param x: (B, S, C) residual stream
        """
        whole = feed_forward(norm, self._siblings, self.gate_proj, self.up_proj, self.down_online, self.down_proj, x)
        return x + self(norm(x)) if whole is None else whole


class LlamaLayer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(self, x: Tensor, rope: Rope, mask: Tensor | None, watch: Watch | None = None,
                choose: Chooser | None = None, bias: Tensor | None = None, causal: bool = True,
                seen: KeyValues | None = None) -> tuple[Tensor, Rows | None]:
        """See :meth:`LlamaAttention.forward`; tokens that are only looked at go no further."""
        x, rows = self.self_attn(self.input_layernorm(x), x, rope, mask, watch, choose, bias, causal, seen)
        return self.mlp.add_behind(self.post_attention_layernorm, x), rows


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

    def empty_cache(self) -> list[KeyValues]:
        """For a prefill and the tokens behind it, one per layer."""
        return [KeyValues() for _ in self.layers]

    def forward(self, x: Tensor, positions: Tensor, *, mask: Tensor | None = None, causal: bool = True,
                prune: PruneStep | None = None, tail: int | None = None,
                cache: list[KeyValues] | None = None) -> Tensor:
        """Run a prefill, or one token behind it.

        Kept tokens keep their positions, so their rotary phases are those of the unpruned sequence. A token behind
        them sees in each layer what that layer's queries saw, with the bias that their choice gave them.

        :param x: (B, S, C) embeddings; S = 1 with a cache that is not empty
        :param positions: (B, S) int64, counted without regard to tokens that left
        :param mask: (B, 1, S, S) bool or None, as ``causal`` says; only without ``prune``, ``tail`` and ``cache``
        :param causal: each token sees those before it and itself; False is every token
        :param prune: where visual tokens leave, or None to keep all; only with an empty cache
        :param tail: how many of the last tokens are wanted, none of them visual; the last layer then computes nothing
            else that only the others need. None is all that are left
        :param cache: of :meth:`empty_cache`, filled by the call; None when nothing comes behind
        :return: (B, S', C) after the final norm, S' = ``tail``, or S less the dropped tokens
        :raises ValueError: for several watchers of which the earlier cannot see all, for several tokens behind a
            prefill, and for ``prune`` there
        """
        if prune is not None:
            _check_prune(prune, causal, cache)
        rope = rope_tables(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
        bias: Tensor | None = None
        for index, layer in enumerate(self.blocks):
            here = prune if prune is not None and prune.layer == index else None
            is_end = tail is not None and index + 1 == len(self.layers)
            choices: list[Choice] = []
            choose = _choose_rows(here, x, tail if is_end else None, choices)
            watch = None if here is None else Watch(here.visual, here.watchers)
            x, rows = layer(x, rope, mask, watch, choose, bias, causal, None if cache is None else cache[index])
            if here is not None and choices[0].bias is not None and not is_end:
                begin, kept = here.visual.start, choices[0].kept.shape[1]
                bias = F.pad(choices[0].bias, (begin, x.shape[1] - begin - kept))
            if rows is not None:
                rope = rope.take(rows)
        return self.norm(x if tail is None else x[:, -tail:])


def _check_prune(prune: PruneStep, causal: bool, cache: list[KeyValues] | None) -> None:
    if causal and prune.watchers > 1:
        raise ValueError(f"{prune.watchers} watchers came to a causal decoder, where only the last token sees all; "
                         "give 1, or causal=False")
    if cache is not None and cache[0].length:
        raise ValueError(f"tokens cannot leave behind a prefill, and the cache holds {cache[0].length}; give prune "
                         "with the prefill")


def _choose_rows(prune: PruneStep | None, x: Tensor, tail: int | None, choices: list[Choice]) -> Chooser | None:
    if prune is None and tail is None:
        return None

    def choose(scores: Tensor | None) -> Rows:
        kept = None
        if prune is not None and scores is not None:
            choices.append(prune.select(scores, x[:, prune.visual]))
            kept = _kept_rows(choices[0].kept, prune.visual, x.shape[1])
        rows = kept if tail is None else tail
        assert rows is not None
        return rows

    return choose


def _kept_rows(kept: Tensor, visual: slice, length: int) -> Tensor:
    # Everything outside the visual tokens stays, in order: (B, S') indices into the sequence.
    every = torch.arange(length, device=kept.device).expand(kept.shape[0], -1)
    return torch.cat((every[:, :visual.start], kept + visual.start, every[:, visual.stop:]), dim=1)
