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

"""Hadamard matrices and the orthonormal rotation made of them.

A matrix of n = b 2^k rows is the Kronecker product of two small ones, so a rotation costs two thin products and
never one of n x n.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sqap_vla_ros import fused_rows
from sqap_vla_ros.errors import ConfigError

# Smallest constructed order for each odd part of a size.
_BASE_OF_ODD_PART = {1: 1, 3: 12, 5: 20, 7: 28, 9: 36, 43: 172}
# Up to here one factor is applied as it is; the cost of splitting would exceed what it saves.
_LARGEST_SINGLE_FACTOR = 128

# Williamson (Duke Math. J. 11, 1944) of order 172: four symmetric circulant 43 x 43 blocks. Each first row is 1 and
# then constant on the cosets of {1, 6, 7, 36, 37, 42} mod 43, which leaves seven signs a row.
_COSET_LEADERS_43 = (1, 2, 3, 4, 5, 9, 10)
_COSET_GROUP_43 = (1, 6, 7, 36, 37, 42)
_WILLIAMSON_SIGNS_43 = (
    (1, 1, 1, 1, -1, -1, -1),
    (1, 1, -1, -1, -1, -1, 1),
    (1, -1, 1, -1, 1, -1, 1),
    (-1, 1, 1, -1, -1, 1, 1),
)


def is_constructible(size: int) -> bool:
    """True when :func:`hadamard_matrix` has a construction for ``size``."""
    if size < 1:
        return False
    base = _BASE_OF_ODD_PART.get(_odd_part(size))
    return base is not None and size % base == 0


def hadamard_matrix(size: int) -> Tensor:
    """Build a Hadamard matrix: entries +-1, rows orthogonal.

    Sylvester doubling of a base: Paley I (12, 20), Paley II (28, 36) or Williamson (172).

    :param size: a power of two, or a power of two times 12, 20, 28, 36 or 172
    :return: (size, size) int8
    :raises ConfigError: for a size with no construction here
    """
    _check_constructible(size)
    base = _BASE_OF_ODD_PART[_odd_part(size)]
    matrix = _base_matrix(base)
    while matrix.shape[0] < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix


def split_size(size: int) -> tuple[int, int]:
    """Choose the two Kronecker factors of a size with the smallest sum; the first is 1 for a small size.

    :raises ConfigError: for a size with no construction here
    """
    _check_constructible(size)
    if size <= _LARGEST_SINGLE_FACTOR:
        return 1, size
    base = _BASE_OF_ODD_PART[_odd_part(size)]
    candidates = []
    right = 1
    while size % (base * right) == 0:
        candidates.append((size // right, right))
        right *= 2
    return min(candidates, key=sum)


class HadamardRotation(nn.Module):
    """An orthonormal rotation x -> x R of the last dimension, with signs drawn from a seed.

    R = R1 (x) R2, each Ri a Hadamard matrix whose rows carry random signs, over the square root of its order. With
    ``block`` the last dimension is cut in blocks of that size, each rotated alike: the way out for sizes that have
    no construction.

    :param size: length of the last dimension
    :param seed: decides the signs
    :param block: size of the diagonal blocks; None rotates the whole dimension
    :param dtype: of the factors, and so of what can be rotated
    :raises ConfigError: when the size, or the block, has no construction, or the block does not divide the size
    """

    left: Tensor | None
    right: Tensor
    signs: Tensor
    base: Tensor

    def __init__(self, size: int, seed: int, *, block: int | None = None, dtype: torch.dtype = torch.float32,
                 device: torch.device | str = "cpu") -> None:
        super().__init__()
        if block is not None and (block < 1 or size % block):
            raise ConfigError(f"a rotation of size {size} cannot be cut in blocks of {block}; take a divisor of {size}")
        self.size, self.seed, self.block = size, seed, block
        generator = torch.Generator().manual_seed(seed)
        orders = split_size(block or size)
        signs = [_draw_signs(order, generator) for order in orders]
        left, right = ((hadamard_matrix(order) * sign[:, None]).to(device, dtype)
                       for order, sign in zip(orders, signs, strict=True))
        # Not in the state: size, seed and block give them back.
        self.register_buffer("left", left.T.contiguous() if left.shape[0] > 1 else None, persistent=False)
        self.register_buffer("right", right, persistent=False)
        # The same as signs and a small matrix between powers of two, for the compiled form.
        base = _BASE_OF_ODD_PART[_odd_part(left.shape[0])]
        self.register_buffer("signs", torch.kron(*signs).to(device, dtype), persistent=False)
        self.register_buffer("base", hadamard_matrix(base).to(device, dtype), persistent=False)
        self._is_fusible = _odd_part(right.shape[0]) == 1 and right.shape[0] % fused_rows.LANES == 0

    def forward(self, x: Tensor) -> Tensor:
        """Rotate.

        :param x: (..., size)
        """
        # On several threads torch's products are quicker.
        if fused_rows.is_fused_for(x) and self.fused_form is not None and torch.get_num_threads() == 1:
            return fused_rows.rotate(x, *self.fused_form)
        rows = x.reshape(-1, self.right.shape[0]) @ self.right
        if self.left is not None:
            squares = rows.view(-1, self.left.shape[0], self.right.shape[0])
            rows = torch.bmm(self.left.expand(squares.shape[0], -1, -1), squares)
        return rows.reshape(x.shape)

    @property
    def fused_form(self) -> tuple[Tensor, Tensor, int] | None:
        """What :func:`~sqap_vla_ros.fused_rows.rotate` takes; None for sizes and types that it does not."""
        if not self._is_fusible or self.signs.dtype != torch.float32:
            return None
        return self.signs, self.base, self.right.shape[0]

    def extra_repr(self) -> str:
        """For ``print``."""
        return f"size={self.size}, seed={self.seed}, block={self.block}"


def _draw_signs(order: int, generator: torch.Generator) -> Tensor:
    # With the factor that makes the Hadamard matrix orthonormal.
    if order == 1:
        return torch.ones(1, dtype=torch.float64)
    return (torch.randint(0, 2, (order,), generator=generator, dtype=torch.float64) * 2 - 1) / order**0.5


def _odd_part(size: int) -> int:
    return size // (size & -size)


def _check_constructible(size: int) -> None:
    if not is_constructible(size):
        divisors = [block for block in range(size, 1, -1) if size % block == 0 and is_constructible(block)]
        way_out = f"; rotate in diagonal blocks, of {divisors[0]} at most" if divisors else ""
        raise ConfigError(f"no Hadamard matrix of size {size} is constructed here; sizes are powers of two, and powers "
                          f"of two times 12, 20, 28, 36 and 172{way_out}")


def _base_matrix(base: int) -> Tensor:
    if base == 1:
        return torch.ones(1, 1, dtype=torch.int8)
    if base == 172:
        return _williamson_172()
    return _paley_first(base - 1) if base in (12, 20) else _paley_second(base // 2 - 1)


def _jacobsthal(prime: int) -> Tensor:
    # Quadratic character of row minus column.
    squares = {value * value % prime for value in range(1, prime)}
    character = torch.tensor([0] + [1 if value in squares else -1 for value in range(1, prime)], dtype=torch.int8)
    index = torch.arange(prime)
    return character[(index[:, None] - index[None, :]) % prime]


def _bordered(core: Tensor, *, corner_sign: int) -> Tensor:
    size = core.shape[0] + 1
    matrix = torch.zeros(size, size, dtype=torch.int8)
    matrix[0, 1:], matrix[1:, 0], matrix[1:, 1:] = 1, corner_sign, core
    return matrix


def _paley_first(prime: int) -> Tensor:
    # prime = 3 mod 4: the bordered core is skew, and adding the identity makes it Hadamard of order prime + 1.
    return _bordered(_jacobsthal(prime), corner_sign=-1) + torch.eye(prime + 1, dtype=torch.int8)


def _paley_second(prime: int) -> Tensor:
    # prime = 1 mod 4: the bordered core is symmetric; order 2 (prime + 1).
    conference = _bordered(_jacobsthal(prime), corner_sign=1)
    spread = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
    filled = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int8)
    return torch.kron(conference, spread) + torch.kron(torch.eye(prime + 1, dtype=torch.int8), filled)


def _williamson_172() -> Tensor:
    index = torch.arange(43)
    blocks = []
    for signs in _WILLIAMSON_SIGNS_43:
        row = torch.ones(43, dtype=torch.int8)
        for leader, sign in zip(_COSET_LEADERS_43, signs, strict=True):
            row[[leader * element % 43 for element in _COSET_GROUP_43]] = sign
        blocks.append(row[(index[None, :] - index[:, None]) % 43])
    a, b, c, d = blocks
    return torch.cat([torch.cat(line, 1) for line in ((a, b, c, d), (-b, a, -d, c), (-c, d, a, -b), (-d, -c, b, a))])
