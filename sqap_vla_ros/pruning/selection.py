"""Which tokens stay: the few with the highest attention, then the robot, then the farthest points until K are kept.

Quantization shuffles tokens of middling attention and leaves the very top in order, so attention chooses only a few;
the two other rules read geometry, which quantization cannot touch. On a grid many points are equally far: there
attention decides again, and where it ties too the lower index.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sqap_vla_ros.data import TokenRule, TokenUse


@dataclass(frozen=True)
class Selection:
    """The tokens of one image that stay.

    :param kept: (K,) int64, ascending
    :param rules: (K,) int8, the ``TokenRule`` of each
    """

    kept: Tensor
    rules: Tensor

    def token_use(self, grid: tuple[int, int]) -> TokenUse:
        """The same in NumPy, for other parts.

        :param grid: rows and columns of the token grid
        """
        return TokenUse(grid, self.kept.cpu().numpy(), self.rules.cpu().numpy())


@dataclass(frozen=True)
class PatchDistances:
    """Distances between the tokens of one grid, as float32 that are whole numbers, so that every sum is exact.

    :param squared: (N, N) squared distances in patches
    :param to_nothing: (N,) distance to the nearest kept token when none is kept: above all real ones, and largest at
        the middle of the grid, where the first token is then taken
    """

    squared: Tensor
    to_nothing: Tensor

    @classmethod
    def of_grid(cls, grid: tuple[int, int], device: torch.device | str = "cpu") -> PatchDistances:
        """Measure a grid of (rows, columns)."""
        rows, columns = (torch.arange(length, dtype=torch.float32, device=device) for length in grid)
        row, column = (axis.flatten() for axis in torch.meshgrid(rows, columns, indexing="ij"))
        squared = (row[:, None] - row).square() + (column[:, None] - column).square()
        middle = squared.amax(1).argmin()
        return cls(squared, 2.0 * squared.max() + 1.0 - squared[middle])


def select_tokens(scores: Tensor, robot_mask: Tensor | None, distances: PatchDistances, kept_count: int,
                  attention_count: int) -> Selection:
    """Keep exactly ``kept_count`` tokens by the three rules of SQAP-VLA (arXiv 2509.09090).

    A footprint larger than the room that attention leaves is cut to the tokens nearest to its centroid, and coverage
    gets none. Without a footprint coverage fills all the room.

    :param scores: (N,) attention of each token
    :param robot_mask: (N,) bool, tokens that show the robot; None when that is not known
    :param distances: of the token grid
    :param kept_count: K, 1 to N
    :param attention_count: how many of them attention chooses, 0 to K
    """
    ranking = scores.sort(descending=True, stable=True).indices
    count = len(ranking)
    preference = torch.empty_like(distances.to_nothing)
    preference[ranking] = torch.arange(count - 1, -1, -1, dtype=preference.dtype, device=scores.device) / count
    by_attention = ranking[:attention_count]
    if robot_mask is None:
        robot_mask = torch.zeros_like(scores, dtype=torch.bool)
    fill = fill_on_host if scores.device.type == "cpu" else fill_in_fixed_shape
    by_geometry = fill(by_attention, robot_mask, preference, distances, kept_count - attention_count)
    rules = torch.where(robot_mask, int(TokenRule.ROBOT), int(TokenRule.COVERAGE)).to(torch.int8)
    rules[by_attention] = int(TokenRule.ATTENTION)
    kept = torch.cat((by_attention, by_geometry)).sort().values
    return Selection(kept, rules[kept])


def fill_on_host(seeds: Tensor, robot_mask: Tensor, preference: Tensor, distances: PatchDistances,
                 count: int) -> Tensor:
    """Choose robot tokens, then farthest points, one by one in NumPy, whose calls cost least.

    The farthest point is the token whose nearest kept token is farthest (Gonzalez, Theor. Comput. Sci. 38, 1985).

    :param seeds: (A,) int64, tokens already kept
    :param robot_mask: (N,) bool
    :param preference: (N,) float32 from 0 to below 1, decides between equally far points
    :param distances: of the token grid
    :param count: how many to choose, at most N - A
    :return: (count,) int64, in the order chosen
    """
    table = (distances.squared + preference).numpy()
    priority = _robot_priority(seeds, robot_mask, distances).numpy()
    robots = np.argsort(-priority, kind="stable")[:min(count, np.count_nonzero(priority))]
    kept = np.concatenate((seeds.numpy(), robots))
    nearest = table[kept].min(axis=0) if len(kept) else (distances.to_nothing + preference).numpy()
    farthest = np.empty(count - len(robots), dtype=np.int64)
    for index in range(len(farthest)):
        # A kept token is at 0 plus less than 1, any other at 1 or more: nothing is picked twice.
        farthest[index] = pick = nearest.argmax()
        np.minimum(nearest, table[pick], out=nearest)
    return torch.from_numpy(np.concatenate((robots, farthest)))


def fill_in_fixed_shape(seeds: Tensor, robot_mask: Tensor, preference: Tensor, distances: PatchDistances,
                        count: int) -> Tensor:
    """Make the choice of :func:`fill_on_host` with shapes that do not depend on the data, as a CUDA graph needs."""
    table = distances.squared + preference
    nearest = torch.cat((table[seeds], (distances.to_nothing + preference)[None])).amin(0)
    priority = _robot_priority(seeds, robot_mask, distances)
    order = [seeds[:0]]
    for _ in range(count):
        pick = torch.maximum(priority, nearest).argmax(dim=0, keepdim=True)
        order.append(pick)
        nearest = torch.minimum(nearest, table.index_select(0, pick)[0])
        priority = priority.index_fill(0, pick, 0.0)
    return torch.cat(order)


def _robot_priority(seeds: Tensor, robot_mask: Tensor, distances: PatchDistances) -> Tensor:
    # (N,): 0 for what is no robot or kept already, else above every distance and highest at the footprint's centroid.
    # Sums of squared distances to all robot tokens are ordered as distances to their centroid, and are whole numbers.
    spread = distances.squared @ robot_mask.to(distances.squared.dtype)
    priority = torch.where(robot_mask, distances.to_nothing.max() + 2.0 + spread.max() - spread, 0.0)
    return priority.index_fill(0, seeds, 0.0)
