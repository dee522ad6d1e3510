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

"""Every engine gives the exact integer sums, to the bit."""

import numpy as np
import pytest
import torch

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.quantization.integer import largest_code, pack
from sqap_vla_ros.quantization.kernels import ENGINES, get_engine

SHAPES = [(1, 1, 1), (1, 2, 1), (3, 1, 5), (2, 3, 7), (17, 31, 13), (16, 64, 1), (33, 63, 8), (5, 257, 31),
          (160, 256, 768), (7, 768, 256)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_exact(engine: str, bits: int, shape: tuple[int, int, int]) -> None:
    rows, columns, channels = shape
    largest = largest_code(bits)
    activations = torch.randint(-largest, largest + 1, (rows, columns), dtype=torch.int8)
    codes = torch.randint(-largest, largest + 1, (channels, columns), dtype=torch.int8)
    chosen = get_engine(engine)
    sums = chosen.int_matmul(activations, chosen.prepare(pack(codes, bits), bits, columns))
    assert sums.dtype == torch.int32
    expected = activations.numpy().astype(np.int64) @ codes.numpy().astype(np.int64).T
    assert np.array_equal(sums.numpy(), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_largest_sums_do_not_overflow(engine: str) -> None:
    columns = 11008
    chosen = get_engine(engine)
    weight = chosen.prepare(pack(torch.full((2, columns), -127, dtype=torch.int8), 8), 8, columns)
    sums = chosen.int_matmul(torch.full((3, columns), 127, dtype=torch.int8), weight)
    assert torch.equal(sums, torch.full((3, 2), -127 * 127 * columns, dtype=torch.int32))


@pytest.mark.parametrize("engine", ENGINES)
def test_activations_may_be_a_view(engine: str) -> None:
    activations = torch.randint(-7, 8, (6, 128), dtype=torch.int8)[:, ::2]
    codes = torch.randint(-7, 8, (9, 64), dtype=torch.int8)
    chosen = get_engine(engine)
    sums = chosen.int_matmul(activations, chosen.prepare(pack(codes, 4), 4, 64))
    assert torch.equal(sums, activations.int() @ codes.int().T)


def test_unknown_engine_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown engine 'gpu'; known are reference, cpu"):
        get_engine("gpu")
