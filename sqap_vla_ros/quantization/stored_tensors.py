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

"""Tensors in a safetensors file, each held to its type, shape and hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sqap_vla_ros.errors import CheckpointError

# safetensors' names.
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I32": torch.int32, "I64": torch.int64,
           "U8": torch.uint8}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ADVICE = "copy the folder again, or make it again"


@dataclass(frozen=True)
class StoredTensor:
    """What is known of a tensor before it is read.

    :param dtype: by safetensors' name, such as 'BF16'
    :param shape: its sizes
    :param sha256: of its bytes
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The type; None for one that is not known here."""
        return _DTYPES.get(self.dtype)


def name_dtype(dtype: torch.dtype) -> str:
    """safetensors' name of a type, or torch's where no checkpoint may hold it."""
    return _NAMES.get(dtype, str(dtype))


def describe_tensor(tensor: Tensor) -> StoredTensor:
    """What a tensor is known by; on the CPU and contiguous."""
    return StoredTensor(_NAMES[tensor.dtype], tuple(tensor.shape), _hash(tensor))


class TensorWriter:
    """A safetensors file that is written tensor by tensor.

    The header, which tells where each tensor lies, comes first in the file and is written last, into room that is kept
    free for it. Tensors lie as they come, but for those whose bytes are no multiple of 8, which would leave the ones
    behind them at odd places; they wait until the end.

    :param file: empty, open for writing bytes
    :param room: bytes for the header
    :param metadata: text by name, for the header
    """

    def __init__(self, file: BinaryIO, room: int, metadata: Mapping[str, str]) -> None:
        self._file = file
        self._room = -(-(8 + room + len(json.dumps(dict(metadata)))) // 64) * 64 - 8
        self._file.seek(8 + self._room)
        self._header: dict[str, Any] = {"__metadata__": dict(metadata)}
        self._stored: dict[str, StoredTensor] = {}
        self._odd: dict[str, Tensor] = {}
        self._end = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor that is on the CPU and contiguous.

        :raises OSError: when it cannot be written
        """
        self._stored[name] = describe_tensor(tensor)
        if tensor.nbytes % 8:
            self._odd[name] = tensor
        else:
            self._write(name, tensor)

    def finish(self) -> dict[str, StoredTensor]:
        """Write the header, and tell what the file holds.

        :raises OSError: when it cannot be written
        """
        for name, tensor in sorted(self._odd.items(), key=lambda item: -item[1].itemsize):
            self._write(name, tensor)
        header = json.dumps(self._header, separators=(",", ":")).encode()
        if len(header) > self._room:
            raise ValueError(f"the header takes {len(header)} bytes, and {self._room} were kept free")
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))
        return self._stored

    def _write(self, name: str, tensor: Tensor) -> None:
        begin, self._end = self._end, self._end + tensor.nbytes
        self._file.write(tensor.flatten().view(torch.uint8).numpy().data)
        self._header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape),
                              "data_offsets": [begin, self._end]}


def list_stored(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """safetensors' type, and shape, of each tensor in a file; only its header is read.

    :raises CheckpointError: when the file is missing or its header damaged
    """
    header, _ = _read_header(path, "")
    try:
        return {name: (str(entry["dtype"]), tuple(map(int, entry["shape"]))) for name, entry in header.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the header of '{path}' is damaged: {error!r}; {_ADVICE}") from error


def read_tensors(path: Path, listed: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    """Read every tensor, one at a time, into memory of its own.

    :param path: of the file
    :param listed: what it must hold, by name
    :raises CheckpointError: naming the file and the tensor that is missing, extra, cut off or not as it was written
    """
    header, begin = _read_header(path, f", '{next(iter(listed), '')}' and all others,")
    size = path.stat().st_size
    for name in listed:
        if name not in header:
            raise CheckpointError(f"'{path}' lacks the tensor '{name}'; it belongs to another config.json: {_ADVICE}")
    # In the file's order: the first that is cut off is named, and reading goes straight through.
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        if name not in listed:
            raise CheckpointError(f"'{path}' has the tensor '{name}', of which its config.json does not tell; it "
                                  f"belongs to another one: {_ADVICE}")
        if begin + entry["data_offsets"][1] > size:
            raise CheckpointError(f"'{path}' is cut short within the tensor '{name}': {_ADVICE}")
    name = ""
    try:
        with safe_open(path, framework="pt") as file:
            for name, about in listed.items():
                # A copy: mapped memory follows the file, and is not aligned as torch aligns its own.
                tensor = file.get_tensor(name).clone()
                if describe_tensor(tensor) != about:
                    raise CheckpointError(f"the tensor '{name}' in '{path}' is not as it was written: its hash, type "
                                          f"or shape is another. {_ADVICE.capitalize()}")
                yield name, tensor
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"'{path}' cannot be read{f' at the tensor {name!r}' if name else ''}: {error}; "
                              f"{_ADVICE}") from error


def _read_header(path: Path, named: str) -> tuple[dict[str, dict[str, Any]], int]:
    # Names to safetensors' entries, and where the tensors begin; ``named`` says which ones an error is about.
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing; a checkpoint holds it beside config.json")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if 8 + length > path.stat().st_size:
                raise ValueError("it is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for entry in header.values():
            start, end = entry["data_offsets"]
            if not 0 <= int(start) <= int(end):
                raise ValueError(f"{start} to {end} is no place in a file")
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(f"the header of '{path}' is damaged or cut short, so that no tensor{named} can be found: "
                              f"{error}; {_ADVICE}") from error
    return header, 8 + length


def _hash(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.flatten().view(torch.uint8).numpy().data).hexdigest()
