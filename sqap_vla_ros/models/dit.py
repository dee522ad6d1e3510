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

"""CogACT's action transformer: a noisy chunk and one condition in, the noise in the chunk out.

The condition, diffusion time plus cognition, is a token in front of the actions and not a modulation of the norms, so
all that the cognition costs is one row, projected once per inference. Li et al. 2024, "CogACT", section 3.3; the
state-dict names are those of CogACT's checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.models.family import build_empty, fill_module
from sqap_vla_ros.models.towers import TowerAttention

TIME_FEATURES = 256
LONGEST_PERIOD = 10000.0
# Stored by CogACT, read by nothing: its models see no past actions.
UNUSED_TENSORS = frozenset({"history_embedder.linear.weight", "history_embedder.linear.bias"})


@dataclass(frozen=True)
class DitConfig:
    """Sizes of an action transformer.

    :param depth: blocks
    :param hidden_size: width of a token
    :param num_heads: of the attention; the only size that the weights do not tell
    :param chunk_steps: T, the current action and those that follow it
    :param action_size: D
    :param cognition_size: width of the language model's hidden state
    """

    depth: int
    hidden_size: int
    num_heads: int
    chunk_steps: int = 16
    action_size: int = 7
    cognition_size: int = 4096

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")


# CogACT-Small, -Base and -Large.
SIZES = {"DiT-S": DitConfig(6, 384, 4), "DiT-B": DitConfig(12, 768, 12), "DiT-L": DitConfig(24, 1024, 16)}


def time_features(timesteps: Tensor) -> Tensor:
    """Cosines, then sines, of diffusion times at falling frequencies.

    :param timesteps: (S,)
    :return: (S, ``TIME_FEATURES``) float32, which the original computes in too
    """
    half = TIME_FEATURES // 2
    places = torch.arange(half, device=timesteps.device, dtype=torch.float32)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(LONGEST_PERIOD) * places / half)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class TimeEmbedder(nn.Module):
    """Diffusion time to a token."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, features: Tensor) -> Tensor:
        """(S, ``TIME_FEATURES``) to (S, C)."""
        return self.mlp(features)


class ActionEmbedder(nn.Module):
    """An action to a token."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.action_size, config.hidden_size)

    def forward(self, actions: Tensor) -> Tensor:
        """(B, T, D) to (B, T, C)."""
        return self.linear(actions)


class CognitionEmbedder(nn.Module):
    """A cognition vector to a token."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.cognition_size, config.hidden_size)

    def forward(self, cognition: Tensor) -> Tensor:
        """(B, Z) to (B, C)."""
        return self.linear(cognition)


class DitMlp(nn.Module):
    """Two linears with GELU, in its tanh form, between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, C) to (B, S, C)."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class DitBlock(nn.Module):
    """Attention and MLP, each behind a norm without gain and added to the residual stream."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.norm1 = _plain_norm(config.hidden_size)
        self.attn = TowerAttention(config.hidden_size, config.num_heads)
        self.norm2 = _plain_norm(config.hidden_size)
        self.mlp = DitMlp(config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, C) to (B, S, C)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class FinalLayer(nn.Module):
    """Tokens to what is predicted of each action."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.norm_final = _plain_norm(config.hidden_size)
        self.linear = nn.Linear(config.hidden_size, config.action_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, D)."""
        return self.linear(self.norm_final(x))


def _plain_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


class Dit(nn.Module):
    """See the module's docstring."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = ActionEmbedder(config)
        self.t_embedder = TimeEmbedder(config.hidden_size)
        self.z_embedder = CognitionEmbedder(config)
        scale = config.hidden_size**-0.5
        self.positional_embedding = nn.Parameter(scale * torch.randn(1 + config.chunk_steps, config.hidden_size))
        self.blocks = nn.ModuleList(DitBlock(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)

    def embed_times(self, timesteps: Tensor) -> Tensor:
        """One half of a condition, so that a sampler's loop finds it ready.

        :param timesteps: (S,) diffusion times as trained, whatever steps a sampler leaves out
        :return: (S, C)
        """
        return self.t_embedder(time_features(timesteps).to(self.positional_embedding.dtype))

    def embed_cognition(self, cognition: Tensor) -> Tensor:
        """The other half: (B, Z) in any floating type to (B, C)."""
        return self.z_embedder(cognition.to(self.positional_embedding.dtype))

    def forward(self, actions: Tensor, condition: Tensor) -> Tensor:
        """Predict the noise.

        :param actions: (B, T, D) noisy actions, in the weights' type
        :param condition: (B, C), time plus cognition or what stands for none
        :return: (B, T, D)
        """
        x = torch.cat((condition[:, None], self.x_embedder(actions)), dim=1) + self.positional_embedding
        for block in self.blocks:
            x = block(x)
        return self.final_layer(x[:, 1:])


def read_dit(tensors: Mapping[str, Tensor], *, num_heads: int | None = None) -> Dit:
    """Build the transformer that some weights are for, and put them into it as they are: same type, same memory.

    :param tensors: by CogACT's names, without ``net.`` and without ``z_embedder.uncondition``
    :param num_heads: of the attention; None for that of CogACT's size of the same width
    :raises CheckpointError: naming the tensor that is missing, unknown or of another shape
    """
    config = read_sizes(tensors, num_heads=num_heads)
    given = {name: tensor for name, tensor in tensors.items() if name not in UNUSED_TENSORS}
    return fill_module("action_model", build_empty(Dit, config), given)


def read_sizes(tensors: Mapping[str, Tensor], *, num_heads: int | None = None) -> DitConfig:
    """Sizes that the shapes of the weights tell; tensors on the meta device will do.

    :param tensors: as for :func:`read_dit`
    :param num_heads: as for :func:`read_dit`
    :raises CheckpointError: when a tensor that tells them is missing or flat, or the number of heads cannot be known
    """
    places, width = _shape_of(tensors, "positional_embedding")
    _, actions = _shape_of(tensors, "x_embedder.linear.weight")
    _, cognition = _shape_of(tensors, "z_embedder.linear.weight")
    parts = [name.split(".") for name in tensors if name.startswith("blocks.")]
    blocks = [int(part[1]) for part in parts if part[1].isdigit()]
    if num_heads is None:
        known = {size.hidden_size: size.num_heads for size in SIZES.values()}
        if width not in known:
            raise CheckpointError(f"the action model is {width} wide, and the number of attention heads is known only "
                                  f"for {', '.join(map(str, known))}; give it in architecture.json, dit.heads")
        num_heads = known[width]
    if num_heads < 1 or width % num_heads:
        raise CheckpointError(f"the action model is {width} wide, which {num_heads} attention heads cannot share "
                              "evenly; correct dit.heads in architecture.json")
    return DitConfig(max(blocks, default=-1) + 1, width, num_heads, places - 1, actions, cognition)


def _shape_of(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    if name not in tensors or tensors[name].ndim != 2:
        came = f"shape {tuple(tensors[name].shape)}" if name in tensors else "nothing"
        raise CheckpointError(f"the action model's tensor {name} must have two dimensions, got {came}")
    rows, columns = tensors[name].shape
    return rows, columns
