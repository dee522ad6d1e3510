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

"""Actions written as words: the last words of the vocabulary stand for the bins of a normalised action, backwards.

OpenVLA generates one such word per dimension (Kim et al. 2024, "OpenVLA", section 3.2); OpenVLA-OFT without a head
reads them all at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sqap_vla_ros.errors import CheckpointError


@dataclass(frozen=True)
class ActionTokens:
    """Which token ids are actions and what they say.

    Training cuts [-1, 1] by ``edges`` evenly spaced edges and writes ``words - k``, where k, 1 to ``edges``, counts the
    edges at or below a value. There is one interval less than there are edges, so the ids of both +1 and of what lies
    just below it mean the last interval.

    :param words: of the vocabulary without what pads it to a round number; 32000 for Llama-2
    :param edges: of the intervals, ``n_action_bins`` in a checkpoint's config.json
    """

    words: int = 32000
    edges: int = 256

    @classmethod
    def from_json(cls, values: dict[str, Any], rows: int) -> ActionTokens:
        """Inverse of ``dataclasses.asdict``.

        :param rows: see :meth:`check`
        :raises TypeError: when a field is unknown
        :raises CheckpointError: see :meth:`check`
        """
        tokens = cls(**values)
        tokens.check(rows)
        return tokens

    def check(self, rows: int) -> None:
        """Hold the words that are actions against a vocabulary.

        :param rows: of the language head
        :raises CheckpointError: when they are not among them
        """
        if not 2 <= self.edges <= self.words <= rows:
            raise CheckpointError(f"{self.edges} edges of intervals and {self.words} words do not fit a vocabulary of "
                                  f"{rows} rows; there must be 2 edges or more, and a word for each")

    def is_action(self, ids: Tensor) -> Tensor:
        """Which ids training could have written, bool of the same shape; :meth:`decode` takes others for extremes."""
        return (ids < self.words) & (ids >= self.words - self.edges)

    def read(self, hidden: Tensor, head: nn.Linear) -> Tensor:
        """The likeliest action token at each place.

        No other word is looked at. Where the original writes an action this is the same one; where it would write
        another word, which :meth:`decode` takes for full speed, or end early, this is an action all the same. And of
        Llama-2's language head less than a hundredth is read.

        :param hidden: (..., C), behind the decoder's final norm
        :param head: the language head, a row per word and none for a bias
        :return: (...) int64, all of them actions
        """
        first = self.words - self.edges
        return first + F.linear(hidden, head.weight[first:self.words]).argmax(dim=-1)

    def decode(self, ids: Tensor) -> Tensor:
        """Middle of each id's interval.

        :param ids: any shape, int64; ids below those of actions mean the highest interval, ids above them the lowest
        :return: the same shape, float32, between -1 and 1
        """
        edges = torch.linspace(-1.0, 1.0, self.edges, dtype=torch.float64, device=ids.device)
        middles = (edges[:-1] + edges[1:]) / 2.0
        return middles[(self.words - 1 - ids).clamp(0, self.edges - 2)].float()
