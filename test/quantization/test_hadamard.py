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

"""Hadamard matrices are exact, and rotations made of them are orthonormal and never dense."""

import pytest
import torch

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.quantization.hadamard import HadamardRotation, hadamard_matrix, is_constructible, split_size


@pytest.mark.parametrize("size", [1, 2, 4, 8, 12, 20, 24, 28, 36, 40, 64, 72, 128, 172, 344, 768, 1152])
def test_rows_are_signs_and_orthogonal(size: int) -> None:
    matrix = hadamard_matrix(size)
    assert matrix.dtype == torch.int8
    assert torch.equal(matrix.abs(), torch.ones_like(matrix))
    wide = matrix.to(torch.int64)
    assert torch.equal(wide @ wide.T, size * torch.eye(size, dtype=torch.int64))


@pytest.mark.parametrize("size", [0, -4, 3, 6, 10, 14, 43, 86, 100, 4304])
def test_size_without_construction_is_refused_by_name(size: int) -> None:
    assert not is_constructible(size)
    if size > 0:
        with pytest.raises(ConfigError, match=f"of size {size} is"):
            hadamard_matrix(size)


def test_refusal_names_the_largest_block() -> None:
    with pytest.raises(ConfigError, match="blocks, of 16 at most"):
        HadamardRotation(4304, 0)
    rotation = HadamardRotation(4304, 0, block=16, dtype=torch.float64)
    x = torch.randn(2, 4304, dtype=torch.float64)
    assert torch.allclose(rotation(x).norm(dim=-1), x.norm(dim=-1), rtol=1e-12)
    with pytest.raises(ConfigError, match="cannot be cut in blocks of 7"):
        HadamardRotation(64, 0, block=7)


@pytest.mark.parametrize(("size", "split"), [(64, (1, 64)), (72, (1, 72)), (128, (1, 128)), (256, (16, 16)),
                                             (768, (24, 32)), (1152, (36, 32)), (4096, (64, 64)), (11008, (172, 64))])
def test_split_is_the_cheapest(size: int, split: tuple[int, int]) -> None:
    assert split_size(size) == split


@pytest.mark.parametrize("size", [64, 72, 256, 768, 1152])
def test_rotation_is_one_orthonormal_matrix_of_signs(size: int) -> None:
    rotation = HadamardRotation(size, 5, dtype=torch.float64)
    dense = rotation(torch.eye(size, dtype=torch.float64))
    assert torch.allclose(dense @ dense.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(dense.abs(), torch.full_like(dense, size**-0.5), atol=1e-12)
    x = torch.randn(3, 5, size, dtype=torch.float64)
    assert torch.allclose(rotation(x), x @ dense, atol=1e-12)


def test_openvla_width_is_rotated_by_two_thin_factors() -> None:
    rotation = HadamardRotation(11008, 0, dtype=torch.float64)
    assert sum(buffer.numel() for buffer in rotation.buffers()) == 172**2 + 64**2 + 11008 + 172**2
    x = torch.randn(2, 11008, dtype=torch.float64)
    y = rotation(x)
    assert torch.allclose(y @ y.T, x @ x.T, rtol=1e-12)
    unit = torch.zeros(11008, dtype=torch.float64)
    unit[4711] = 1.0
    assert torch.allclose(rotation(unit).abs() * 11008**0.5, torch.ones_like(unit), atol=1e-12)


def test_seed_decides_the_signs() -> None:
    x = torch.randn(4, 256)
    first = HadamardRotation(256, 1)(x)
    assert torch.equal(first, HadamardRotation(256, 1)(x))
    assert not torch.allclose(first, HadamardRotation(256, 2)(x))


def test_blocks_are_rotated_alike_and_apart() -> None:
    rotation = HadamardRotation(96, 0, block=32, dtype=torch.float64)
    x = torch.randn(96, dtype=torch.float64)
    whole = rotation(x)
    alone = HadamardRotation(32, 0, dtype=torch.float64)
    for start in (0, 32, 64):
        assert torch.allclose(whole[start:start + 32], alone(x[start:start + 32]), atol=1e-12)


def test_an_outlier_is_spread_over_all_channels() -> None:
    x = torch.zeros(1, 4096)
    x[0, 7] = 100.0
    assert HadamardRotation(4096, 0)(x).abs().max() == pytest.approx(100.0 / 64.0, rel=1e-5)
