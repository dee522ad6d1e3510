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

"""The widths that a row of a weight may have, in bits."""

from __future__ import annotations

import torch
from torch import Tensor

from sqap_vla_ros.errors import ConfigError

WIDTHS = (0, 2, 4, 8, 16)
INTEGER_WIDTHS = (2, 4, 8)


def check_row_bits(row_bits: Tensor, rows: int) -> Tensor:
    """Bits by row, (rows,) uint8, in memory of their own.

    :raises ConfigError: when there are more or fewer of them, or one that no row may have
    """
    if row_bits.shape != (rows,):
        raise ConfigError(f"row_bits has shape {tuple(row_bits.shape)}; a layer of {rows} outputs needs ({rows},)")
    unknown = sorted(set(row_bits.tolist()) - set(WIDTHS))
    if unknown:
        raise ConfigError(f"row_bits holds {', '.join(map(str, unknown))}; a row has one of "
                          f"{', '.join(map(str, WIDTHS))} bits")
    return row_bits.to(torch.uint8, copy=True)
