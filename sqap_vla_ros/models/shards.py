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

"""Tensors that lie in one file or several, read one at a time.

A model's weights may be larger than memory, so nothing is read before it is asked for. A page of a mapped file counts
as this process's memory until the file is closed; therefore a file is opened anew whenever a gigabyte of it was read.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.models.pickled import ADVICE, flatten_tensors, load_pickle
from sqap_vla_ros.quantization.stored_tensors import StoredTensor, list_stored, name_dtype

INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REOPEN_BYTES = 1 << 30


class TensorFile(ABC):
    """One file, whose tensors are known by name before any is read.

    :param path: of the file
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stored = self._list()
        self.shapes = {name: shape for name, (_, shape) in self.stored.items()}
        self._read_bytes = 0

    def read(self, name: str) -> Tensor:
        """A tensor in memory of its own, in the type it is stored in."""
        tensor = self._get(name)
        # Also because mapped memory is not aligned as torch aligns its own.
        own = torch.empty_like(tensor, memory_format=torch.contiguous_format).copy_(tensor)
        self._read_bytes += own.nbytes
        if self._read_bytes >= REOPEN_BYTES:
            self.close()
        return own

    def close(self) -> None:
        """Give back the memory of what was read; the next tensor opens the file again."""
        self._close()
        self._read_bytes = 0

    @abstractmethod
    def _list(self) -> dict[str, tuple[str, tuple[int, ...]]]: ...  # safetensors' type, and shape

    @abstractmethod
    def _get(self, name: str) -> Tensor: ...

    @abstractmethod
    def _close(self) -> None: ...


class SafetensorsFile(TensorFile):
    """A file of the safetensors format."""

    _handle: Any = None

    def _list(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        stored = list_stored(self.path)
        with self.path.open("rb") as file:
            begin = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(begin - 8))
        ends = {name: header[name]["data_offsets"][1] for name in stored}
        size = self.path.stat().st_size
        for name, end in sorted(ends.items(), key=lambda item: item[1]):
            if begin + end > size:
                raise CheckpointError(f"'{self.path}' is cut short within the tensor '{name}': {ADVICE}")
        return stored

    def _get(self, name: str) -> Tensor:
        try:
            if self._handle is None:
                self._handle = safe_open(self.path, framework="pt")
            return self._handle.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"'{self.path}' cannot be read at the tensor '{name}': {error}; {ADVICE}") from error

    def _close(self) -> None:
        self._handle = None


