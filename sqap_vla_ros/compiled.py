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

"""The package's own C, compiled where it is installed and opened by ctypes."""

from __future__ import annotations

import ctypes
import hashlib
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

_POINTER, _LENGTH, _NUMBER = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_float
_SIGNATURES = {
    "round_rows": [_POINTER] * 3 + [_LENGTH] * 2 + [_NUMBER] * 3,
    "round_normalized_rows": [_POINTER] * 3 + [_LENGTH] * 2 + [_NUMBER] * 4,
    "scale_rows": [_POINTER] * 4 + [_LENGTH] * 2,
    "scale_and_turn_rows": [_POINTER] * 6 + [_LENGTH] * 4,
    "gate_rows": [_POINTER] * 4 + [_LENGTH] * 2,
    "rotate_rows": [_POINTER] * 5 + [_LENGTH] * 4,
    "attend": ([_POINTER] + [_LENGTH] * 2) * 3 + [_POINTER] * 4 + [_LENGTH] * 4 + [_NUMBER],
    "cosine_steps": [_POINTER] * 3 + [_LENGTH] * 2 + [_NUMBER],
    "pick_farthest": [_POINTER] * 3 + [_LENGTH] * 2,
    "multiply_integers": [_POINTER] * 4 + [_LENGTH] * 3,
    "multiply_scaled": [_POINTER] * 7 + [_LENGTH] * 5,
    "attend_and_project": ([_POINTER] + [_LENGTH] * 2) * 3 + [_POINTER] * 7 + [_LENGTH] * 5 + [_NUMBER] * 4,
    "feed_forward": [_POINTER] * 9 + [_LENGTH] * 6 + [_NUMBER] * 6,
}


def load_library() -> ctypes.CDLL:
    """Open the C functions of the package, and tell ctypes what they take and give.

    :raises ImportError: when they are not compiled, or from other sources than those beside the package
    """
    folder = Path(__file__).parent
    for suffix in EXTENSION_SUFFIXES:
        path = folder / f"_fused_rows{suffix}"
        if path.exists():
            library = ctypes.CDLL(str(path))
            _check_sources(library, folder, path)
            for name, arguments in _SIGNATURES.items():
                function = getattr(library, name)
                function.argtypes, function.restype = arguments, None
            for name, count in (("attention_scratch", 4), ("feed_forward_scratch", 3)):
                function = getattr(library, name)
                function.argtypes, function.restype = [_LENGTH] * count, _LENGTH
            return library
    raise ImportError(f"_fused_rows.c in {folder} is not compiled; install the package with `make`, pip or colcon, "
                      "each of which does that with a C compiler")


def _check_sources(library: ctypes.CDLL, folder: Path, path: Path) -> None:
    # Beside the sources, as in an editable install, the library must be theirs: another would read other arguments.
    sources = sorted(folder.glob("*.c"))
    if sources:
        digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
        library.fused_sources.restype = ctypes.c_char_p
        if library.fused_sources().decode() != digest:
            raise ImportError(f"{path} was compiled from other sources than those beside it; run `make`, or install "
                              "the package again")


def dense(x: Tensor) -> Tensor:
    """Its numbers side by side; to be given a name, as what has none may be gone before its address is used."""
    return x if x.is_contiguous() else x.contiguous()


def empty_floats(*shape: int) -> Tensor:
    """What C writes float32 to, in the CPU's memory whatever torch's defaults are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def empty_bytes(count: int) -> Tensor:
    """Memory for C to work in."""
    return torch.empty(count, dtype=torch.int8, device="cpu")
