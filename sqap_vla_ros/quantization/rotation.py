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

"""Rotations as data: where a model can be rotated without changing what it computes, and the folding itself.

Rows are vectors: a stream x becomes x R. Then a linear that reads it takes W R, one that writes it takes R^T W, and
both are the same transform applied along another dimension.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.quantization.hadamard import HadamardRotation


class GainNorm(Protocol):
    """An RMSNorm: no bias."""

    weight: nn.Parameter
    eps: float


class AttentionSite(Protocol):
    """An attention; ``qk_online`` is applied to each head of Q and K behind the rotary embedding."""

    v_proj: nn.Linear
    o_proj: nn.Linear
    head_dim: int
    qk_online: nn.Module


class MlpSite(Protocol):
    """An MLP; ``down_online`` is applied to the input of ``down_proj``."""

    down_proj: nn.Linear
    down_online: nn.Module


@dataclass(frozen=True)
class Reader:
    """Linears that read the residual stream behind one RMSNorm.

    :param norm: the norm whose gain is folded into the linears
    :param linears: what reads its output
    """

    norm: GainNorm
    linears: tuple[nn.Linear, ...]


@dataclass(frozen=True)
class RotationSites:
    """Everything that touches one residual stream, and the places where a rotation stays online.

    :param stream_size: width of the residual stream
    :param embeddings: parameters (..., stream_size) that are copied into the stream
    :param writers: linears whose output goes into the stream
    :param readers: linears that read it, by norm; the final norm and the head's first linear included
    :param attentions: of all layers, in order
    :param mlps: of all layers, in order
    :param plain_readers: linears that read the stream as it is, behind no norm
    :param first_layer: number of the first of these layers, where these are some of a model's sites
    """

    stream_size: int
    embeddings: tuple[nn.Parameter, ...]
    writers: tuple[nn.Linear, ...]
    readers: tuple[Reader, ...]
    attentions: tuple[AttentionSite, ...]
    mlps: tuple[MlpSite, ...]
    plain_readers: tuple[nn.Linear, ...] = ()
    first_layer: int = 0

    @property
    def all_readers(self) -> list[nn.Linear]:
        """Every linear that reads the stream."""
        return [*(linear for reader in self.readers for linear in reader.linears), *self.plain_readers]

    def within(self, modules: Collection[nn.Module]) -> RotationSites:
        """Those that lie in some of the model's modules; what stands behind a norm must lie where the norm does.

        :param modules: each by itself; of layers all or none, or such as follow one another
        """
        parameters = {id(parameter) for module in modules for parameter in module.parameters(recurse=False)}
        layers = [index for index, attention in enumerate(self.attentions) if attention in modules]
        return replace(
            self, embeddings=tuple(one for one in self.embeddings if id(one) in parameters),
            writers=tuple(one for one in self.writers if one in modules),
            readers=tuple(one for one in self.readers if one.norm in modules),
            attentions=tuple(self.attentions[index] for index in layers),
            mlps=tuple(self.mlps[index] for index in layers),
            plain_readers=tuple(one for one in self.plain_readers if one in modules),
            first_layer=layers[0] if layers else 0)


@dataclass(frozen=True)
class RotationPlan:
    """Which rotations are made, after QuaRot (arXiv 2404.00456, section 4).

    Blocks are for sizes without a Hadamard construction; None rotates the whole dimension.

    :param stream: the residual stream, folded into everything that touches it
    :param heads: each attention head between v_proj and o_proj, folded into both
    :param down: the input of down_proj; online, its inverse folded into down_proj
    :param queries_keys: each head of Q and K after the rotary embedding; online, scores are unchanged
    :param stream_block: block size of the stream's rotation
    :param head_block: block size within a head
    :param down_block: block size of down_proj's input
    """

    stream: bool = True
    heads: bool = True
    down: bool = True
    queries_keys: bool = True
    stream_block: int | None = None
    head_block: int | None = None
    down_block: int | None = None


def check_rotation(sites: RotationSites, plan: RotationPlan) -> None:
    """Find out whether a model can be rotated; its weights need not be there.

    :raises ConfigError: as :func:`rotate_` does
    """
    _check_sites(sites)
    wanted = {(sites.stream_size, plan.stream_block)} if plan.stream else set()
    if plan.heads or plan.queries_keys:
        wanted |= {(attention.head_dim, plan.head_block) for attention in sites.attentions}
    if plan.down:
        wanted |= {(mlp.down_proj.in_features, plan.down_block) for mlp in sites.mlps}
    for size, block in wanted:
        HadamardRotation(size, 0, block=block)


@torch.no_grad()
def rotate_(sites: RotationSites, seed: int, plan: RotationPlan = RotationPlan()) -> None:
    """Fold rotations into a model, in float64, and put those that cannot be folded at their online sites.

    The gains of the norms are folded first, since a rotation commutes with an RMSNorm only without gain.

    :param sites: of a float model that has not been rotated
    :param seed: decides the signs of every rotation; the same seed gives the same model
    :param plan: which rotations are made
    :raises ConfigError: when a size has no construction, a norm is no RMSNorm, a weight is used at two sites, or the
        model is rotated already; nothing has been changed then
    """
    _check_sites(sites)
    # All are built before the first weight changes, so that a size without construction leaves the model whole.
    touching = [*sites.writers, *sites.all_readers]
    stream = (_build(sites.stream_size, (seed, 0, 0), plan.stream_block, touching[0]) if plan.stream and touching
              else None)
    attentions = list(enumerate(sites.attentions, sites.first_layer))
    mlps = list(enumerate(sites.mlps, sites.first_layer))
    heads = [(attention, _build(attention.head_dim, (seed, 1, index), plan.head_block, attention.o_proj))
             for index, attention in attentions if plan.heads]
    queries_keys = [(attention, _build(attention.head_dim, (seed, 2, index), plan.head_block, attention.o_proj))
                    for index, attention in attentions if plan.queries_keys]
    downs = [(mlp, _build(mlp.down_proj.in_features, (seed, 3, index), plan.down_block, mlp.down_proj))
             for index, mlp in mlps if plan.down]
    fold_norms_(sites)
    if stream is not None:
        _rotate_stream_(sites, stream)
    for attention, rotation in heads:
        _rotate_output_(attention.v_proj, rotation)
        _rotate_input_(attention.o_proj, rotation)
    for mlp, rotation in downs:
        _rotate_input_(mlp.down_proj, rotation)
        mlp.down_online = rotation.to(mlp.down_proj.weight.dtype)
    for attention, rotation in queries_keys:
        attention.qk_online = rotation.to(attention.o_proj.weight.dtype)


@torch.no_grad()
def fold_norms_(sites: RotationSites) -> None:
    """Move the gain of every norm into the linears behind it; the gains become 1."""
    for reader in sites.readers:
        gain = reader.norm.weight.double()
        for linear in reader.linears:
            linear.weight.copy_(linear.weight.double() * gain)
        reader.norm.weight.fill_(1.0)


def _rotate_stream_(sites: RotationSites, rotation: HadamardRotation) -> None:
    for embedding in sites.embeddings:
        embedding.copy_(rotation(embedding.double()))
    for linear in sites.writers:
        _rotate_output_(linear, rotation)
    for linear in sites.all_readers:
        _rotate_input_(linear, rotation)


def _rotate_input_(linear: nn.Linear, rotation: HadamardRotation) -> None:
    linear.weight.copy_(_rotate_last(linear.weight, rotation))


def _rotate_output_(linear: nn.Linear, rotation: HadamardRotation) -> None:
    linear.weight.copy_(_rotate_last(linear.weight.T, rotation).T)
    if linear.bias is not None:
        linear.bias.copy_(_rotate_last(linear.bias, rotation))


def _rotate_last(weight: Tensor, rotation: HadamardRotation) -> Tensor:
    # The last dimension holds one or several vectors of the rotation's size, such as the heads of o_proj's input.
    wide = weight.double()
    return rotation(wide.reshape(*wide.shape[:-1], -1, rotation.size)).reshape(wide.shape)


def _build(size: int, seeds: tuple[int, int, int], block: int | None, near: nn.Linear) -> HadamardRotation:
    # Every site has its own signs: model seed, kind of site, layer.
    seed, kind, index = seeds
    return HadamardRotation(size, (seed * 4 + kind) * 4096 + index, block=block, dtype=torch.float64,
                            device=near.weight.device)


def _check_sites(sites: RotationSites) -> None:
    readers = [linear.weight for linear in sites.all_readers]
    for parameters in ([*sites.embeddings, *readers], [linear.weight for linear in sites.writers]):
        if len({id(parameter) for parameter in parameters}) < len(parameters):
            raise ConfigError("a weight is used at two places of the residual stream, such as an embedding tied to "
                              "the output head; untie it before rotating")
    for reader in sites.readers:
        if getattr(reader.norm, "bias", None) is not None:
            raise ConfigError(f"{type(reader.norm).__name__} is no RMSNorm; a rotation commutes with RMSNorm only")
    online = [mlp.down_online for mlp in sites.mlps] + [attention.qk_online for attention in sites.attentions]
    if not all(isinstance(site, nn.Identity) for site in online):
        raise ConfigError("the model is rotated already; load its checkpoint again to rotate it anew")