class PickleFile(TensorFile):
    """A file written by ``torch.save``; names within names are joined by dots.

    :param path: of the file
    :param root: the one entry to be read, or empty to read all of them
    """

    def __init__(self, path: Path, root: str = "") -> None:
        self._root = root
        self._tensors: dict[str, Tensor] | None = None
        super().__init__(path)

    def _list(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {name: (name_dtype(tensor.dtype), tuple(tensor.shape)) for name, tensor in self._open().items()}

    def _get(self, name: str) -> Tensor:
        return self._open()[name]

    def _close(self) -> None:
        self._tensors = None

    def _open(self) -> dict[str, Tensor]:
        if self._tensors is None:
            self._tensors = dict(flatten_tensors(self.path, load_pickle(self.path, self._root), ""))
        return self._tensors


class TensorFiles:
    """The tensors of several files, by name.

    :param files: which hold no name twice
    :raises CheckpointError: when one is in two files
    """

    def __init__(self, files: Iterable[TensorFile]) -> None:
        self._files: dict[str, TensorFile] = {}
        self._last: TensorFile | None = None  # the only one that is open
        for file in files:
            for name in file.shapes:
                if name in self._files:
                    raise CheckpointError(f"the tensor '{name}' is in '{self._files[name].path}' and in '{file.path}'; "
                                          "remove the file that belongs to another checkpoint")
                self._files[name] = file

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor."""
        return tuple(self._files)

    @property
    def place(self) -> str:
        """The files, for a message."""
        paths = self.paths
        return f"'{paths[0]}'" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "") if paths else "no file"

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file."""
        return tuple(sorted({file.path for file in self._files.values()}))

    def path(self, name: str) -> Path:
        """The file that holds a tensor.

        :raises CheckpointError: when none does
        """
        return self._file(name).path

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a tensor, without reading it.

        :raises CheckpointError: when no file holds it
        """
        return self._file(name).shapes[name]

    def stored(self, name: str) -> tuple[str, tuple[int, ...]]:
        """safetensors' type of a tensor, such as 'BF16', and its shape, without reading it.

        :raises CheckpointError: when no file holds it
        """
        return self._file(name).stored[name]

    def outline(self, prefix: str) -> dict[str, Tensor]:
        """What :meth:`read_part` would give, on the meta device, where it takes no memory and no file is read."""
        return {name.removeprefix(prefix): torch.empty(self.shape(name), dtype=self._dtype(name), device="meta")
                for name in self.names if name.startswith(prefix)}

    def read_part(self, prefix: str) -> dict[str, Tensor]:
        """Every tensor whose name begins with ``prefix``, by the rest of its name; see :meth:`read`."""
        return {name.removeprefix(prefix): self.read(name) for name in self.names if name.startswith(prefix)}

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """A tensor in memory of its own, in the type it is stored in.

        :param name: of the tensor
        :param shape: what it must be, or None for any
        :raises CheckpointError: naming file and tensor, when it is missing, of another shape, or not of finite numbers
        """
        file = self._file(name)
        if self._last is not None and self._last is not file:
            self._last.close()
        self._last = file
        if shape is not None and self.shape(name) != tuple(shape):
            raise CheckpointError(f"the tensor '{name}' in '{file.path}' has shape {self.shape(name)}, but the others "
                                  f"need {tuple(shape)}; the file is of another model")
        tensor = file.read(name)
        if tensor.dtype not in DTYPES:
            raise CheckpointError(f"the tensor '{name}' in '{file.path}' is {tensor.dtype}; allowed are "
                                  f"{', '.join(map(str, DTYPES))}: convert it")
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"the tensor '{name}' in '{file.path}' has values that are not finite; {ADVICE}")
        return tensor

    def _dtype(self, name: str) -> torch.dtype | None:
        return StoredTensor(*self.stored(name), "").torch_dtype

    def _file(self, name: str) -> TensorFile:
        if name not in self._files:
            raise CheckpointError(f"{self.place} has no tensor '{name}'; the checkpoint is of another model, or not "
                                  "whole")
        return self._files[name]


def open_safetensors(folder: Path) -> TensorFiles:
    """The tensors of a folder as ``transformers`` saves it: shards with an index, or one file.

    Every file's header is read and compared with the index.

    :param folder: of the checkpoint
    :raises CheckpointError: naming the file or tensor that is missing, damaged, cut short or in excess
    """
    index = folder / INDEX_FILE
    if not index.is_file():
        if not (folder / SINGLE_FILE).is_file():
            raise CheckpointError(f"'{folder}' has neither '{INDEX_FILE}' nor '{SINGLE_FILE}'; give a folder as "
                                  "transformers saves it")
        return TensorFiles([SafetensorsFile(folder / SINGLE_FILE)])
    listed = _read_index(index)
    files = [SafetensorsFile(folder / name) for name in sorted(set(listed.values()))]
    held = {(name, file.path.name) for file in files for name in file.shapes}
    for name, file_name in listed.items():
        if (name, file_name) not in held:
            raise CheckpointError(f"'{folder / file_name}' lacks the tensor '{name}' that '{INDEX_FILE}' places there; "
                                  "the files are of different checkpoints")
    for name, file_name in sorted(held):
        if listed.get(name) != file_name:
            raise CheckpointError(f"'{folder / file_name}' has the tensor '{name}', of which '{INDEX_FILE}' does not "
                                  "tell; the files are of different checkpoints")
    return TensorFiles(files)


def open_pickle(path: Path, root: str = "") -> TensorFiles:
    """The tensors of one file that ``torch.save`` wrote; see :class:`PickleFile`.

    Nothing but tensors and plain containers is unpickled, so a file cannot run code.

    :param path: of the file
    :param root: the one entry to be read, or empty to read all of them
    :raises CheckpointError: when the file is missing, damaged, of an old format, or holds other things than tensors
    """
    return TensorFiles([PickleFile(path, root)])


def _read_index(path: Path) -> dict[str, str]:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"'{path}' is not readable as an index of tensors: {error!r}; {ADVICE}") from error
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"'{path}' must map each tensor to its file under 'weight_map'; {ADVICE}")
    for name, file_name in listed.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise CheckpointError(f"'{path}' places the tensor '{name}' in {file_name!r}, which is no file beside it")
    return listed
