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

"""Rotary position embedding, as Llama has it: the first half of a head turns against the second."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sqap_vla_ros.quantization.integer import Rows, take_rows


class Rope(NamedTuple):
    """Tables of rotary position embedding, (B, 1, S, head_dim) each; the first half of ``sin`` is negative."""

    cos: Tensor
    sin: Tensor

    def take(self, rows: Rows) -> Rope:
        """The tables of some tokens."""
        cos, sin = (take_rows(table[:, 0], rows)[:, None] for table in self)
        return Rope(cos, sin)

    def flatten(self) -> tuple[Tensor, Tensor]:
        """(B S, head_dim), a row for each token."""
        return self.cos.flatten(0, 2), self.sin.flatten(0, 2)


def rope_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rope:
    """Make the tables for (B, S) positions."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    angles = (positions.to(wide)[..., None] / _wavelengths(head_dim, theta, wide, positions.device))[:, None]
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return Rope(torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1))


@lru_cache(maxsize=16)
def _wavelengths(head_dim: int, theta: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        exponent = torch.arange(0, head_dim, 2, device=device, dtype=dtype) / head_dim
        powers: Tensor = theta**exponent
    return powers


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, H, S, head_dim) by the tables of :func:`rope_tables`, first half against second half."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
