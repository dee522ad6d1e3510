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

"""Observations that tell a recipe what its linears will see.

The model says nothing of how it is run; an observation is a function that runs it. What the blocks need is caught on
the way: each is run alone on the inputs that the ones before it gave, so that only one block is at work at a time.
Tokens that pruning drops between blocks are still there then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sqap_vla_ros.errors import ConfigError

# One observation through the model, with gradients if they are on, to (1, T, D) normalised actions.
Run = Callable[[], Tensor]
Calibration = Sequence[Run]


class _Caught(Exception):
    """Ends an observation once the first block was called."""


@dataclass(frozen=True)
class BlockCall:
    """What one observation calls a block with.

    :param x: (1, S, C) hidden states; S differs between observations
    :param args: what follows, such as tables and masks; the same for every block
    :param kwargs: the same by name
    """

    x: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @torch.no_grad()
    def through(self, block: nn.Module) -> BlockCall:
        """Run a block, to the call of the next one."""
        out = block(self.x, *self.args, **self.kwargs)
        return BlockCall(out[0] if isinstance(out, tuple) else out, self.args, self.kwargs)


@torch.no_grad()
def catch_calls(first: nn.Module, calibration: Calibration) -> list[BlockCall]:
    """Run every observation as far as the first block, and keep what it is called with.

    :param first: block that all observations reach before any other
    :param calibration: observations of the same model
    :raises ConfigError: when an observation does not reach the block
    """
    calls: list[BlockCall] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(BlockCall(args[0], args[1:], kwargs))
        raise _Caught

    handle = first.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for index, run in enumerate(calibration):
            try:
                run()
            except _Caught:
                continue
            raise ConfigError(f"observation {index + 1} of {len(calibration)} of the calibration does not run the "
                              "first block of the model that is quantized; give functions that run this model object")
    finally:
        handle.remove()
    return calls


@contextmanager
def observe_inputs(observers: Mapping[nn.Module, Callable[[Tensor], None]]) -> Iterator[None]:
    """Show each module's input to its observer while the context lasts.

    :param observers: module to what takes its first positional input, (..., K)
    """
    handles = [module.register_forward_pre_hook(_showing(observer)) for module, observer in observers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _showing(observer: Callable[[Tensor], None]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def show(module: nn.Module, args: tuple[Any, ...]) -> None:
        observer(args[0])

    return show
