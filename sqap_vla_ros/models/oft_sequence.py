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

"""OpenVLA-OFT's sequence: BOS, pictures, extra tokens, instruction, one empty place per number of a chunk, a stop.

Every token sees every other one. Actions are read one place early, as in a model that predicts the next token: at the
last token of the instruction and at all places but the last (Kim et al. 2025, arXiv 2502.19645, and the published
code). That is counted from the end, so it holds after visual tokens have left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sqap_vla_ros.models.vla import Sequence

STOP_ID = 2


def assemble_sequence(prompt: Tensor, visual: Tensor, extra: Tensor | None = None, places: Tensor | None = None,
                      stop: Tensor | None = None, *, causal: bool = False) -> Sequence:
    """Put a sequence together; without what is None, it is that of the other Prismatic models.

    :param prompt: (B, L, C) embeddings of the instruction's ids, BOS first and 29871 last
    :param visual: (B, N, C) tokens of all pictures
    :param extra: (B, E, C) the state's token, then for diffusion the timestep's
    :param places: (B, A, C) what stands where actions are read: :func:`empty_places`, or projected noisy actions
    :param stop: (1, 1, C) embedding of ``STOP_ID``
    :param causal: whether each token sees only those before it
    :return: (B, 1 + N + E + (L - 1) + A + 1, C), with positions 0, 1, 2, ...
    """
    batch, count = visual.shape[:2]
    end = None if stop is None else stop.expand(batch, -1, -1)
    parts = (prompt[:, :1], visual, extra, prompt[:, 1:], places, end)
    embeddings = torch.cat([part for part in parts if part is not None], dim=1)
    positions = torch.arange(embeddings.shape[1], device=embeddings.device).expand(batch, -1)
    return Sequence(embeddings, positions, slice(1, 1 + count), causal)


def empty_places(like: Tensor, count: int) -> Tensor:
    """(B, count, C) zeros of the type and width of ``like``, (B, ..., C); only their positions tell them apart."""
    return like.new_zeros(like.shape[0], count, like.shape[-1])


def action_window(action_tokens: int) -> slice:
    """Where a chunk's A numbers are read, counted from the end of the sequence.

    Without the stop and the last place, so one before the first place.
    """
    return slice(-action_tokens - 2, -2)


def average_language(prompt: Tensor, stop: Tensor) -> Tensor:
    """What FiLM is told of the instruction: the mean of all embeddings that are not actions, BOS and stop among them.

    :param prompt: (B, L, C) embeddings of the instruction's ids, BOS first and 29871 last
    :param stop: (1, 1, C) embedding of ``STOP_ID``
    :return: (B, C)
    """
    return torch.cat((prompt, stop.expand(prompt.shape[0], -1, -1)), dim=1).mean(dim=1)
