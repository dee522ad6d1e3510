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

"""A model in parts that are worked on one after another, so that a large one need not be in memory whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from sqap_vla_ros.quantization.linear import Siblings


class Named(Protocol):
    """What a model says of its modules, as ``nn.Module`` does."""

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """All modules by qualified name."""


@dataclass(frozen=True, eq=False)
class Part:
    """One block, or all that lies in no block.

    :param prefix: beginning of the names of the block's tensors; empty for the rest
    :param blocks: the same of all blocks
    :param modules: of this part, each by itself, as the model was built
    """

    prefix: str
    blocks: tuple[str, ...]
    modules: frozenset[nn.Module]

    def holds(self, name: str) -> bool:
        """Whether a tensor of that qualified name is of this part, whatever its module has become."""
        return name.startswith(self.prefix) if self.prefix else not name.startswith(self.blocks)


class Store(Protocol):
    """Where parts are while nobody works on them."""

    def bring_(self, part: Part) -> None:
        """Give a part its weights, float32 or float64."""

    def put_away_(self, part: Part) -> None:
        """Take what the part has become; its memory may be given back."""


class Memory:
    """A store of models that are in memory all the time."""

    def bring_(self, part: Part) -> None:
        """Nothing; it is there."""

    def put_away_(self, part: Part) -> None:
        """Nothing; it stays."""


MEMORY = Memory()


@torch.no_grad()
def forget_(model: Named, part: Part) -> None:
    """Give back the memory of a part's tensors, which from then on have a shape and no values.

    :param model: whole
    :param part: of it, whatever its modules have become
    """
    now = {module for name, module in model.named_modules() if part.holds(f"{name}.")}
    # With what they were before, to which lists of the model's linears still hold.
    for module in now | part.modules:
        module._apply(lambda tensor: torch.empty_like(tensor, device="meta"), recurse=False)
        for value in vars(module).values():
            if isinstance(value, Siblings):
                value.forget()


def split_parts(model: Named, blocks: Sequence[nn.Module]) -> list[Part]:
    """All that lies in no block, then each block.

    :param model: whole
    :param blocks: of it, in order
    """
    names = {module: name for name, module in model.named_modules()}
    prefixes = tuple(f"{names[block]}." for block in blocks)
    inside = [frozenset(block.modules()) for block in blocks]
    rest = frozenset(names).difference(*inside)
    return [Part("", prefixes, rest),
            *(Part(prefix, prefixes, modules) for prefix, modules in zip(prefixes, inside, strict=True))]
