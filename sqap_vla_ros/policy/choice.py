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

"""Which tokens of one observation stay, and what is told of them."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from sqap_vla_ros.data import TokenRule, TokenUse
from sqap_vla_ros.models.llama import Choice
from sqap_vla_ros.pruning.pruner import Pruner


class OneChoice:
    """What a pruner chooses for one observation, at the decoder's first pass and for all of them.

    :param pruner: chooses
    :param masks: (N,) bool for each camera, tokens that show the robot; None where that is not known
    :param seed: of chance
    """

    def __init__(self, pruner: Pruner, masks: tuple[Tensor | None, ...], seed: int) -> None:
        self.layer = pruner.layer
        self.tokens = tuple(map(every_token, pruner.grids))
        self._pruner, self._masks, self._seed = pruner, masks, seed
        self._choice: Choice | None = None

    def select(self, scores: Tensor, hidden: Tensor) -> Choice:
        """See :class:`~sqap_vla_ros.models.llama.PruneStep`."""
        if self._choice is None:
            pruner = self._pruner
            selections = pruner.select(scores, hidden, self._masks, self._seed)
            self.tokens = tuple(kept.token_use(grid) for kept, grid in zip(selections, pruner.grids, strict=True))
            self._choice = Choice(pruner.positions(selections), pruner.log_areas(selections))
        return self._choice


def every_token(grid: tuple[int, int]) -> TokenUse:
    """All tokens of a grid of rows and columns, because none was pruned."""
    total = grid[0] * grid[1]
    return TokenUse(grid, np.arange(total), np.full(total, TokenRule.UNPRUNED, dtype=np.int8))
