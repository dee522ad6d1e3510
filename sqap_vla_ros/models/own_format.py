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

"""A float checkpoint as this package writes it: config.json, which names the family, and model.safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.quantization.artifact import CONFIG_FILE, TENSOR_FILE

STORED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def save_model(model: nn.Module, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a checkpoint; each file appears whole or not at all.

    :param model: a float model of a family that needs no files beside its weights, with ``config.to_json()``
    :param folder: created when missing; files of an earlier checkpoint are replaced
    :param dtype: how tensors are stored, one of ``STORED_DTYPES``
    :raises CheckpointError: when the folder cannot be written
    """
    folder = Path(folder)
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    config: Any = model.config
    text = json.dumps(config.to_json(), indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / TENSOR_FILE, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
        _replace(folder / CONFIG_FILE, lambda path: path.write_text(text, encoding="utf-8"))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write a checkpoint to '{folder}': {error}") from error


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(draft)
        draft.chmod(0o644)  # safetensors makes files that only their owner can read
        os.replace(draft, path)
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()


def load_own_(model: nn.Module, path: Path, dtype: torch.dtype, wanted: Callable[[str], bool]) -> None:
    """Give a model tensors of a float checkpoint.

    :param model: may be on the meta device before
    :param path: of the file
    :param dtype: that they shall have
    :param wanted: whether a tensor of that name is meant
    :raises CheckpointError: naming the file or tensor that is missing, damaged or of another shape
    """
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing; a checkpoint folder holds {CONFIG_FILE} and {TENSOR_FILE}")
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if wanted(name)}
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            _check_names(path, set(filter(wanted, file.keys())), set(expected))
            for name, shape in expected.items():
                tensors[name] = _check(path, name, file.get_tensor(name), shape).to(dtype)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{path}' is damaged or cut short: {error}") from error
    model.load_state_dict(tensors, strict=False, assign=True)


def _check_names(path: Path, stored: set[str], expected: set[str]) -> None:
    missing, extra = sorted(expected - stored), sorted(stored - expected)
    for names, fault in ((missing, "lacks"), (extra, "has, but the model does not know,")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"'{path}' {fault} the tensor '{names[0]}'{more}; its {CONFIG_FILE} describes "
                                  "another model")


def _check(path: Path, name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    if tensor.dtype not in STORED_DTYPES:
        raise CheckpointError(f"tensor '{name}' in '{path}' is {tensor.dtype}; allowed are "
                              f"{', '.join(map(str, STORED_DTYPES))}")
    if tensor.shape != shape:
        raise CheckpointError(f"tensor '{name}' in '{path}' has shape {tuple(tensor.shape)}; {CONFIG_FILE} describes "
                              f"{tuple(shape)}")
    if not bool(tensor.isfinite().all()):
        raise CheckpointError(f"tensor '{name}' in '{path}' has values that are not finite")
    return tensor
