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

"""Drops visual tokens at one decoder layer, always to exactly K.

SQAP-VLA (arXiv 2509.09090) publishes neither the layer, nor the share chosen by attention, nor the radius of the
protected ring: the values here are our own choice, and all are knobs.

Of several pictures each keeps the share it would keep alone, by itself. Attention favours what stands later in the
sequence (Endo et al., arXiv 2412.13180), so in one common choice the last camera would crowd out the others, and so
would the gripper that fills a wrist camera's picture. It also leaves K of each camera, not only their sum, the same
for every observation.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from sqap_vla_ros.errors import ConfigError, InferenceError
from sqap_vla_ros.knobs import PruneKnobs
from sqap_vla_ros.pruning.coverage import TokenDistances
from sqap_vla_ros.pruning.selection import RULES, Candidates, Selection, keep_all, scatter_bits


def draw_seed(pictures: Sequence[np.ndarray], seed: int) -> int:
    """The number behind all chance in one inference: a checksum of the pictures and ``prune.seed``, nothing else.

    What is seen gets the same tokens and the same noise whenever it is seen, on every machine and under every
    quantization, so runs repeat whatever ran before them.

    :param pictures: as they came from the cameras
    :param seed: 0 to 2**32 - 1
    :return: 0 to 2**32 - 1
    """
    checksum = 0
    for picture in pictures:
        checksum = zlib.crc32(np.ascontiguousarray(picture).data, checksum)
    return checksum ^ scatter_bits(seed)


class Pruner:
    """Chooses the visual tokens that stay.

    :param knobs: rule, ratio, layer and what the rules need
    :param grids: rows and columns of each picture's token grid; the tokens of a picture follow those of the one before
    :param device: where scores, hidden states and masks are
    :param fixed_shape: whether no shape may depend on the data, as a CUDA graph needs; None for that on a GPU, and for
        the quicker form on the CPU. The choice is the same
    """

    def __init__(self, knobs: PruneKnobs, grids: Sequence[tuple[int, int]], device: torch.device | str = "cpu", *,
                 fixed_shape: bool | None = None) -> None:
        self.knobs = knobs
        self.layer = knobs.layer
        self.grids = tuple(grids)
        self._fixed_shape = torch.device(device).type != "cpu" if fixed_shape is None else fixed_shape
        self._totals = [rows * columns for rows, columns in self.grids]
        kept_ratio = 1.0 if knobs.rule == "none" else 1.0 - knobs.pruned_ratio
        self._kept = [max(1, round(total * kept_ratio)) for total in self._totals]
        self.total_count, self.kept_count = sum(self._totals), sum(self._kept)
        self._patches = [TokenDistances.of_grid(grid, device) for grid in self.grids]
        self._nobody = [torch.zeros(total, dtype=torch.bool, device=device) for total in self._totals]
        self._record: list[Tensor] | None = None

    def check_depth(self, layer_count: int) -> None:
        """Refuse a layer that the decoder does not have, where nothing would ever be dropped.

        :param layer_count: layers of the decoder
        :raises ConfigError: when ``prune.layer`` is not below it
        """
        if self.layer >= layer_count:
            raise ConfigError(f"prune.layer is {self.layer} and the decoder has {layer_count} layers; give 0 to "
                              f"{layer_count - 1}, or prune.rule 'none'")

    def select(self, scores: Tensor, hidden: Tensor, robot_masks: Sequence[Tensor | None],
               draw: int | Tensor = 0) -> tuple[Selection, ...]:
        """Choose exactly ``kept_count`` tokens; with K = N all of them, in order.

        :param scores: (1, N) attention that the last token gives to each visual token of all pictures
        :param hidden: (1, N, C) hidden states of the visual tokens in front of ``layer``
        :param robot_masks: for each picture (n,) bool, tokens that show the robot, or None when that is not known
        :param draw: from which rule 'random' chooses, as :func:`draw_seed` gives it, or the same as a () int64 tensor
        :return: one entry per picture
        :raises InferenceError: when scores, hidden states or masks are not of the grids
        """
        self._check_shapes(scores, hidden, robot_masks)
        if self._record is not None:
            self._record.append(scores.detach().clone())
        selections = []
        parts = zip(scores[0].detach().split(self._totals), hidden[0].detach().split(self._totals), robot_masks,
                    strict=True)
        for index, (part, features, mask) in enumerate(parts):
            kept_count = self._kept[index]
            rule = RULES[self.knobs.rule] if kept_count < self._totals[index] else keep_all
            selections.append(rule(Candidates(
                part, features, self._nobody[index] if mask is None else mask, self._patches[index], kept_count,
                round(kept_count * self.knobs.attention_ratio), round(kept_count * self.knobs.robot_ratio),
                self.knobs.coverage_space, self.knobs.seed, draw ^ scatter_bits(index), self._fixed_shape)))
        return tuple(selections)

    @contextmanager
    def record_scores(self) -> Iterator[list[Tensor]]:
        """Keep what :meth:`select` is given, so that scores can be measured as they are used.

        Tokens leave inside ``layer``, whose attention the scores are: what is chosen does not change them.

        :return: (1, N) for each call while the context lasts, filled as they come
        """
        record: list[Tensor] = []
        self._record = record
        try:
            yield record
        finally:
            self._record = None

    def positions(self, selections: Sequence[Selection]) -> Tensor:
        """Where the chosen tokens stand among all visual tokens: (1, K) int64, ascending.

        :param selections: one per picture, of :meth:`select`
        """
        offsets = [sum(self._totals[:index]) for index in range(len(self._totals))]
        return torch.cat([selection.kept + offset for selection, offset in zip(selections, offsets, strict=True)])[None]

    def log_areas(self, selections: Sequence[Selection]) -> Tensor | None:
        """Natural logarithm of how many tokens of its picture each kept one stands for; None where nobody asked for it.

        Each token counts for the kept one that is nearest on the grid. Added to the logits of keys, it gives a kept
        token the attention of all that it stands for, as proportional attention does to merged ones (Bolya et al.,
        arXiv 2210.09461, section 3).

        :param selections: one per picture, of :meth:`select`
        :return: (1, K) float32 in the order of :meth:`positions`
        """
        weighs = self.knobs.area_attention and self.knobs.rule.startswith("sqap")
        if not weighs or self.kept_count == self.total_count:
            return None
        areas = []
        for patches, selection in zip(self._patches, selections, strict=True):
            nearest = patches.between.index_select(1, selection.kept).argmin(1)
            ones = torch.ones_like(nearest, dtype=torch.float32)
            areas.append(torch.zeros_like(selection.kept, dtype=torch.float32).index_add_(0, nearest, ones).log_())
        return torch.cat(areas)[None]

    def _check_shapes(self, scores: Tensor, hidden: Tensor, robot_masks: Sequence[Tensor | None]) -> None:
        grids = " and ".join(f"{rows} x {columns}" for rows, columns in self.grids)
        if len(robot_masks) != len(self.grids):
            raise InferenceError(f"{len(robot_masks)} robot masks came for {len(self.grids)} pictures; give one of "
                                 "each, None where the robot's place is not known")
        for name, shape in (("scores", scores.shape), ("hidden states", hidden.shape[:2])):
            if shape != (1, self.total_count):
                raise InferenceError(f"the {name} have shape {tuple(shape)} for a grid of {grids} tokens")
        for mask, total in zip(robot_masks, self._totals, strict=True):
            if mask is not None and mask.shape != (total,):
                raise InferenceError(f"a robot mask has shape {tuple(mask.shape)} for a grid of {grids} tokens")
