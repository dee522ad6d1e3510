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

"""What quantization put into a model, as plain values, and how it is put in again without the float weights.

A model is built empty from its configuration, linears and norms give way to their integer forms, and the rotations
that stay online are made anew from their seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.quantization.hadamard import HadamardRotation
from sqap_vla_ros.quantization.kernels.engine import Engine
from sqap_vla_ros.quantization.linear import QuantLinear, QuantRMSNorm, RoundedQueries
from sqap_vla_ros.quantization.mixed import MixedLinear
from sqap_vla_ros.quantization.quantize import Quantizable
from sqap_vla_ros.quantization.report import QuantizationReport
from sqap_vla_ros.quantization.row_widths import INTEGER_WIDTHS

# Stored beside the tensors of a linear, as compressed-tensors wants it: (2,) int64, N and K.
SHAPE_TENSOR = "weight_shape"
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class LinearEntry:
    """A quantized linear.

    :param shape: N, K
    :param weight_bits: 4 or 8; None where rows have several widths
    :param rows_by_bits: where they have, how many have each
    :param act_bits: 4, 8 or 16
    :param act_clip_ratio: see :func:`~sqap_vla_ros.quantization.integer.quantize_tokens`
    :param group_size: columns that share a weight scale; None is one scale per row
    :param rounding: how the weight was rounded
    :param with_bias: whether it has a bias
    """

    shape: tuple[int, int]
    weight_bits: int | None
    rows_by_bits: dict[int, int] | None
    act_bits: int
    act_clip_ratio: float
    group_size: int | None
    rounding: str
    with_bias: bool

    @property
    def width(self) -> str:
        """Bits of weight and activations, such as 'W4A8'; of several widths their mean over the rows."""
        if self.rows_by_bits is None:
            return f"W{self.weight_bits}A{self.act_bits}"
        mean = sum(bits * count for bits, count in self.rows_by_bits.items()) / self.shape[0]
        return f"W{mean:.2f}A{self.act_bits}"

    @property
    def weights(self) -> int:
        """How many it has, N x K."""
        return self.shape[0] * self.shape[1]

    @property
    def stored_bytes(self) -> int:
        """Bytes of rows, scales, widths and bias."""
        return sum(dtype.itemsize * math.prod(shape) for name, (dtype, shape) in self.tensors().items()
                   if name != SHAPE_TENSOR)

    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of what is stored of it, by the tensor's own name."""
        rows, columns = self.shape
        held: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        if self.weight_bits is not None:
            scales = 1 if self.group_size is None else columns // self.group_size
            held = {"weight_packed": (torch.int32, (rows, -(-columns * self.weight_bits // 32))),
                    "weight_scale": (torch.float32, (rows, scales)), SHAPE_TENSOR: (torch.int64, (2,))}
        elif self.rows_by_bits is not None:
            integers = {bits: self.rows_by_bits[bits] for bits in INTEGER_WIDTHS if self.rows_by_bits.get(bits)}
            held = {"row_bits": (torch.uint8, (rows,))}
            held |= {f"packed_{bits}": (torch.int32, (count, -(-columns * bits // 32)))
                     for bits, count in integers.items()}
            if integers:
                held["weight_scale"] = (torch.float32, (sum(integers.values()), 1))
            if self.rows_by_bits.get(16):
                held["wide"] = (torch.bfloat16, (self.rows_by_bits[16], columns))
        if self.with_bias:
            held["bias"] = (torch.float32, (rows,))
        return held


@dataclass(frozen=True)
class NormEntry:
    """A norm without gain whose output is rounded; fields as :class:`QuantRMSNorm` has them."""

    eps: float
    bits: int
    clip_ratio: float


@dataclass(frozen=True)
class OnlineEntry:
    """One step at an online site: a rotation, or the rounding of queries and keys.

    :param bits: of the rounding; None for a rotation
    :param size: of the rotation
    :param seed: of the rotation's signs, see :class:`~sqap_vla_ros.quantization.hadamard.HadamardRotation`
    :param block: of the rotation
    """

    bits: int | None = None
    size: int | None = None
    seed: int | None = None
    block: int | None = None


@dataclass(frozen=True)
class Structure:
    """All of it, by qualified name."""

    linears: dict[str, LinearEntry]
    norms: dict[str, NormEntry]
    online: dict[str, tuple[OnlineEntry, ...]]

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``config.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Structure:
        """Inverse of :meth:`to_json`.

        :raises TypeError, ValueError, KeyError, AttributeError: when it is something else
        """
        linears = {}
        for name, entry in values["linears"].items():
            counts = entry["rows_by_bits"]
            counts = None if counts is None else {int(bits): int(count) for bits, count in counts.items()}
            rows, columns = entry["shape"]
            linears[name] = LinearEntry(**{**entry, "shape": (int(rows), int(columns)), "rows_by_bits": counts})
        return cls(linears, {name: NormEntry(**entry) for name, entry in values["norms"].items()},
                   {name: tuple(OnlineEntry(**step) for step in steps) for name, steps in values["online"].items()})


def describe_structure(model: Quantizable, report: QuantizationReport) -> Structure:
    """Look at a quantized model.

    :param model: as ``quantize_`` left it
    :param report: what it returned
    """
    linears, norms, online = {}, {}, {}
    for name, module in model.named_modules():
        if isinstance(module, (QuantLinear, MixedLinear)):
            entry = report.linears[name]
            mixed = isinstance(module, MixedLinear)
            linears[name] = LinearEntry(
                shape=(module.out_features, module.in_features),
                weight_bits=None if mixed else cast(QuantLinear, module).weight_bits, rows_by_bits=entry.rows_by_bits,
                act_bits=module.act_bits, act_clip_ratio=module.act_clip_ratio, group_size=entry.group_size,
                rounding=entry.rounding, with_bias=module.bias is not None)
        elif isinstance(module, QuantRMSNorm):
            norms[name] = NormEntry(module.eps, module.bits, module.clip_ratio)
    for name, module in find_online_sites(model).items():
        steps = [_describe_step(name, step) for step in (module if isinstance(module, nn.Sequential) else [module])
                 if not isinstance(step, nn.Identity)]
        if steps:
            online[name] = tuple(steps)
    return Structure(linears, norms, online)


def find_online_sites(model: Quantizable) -> dict[str, nn.Module]:
    """What stands at each place for an online rotation, by qualified name."""
    sites, names = model.rotation_sites(), {id(module): name for name, module in model.named_modules()}
    found = {f"{names[id(mlp)]}.down_online": mlp.down_online for mlp in sites.mlps}
    return found | {f"{names[id(attention)]}.qk_online": attention.qk_online for attention in sites.attentions}


def restore_online_(model: Quantizable, structure: Structure) -> None:
    """Put rotations and the rounding of queries and keys back at their sites.

    :raises CheckpointError: for a site that the model does not have
    """
    sites = find_online_sites(model)
    for name, steps in structure.online.items():
        if name not in sites:
            raise CheckpointError(f"an online rotation stands at '{name}', which the model does not have")
        modules = [_restore_step(step) for step in steps]
        model.set_submodule(name, modules[0] if len(modules) == 1 else nn.Sequential(*modules))


def restore_norms_(model: Quantizable, structure: Structure) -> None:
    """Put rounding norms in the place of those with a gain.

    :raises CheckpointError: for a norm that the model does not have
    """
    modules = dict(model.named_modules())
    for name, entry in structure.norms.items():
        if not hasattr(modules.get(name), "eps"):
            raise CheckpointError(f"'{name}' is to be a rounding norm, and the model has no norm of that name")
        model.set_submodule(name, QuantRMSNorm(entry.eps, entry.bits, entry.clip_ratio))


def restore_linears_(model: Quantizable, structure: Structure, tensors: Mapping[str, Tensor], engine: Engine) -> None:
    """Put integer linears in the place of float ones.

    :param tensors: those of :meth:`LinearEntry.tensors`, by qualified name
    :param engine: what multiplies
    :raises CheckpointError: when rows of several widths are not those that are told of
    """
    for name, entry in structure.linears.items():
        model.set_submodule(name, restore_linear(
            entry, {key: tensors[f"{name}.{key}"] for key in entry.tensors()}, engine))


def restore_linear(entry: LinearEntry, tensors: Mapping[str, Tensor], engine: Engine) -> nn.Module:
    """An integer linear.

    :param tensors: those of :meth:`LinearEntry.tensors`
    :param engine: what multiplies
    :raises CheckpointError: when rows of several widths are not those that are told of
    """
    columns = entry.shape[1]
    if entry.weight_bits is not None:
        return QuantLinear(tensors["weight_packed"], tensors["weight_scale"], tensors.get("bias"), columns=columns,
                           weight_bits=entry.weight_bits, act_bits=entry.act_bits,
                           act_clip_ratio=entry.act_clip_ratio, engine=engine)
    packed = {bits: tensors[f"packed_{bits}"] for bits in INTEGER_WIDTHS if f"packed_{bits}" in tensors}
    return MixedLinear(tensors["row_bits"], packed, tensors.get("weight_scale"), tensors.get("wide"),
                       tensors.get("bias"), columns=columns, act_bits=entry.act_bits,
                       act_clip_ratio=entry.act_clip_ratio, engine=engine)


def list_tensors(model: Quantizable, structure: Structure) -> dict[str, tuple[torch.dtype | None, tuple[int, ...]]]:
    """Type and shape of every tensor of the artifact; None for a float part, stored in any of ``FLOAT_DTYPES``.

    :param model: with its norms restored, and float linears in the places of quantized ones
    :raises CheckpointError: for a linear that the model does not have, or has with another shape
    """
    modules = dict(model.named_modules())
    listed: dict[str, tuple[torch.dtype | None, tuple[int, ...]]] = {}
    for name, entry in structure.linears.items():
        linear = modules.get(name)
        if not isinstance(linear, nn.Linear) or (linear.out_features, linear.in_features) != entry.shape:
            raise CheckpointError(f"'{name}' is to be a quantized linear of shape {entry.shape}, and the model has "
                                  f"{linear if isinstance(linear, nn.Linear) else 'none of that name'}")
        listed |= {f"{name}.{key}": about for key, about in entry.tensors().items()}
    quantized = tuple(f"{name}." for name in structure.linears)
    state = cast(nn.Module, model).state_dict()
    return listed | {name: (None, tuple(tensor.shape)) for name, tensor in state.items()
                     if not name.startswith(quantized)}


def _describe_step(name: str, step: nn.Module) -> OnlineEntry:
    if isinstance(step, HadamardRotation):
        return OnlineEntry(size=step.size, seed=step.seed, block=step.block)
    if isinstance(step, RoundedQueries):
        return OnlineEntry(bits=step.bits)
    raise CheckpointError(f"'{name}' holds a {type(step).__name__}, which an artifact cannot tell of; quantize the "
                          "model by a recipe")


def _restore_step(step: OnlineEntry) -> nn.Module:
    if step.bits is not None:
        return RoundedQueries(step.bits)
    if step.size is None or step.seed is None:
        raise CheckpointError("a step of an online site is neither a rotation nor a rounding")
    # In float64 first, as when it was folded.
    return HadamardRotation(step.size, step.seed, block=step.block, dtype=torch.float64).to(torch.float32)
