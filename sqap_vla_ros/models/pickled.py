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

"""What ``torch.save`` has written, as named tensors; nothing but tensors and plain containers is unpickled."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqap_vla_ros.errors import CheckpointError

ADVICE = "copy it again"


def load_pickle(path: Path, root: str) -> Any:
    """What a file holds, or one entry of it; its tensors are mapped, not read.

    :raises CheckpointError: when it is missing, damaged, or has no such entry
    """
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing")
    try:
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"'{path}' is damaged, cut short or holds more than tensors: "
                              f"{str(error).splitlines()[0] if str(error) else repr(error)}; {ADVICE}") from error
    if not root:
        return loaded
    if not isinstance(loaded, Mapping) or root not in loaded:
        came = ", ".join(map(repr, loaded)) if isinstance(loaded, Mapping) else type(loaded).__name__
        raise CheckpointError(f"'{path}' holds its tensors not under '{root}', but {came or 'nothing'}; it is of "
                              "another model")
    return loaded[root]


def flatten_tensors(path: Path, value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested mappings, its names joined by dots behind ``name``.

    :raises CheckpointError: for anything that is neither
    """
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flatten_tensors(path, inner, f"{name}.{key}" if name else str(key))
    else:
        raise CheckpointError(f"'{path}' holds {type(value).__name__} under '{name}', where a tensor belongs; it is of "
                              "another model")
