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

"""Covering a picture with few tokens: the robot's first, then farthest points, until enough are chosen.

Every distance is a whole number. Sums are exact, so a tie is a tie on every machine, and what decides ties, a
preference below 1, never outweighs a distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from sqap_vla_ros import fused_rows

# Steps of a cosine distance of 1: the most that leaves float32 room for a preference among 256 tokens.
FEATURE_STEPS = 2**14


@dataclass(frozen=True)
class TokenDistances:
    """Distances between the tokens of one picture, as float32 that are whole numbers.

    :param between: (N, N), 0 or more, the same both ways
    """

    between: Tensor

    @classmethod
    def of_grid(cls, grid: tuple[int, int], device: torch.device | str = "cpu") -> TokenDistances:
        """Squared distances in patches on a grid of (rows, columns)."""
        rows, columns = (torch.arange(length, dtype=torch.float32, device=device) for length in grid)
        row, column = (axis.flatten() for axis in torch.meshgrid(rows, columns, indexing="ij"))
        return cls((row[:, None] - row).square() + (column[:, None] - column).square())

    @classmethod
    def of_features(cls, features: Tensor) -> TokenDistances:
        """Cosine distances, in steps of 1 / ``FEATURE_STEPS``; a rotation of the features does not change them.

        What is not a number is far from everything: it stays, and the check of the action finds it.

        :param features: (N, C), any float type
        """
        features = features.detach().float()
        if fused_rows.is_fused_for(features) and torch.get_num_threads() == 1:
            return cls(fused_rows.cosine_steps(features, FEATURE_STEPS))
        unit = F.normalize(features, dim=-1)
        steps = (unit @ unit.T).neg_().add_(1.0).mul_(FEATURE_STEPS).round_().clamp_(min=0.0)  # (N, C) @ (C, N)
        return cls(steps.nan_to_num_(nan=2.0 * FEATURE_STEPS).fill_diagonal_(0.0))

    @cached_property
    def to_nothing(self) -> Tensor:
        """(N,) distance to the nearest kept token when none is kept.

        Above all real ones, and largest for the token in the middle, which is then taken first.
        """
        middle = self.between.amax(1).argmin(dim=0, keepdim=True)
        return 2.0 * self.between.max() + 1.0 - self.between.index_select(0, middle)[0]


def fill_on_host(seeds: Tensor, robot_priority: Tensor, preference: Tensor, distances: TokenDistances,
                 count: int) -> Tensor:
    """Choose robot tokens, then farthest points, one by one on the CPU.

    The farthest point is the token whose nearest kept token is farthest (Gonzalez, Theor. Comput. Sci. 38, 1985).

    :param seeds: (A,) int64, tokens already kept
    :param robot_priority: (N,) float32, see :func:`rank_robot`
    :param preference: (N,) float32 from 0 to below 1, decides between equally far points
    :param distances: what is far
    :param count: how many to choose, at most N - A
    :return: (count,) int64, in the order chosen
    """
    table = _table(distances, preference)
    robots = robot_priority.sort(descending=True, stable=True).indices[:min(count, int(robot_priority.count_nonzero()))]
    kept = torch.cat((seeds, robots))
    nearest = table.index_select(0, kept).amin(0) if len(kept) else distances.to_nothing + preference
    return torch.cat((robots, fused_rows.pick_farthest_(nearest, table, count - len(robots))))


def fill_in_fixed_shape(seeds: Tensor, robot_priority: Tensor, preference: Tensor, distances: TokenDistances,
                        count: int) -> Tensor:
    """Make the choice of :func:`fill_on_host` with shapes that do not depend on the data, as a CUDA graph needs."""
    table = _table(distances, preference)
    to_nothing = distances.to_nothing + preference
    nearest = torch.cat((table.index_select(0, seeds), to_nothing[None])).amin(0)
    # Above every distance; what is no robot, or kept already, never wins by it.
    priority = torch.where(robot_priority > 0.0, robot_priority + to_nothing.max() + 1.0, -1.0)
    order = [seeds[:0]]
    for _ in range(count):
        pick = torch.maximum(priority, nearest).argmax(dim=0, keepdim=True)
        order.append(pick)
        nearest = torch.minimum(nearest, table.index_select(0, pick)[0])
        priority = priority.index_fill(0, pick, -1.0)
    return torch.cat(order)


def rank_robot(seeds: Tensor, robot_mask: Tensor, patches: TokenDistances, most: int) -> Tensor:
    """How early each robot token is taken: the nearer to the footprint's centroid the earlier, up to so many.

    Sums of squared distances to all robot tokens are ordered as distances to their centroid, and are whole numbers.

    :param seeds: (A,) int64, tokens already kept
    :param robot_mask: (N,) bool, tokens that show the robot
    :param patches: distances on the token grid
    :param most: how many rank at all, ties to the lower index
    :return: (N,) float32: 1 or more, highest first; 0 for a token without robot, already kept or one too many
    """
    spread = patches.between @ robot_mask.to(patches.between.dtype)  # (N, N) @ (N,)
    priority = torch.where(robot_mask, spread.max() - spread + 1.0, 0.0).index_fill(0, seeds, 0.0)
    return priority.index_fill(0, priority.sort(descending=True, stable=True).indices[most:], 0.0)


def _table(distances: TokenDistances, preference: Tensor) -> Tensor:
    # A token is below every other from itself, so that what is kept is not picked again, not even beside its double.
    return (distances.between + preference).fill_diagonal_(-1.0)
