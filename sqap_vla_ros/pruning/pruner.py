"""Drops visual tokens at one decoder layer, always to exactly K.

The rules are those of SQAP-VLA (arXiv 2509.09090), which publishes neither the layer, nor the share chosen by
attention, nor the radius of the protected ring: the values here are our own choice, and all are knobs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sqap_vla_ros.config import PruneKnobs
from sqap_vla_ros.data import TokenRule
from sqap_vla_ros.errors import ConfigError, InferenceError
from sqap_vla_ros.pruning.selection import PatchDistances, Selection, select_tokens


class Pruner:
    """Chooses the visual tokens of one image that stay.

    :param knobs: rule, ratio and layer
    :param grid: rows and columns of the token grid
    :param device: where scores and masks are
    """

    def __init__(self, knobs: PruneKnobs, grid: tuple[int, int], device: torch.device | str = "cpu") -> None:
        self.grid = grid
        self.layer = knobs.layer
        self.total_count = grid[0] * grid[1]
        dropped_ratio = 0.0 if knobs.rule == "none" else knobs.pruned_ratio
        self.kept_count = max(1, round(self.total_count * (1.0 - dropped_ratio)))
        self._attention_count = round(self.kept_count * knobs.attention_ratio)
        self._distances = PatchDistances.of_grid(grid, device)
        self._everything = Selection(
            torch.arange(self.total_count, device=device),
            torch.full((self.total_count,), int(TokenRule.UNPRUNED), dtype=torch.int8, device=device))

    def check_depth(self, layer_count: int) -> None:
        """Refuse a layer that the decoder does not have, where nothing would ever be dropped.

        :param layer_count: layers of the decoder
        :raises ConfigError: when ``prune.layer`` is not below it
        """
        if self.layer >= layer_count:
            raise ConfigError(f"prune.layer is {self.layer} and the decoder has {layer_count} layers; give 0 to "
                              f"{layer_count - 1}, or prune.rule 'none'")

    def select(self, scores: Tensor, robot_mask: Tensor | None) -> Selection:
        """Choose exactly ``kept_count`` tokens; with K = N all of them, in order.

        :param scores: (1, N) attention that the last token gives to each visual token
        :param robot_mask: (N,) bool, tokens that show the robot, or None when that is not known
        :raises InferenceError: when scores or mask are not of the grid
        """
        for name, tensor in (("scores", scores), ("robot mask", robot_mask)):
            if tensor is not None and tensor.numel() != self.total_count:
                raise InferenceError(f"the {name} has shape {tuple(tensor.shape)} for a grid of {self.grid[0]} x "
                                     f"{self.grid[1]} tokens")
        if self.kept_count == self.total_count:
            return self._everything
        return select_tokens(scores[0], robot_mask, self._distances, self.kept_count, self._attention_count)
