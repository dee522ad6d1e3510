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

"""What the registry must know of a kind of model: how a checkpoint of it is recognized, described, built and filled.

A model is built on the meta device, where a tensor has a shape and a type but takes no memory, and is given its weights
one by one afterwards. So building one of 7 billion weights takes a second, and no weight is ever in memory twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.models.vla import ModelSettings

_Module = TypeVar("_Module", bound=nn.Module)
Wanted = Callable[[str], bool]


def all_names(name: str) -> bool:
    """Every tensor is wanted."""
    return True


@dataclass(frozen=True)
class Opened:
    """A checkpoint as it was published; nothing of its weights is read yet.

    :param config: of the family. What its ``to_json()`` gives, with "family" in it, is what an artifact holds of it,
        and :attr:`Family.read_config` makes the same of that
    :param load_: gives a model that was built of ``config`` on the meta device its weights, in a type; those of whose
        qualified names it is told that they are wanted, and of a part of the family's own, in no block, all or none
    :param tensors: safetensors' type, and shape, of each tensor that is read, by its name in the model
    :param sources: every file that decides what the model does, weights among them; what is hashed
    :param companions: files that go with an artifact, by the names that they have there
    :param check: compares an empty model with the names and shapes in the files; raises CheckpointError
    """

    config: Any
    load_: Callable[[nn.Module, torch.dtype, Wanted], None]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    sources: tuple[Path, ...]
    companions: Mapping[str, Path] = field(default_factory=dict)
    check: Callable[[nn.Module], object] = lambda model: None


@dataclass(frozen=True)
class Family:
    """A kind of model.

    :param read_config: the values of this package's own config.json to the model's configuration; raises
        CheckpointError
    :param build: a configuration, and the files beside the weights by name, to a model with unset weights
    :param companions: names of the files that must lie beside the weights, such as a tokenizer
    :param recognize: whether a folder with a config.json of these values is a published checkpoint of this family;
        asked only where config.json names no family, and must not read tensors
    :param open: finds out what such a folder holds; raises CheckpointError for the folder and ConfigError for settings
        that do not fit it. None for a family that was never published in a layout of its own
    :param float32_parts: beginnings of the names of tensors that are float32 whatever the others compute in
    :param settings: which of :class:`~sqap_vla_ros.models.vla.ModelSettings` that are empty unless somebody names them,
        "dataset" and "robot", mean something to its models; the others are refused
    """

    read_config: Callable[[dict[str, Any]], Any]
    build: Callable[[Any, Mapping[str, Path]], nn.Module]
    companions: tuple[str, ...] = ()
    recognize: Callable[[Path, dict[str, Any]], bool] = lambda folder, values: False
    open: Callable[[Path, dict[str, Any], ModelSettings], Opened] | None = None
    float32_parts: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


def without_draws() -> AbstractContextManager[Any]:
    """While it lasts, new modules get no random weights; what they hold is arbitrary.

    For modules whose weights come from a file. The state of the generator stays as it is. On the meta device, moreover,
    even to draw nothing would first import torch's compiler, which takes seconds.
    """
    return _WithoutDraws()


class _WithoutDraws(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if func is torch.randn else func)(*args, **kwargs)


def build_empty(build: Callable[..., _Module], *values: Any) -> _Module:
    """Build a module on the meta device.

    :param build: a class, or a function that gives a module
    :param values: its arguments
    """
    with without_draws(), torch.device("meta"):
        return build(*values)


def fill_module(place: str | Path, module: _Module, tensors: Mapping[str, Tensor]) -> _Module:
    """Give a module its tensors as they are: same type, same memory.

    :param place: where they are from, for messages
    :raises CheckpointError: naming the tensor that is missing, of another shape or unknown
    """
    expected = module.state_dict()
    missing, unknown = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    for names, fault in ((missing, "lacks"), (unknown, "has unknown")):
        if names:
            raise CheckpointError(f"'{place}' {fault} tensors: {', '.join(sorted(names)[:5])}")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise CheckpointError(f"'{place}' has {name} with shape {tuple(tensors[name].shape)}; with the sizes of "
                                  f"its other tensors it must be {tuple(tensor.shape)}")
    module.load_state_dict(tensors, assign=True)
    return module.eval().requires_grad_(False)
