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

"""One picture of 16 x 16 tokens with scores, hidden states and a robot."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sqap_vla_ros.pruning.coverage import TokenDistances
from sqap_vla_ros.pruning.selection import Candidates

GRID = (16, 16)


@pytest.fixture(scope="session")
def patches() -> TokenDistances:
    """Distances on that grid."""
    return TokenDistances.of_grid(GRID)


@pytest.fixture(scope="session")
def block() -> Callable[[int, int, int, int], Tensor]:
    """The tokens of a rectangle: top, bottom, left, right."""
    def block(top: int, bottom: int, left: int, right: int) -> Tensor:
        mask = torch.zeros(GRID, dtype=torch.bool)
        mask[top:bottom, left:right] = True
        return mask.flatten()
    return block


@pytest.fixture
def make_tokens(patches: TokenDistances) -> Callable[..., Candidates]:
    """A picture by its seed; keywords replace what it has, ``kept_count`` first of all."""
    def make_tokens(picture: int, **changes: object) -> Candidates:
        generator = torch.Generator().manual_seed(picture)
        tokens = Candidates(torch.rand(256, generator=generator), torch.randn(256, 24, generator=generator),
                            torch.zeros(256, dtype=torch.bool), patches, 100, 10, 100, "patch", seed=0, draw=picture,
                            fixed_shape=False)
        return replace(tokens, **changes)
    return make_tokens
