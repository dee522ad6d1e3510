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

"""Which tokens of a picture stay: one function per rule, and a table that names them.

The rules are those of SQAP-VLA (arXiv 2509.09090), its three parts one by one, and its rivals. All read the same
score, what the last token attends to, so that comparing two rules compares the rules. Quantization shuffles tokens of
middling attention and leaves the very top in order, so in SQAP attention chooses only a few. Where the robot is, and
how far patches are apart, quantization cannot touch; coverage in features reads the residual stream, which is never
rounded itself and whose distances a rotation leaves alone. On a grid many points are equally far: there attention
decides again, or chance where a rule must not know attention, and where it ties too the lower index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sqap_vla_ros.data import TokenRule, TokenUse
from sqap_vla_ros.pruning.coverage import TokenDistances, fill_in_fixed_shape, fill_on_host, rank_robot

# EfficientVLA (arXiv 2506.10100): how many key tokens, and what share of the others relevance chooses.
KEY_COUNT = 4
RELEVANT_RATIO = 0.5


@dataclass(frozen=True)
class Candidates:
    """The tokens of one picture, and all that a rule may know of them.

    :param scores: (N,) float32, attention of the last token
    :param features: (N, C) hidden states in front of the layer in which tokens leave
    :param robot_mask: (N,) bool, tokens that show the robot; nowhere true when that is not known
    :param patches: distances on the token grid
    :param kept_count: K, 1 to N
    :param attention_count: how many of them attention chooses in SQAP, 0 to K
    :param robot_count: how many of them at most the robot takes in SQAP, 0 to K
    :param coverage_space: 'patch' or 'feature', what coverage calls far
    :param seed: of chance that is the same for every picture
    :param draw: of chance that is this picture's own; a () int64 tensor where a CUDA graph is to be replayed
    :param fixed_shape: whether no shape may depend on the data, as in a CUDA graph; the choice is the same
    """

    scores: Tensor
    features: Tensor
    robot_mask: Tensor
    patches: TokenDistances
    kept_count: int
    attention_count: int
    robot_count: int
    coverage_space: str
    seed: int
    draw: int | Tensor
    fixed_shape: bool


@dataclass(frozen=True)
class Selection:
    """The tokens of one picture that stay.

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


def keep_all(tokens: Candidates) -> Selection:
    """Every token, in order; K does not count."""
    kept = torch.arange(len(tokens.scores), device=tokens.scores.device)
    return Selection(kept, torch.full_like(kept, int(TokenRule.UNPRUNED), dtype=torch.int8))


def select_sqap(tokens: Candidates) -> Selection:
    """A few by attention, then the robot, then farthest points until K are kept.

    A footprint larger than its share is cut to the tokens nearest to its centroid; the rest of it is covered as all
    else is. Without a footprint coverage fills all the room.
    """
    return _cover(tokens, rank_by_attention(tokens.scores), tokens.attention_count, tokens.robot_mask)


def select_sqap_without_attention(tokens: Candidates) -> Selection:
    """The robot, then farthest points; attention does not even decide between equally far ones."""
    return _cover(tokens, rank_by_chance(tokens, tokens.seed), 0, tokens.robot_mask)


def select_sqap_without_robot(tokens: Candidates) -> Selection:
    """A few by attention, then farthest points, wherever the robot is."""
    return _cover(tokens, rank_by_attention(tokens.scores), tokens.attention_count,
                  torch.zeros_like(tokens.robot_mask))


def select_sqap_without_coverage(tokens: Candidates) -> Selection:
    """A few by attention, then the robot, then attention again for what coverage would have chosen."""
    ranking = rank_by_attention(tokens.scores)
    seeds = ranking[:tokens.attention_count]
    robot = rank_robot(seeds, tokens.robot_mask, tokens.patches, tokens.robot_count)
    order = torch.where(robot > 0.0, robot, _prefer(ranking)).index_fill(0, seeds, -1.0)
    others = order.sort(descending=True, stable=True).indices[:tokens.kept_count - len(seeds)]
    rules = torch.where(robot > 0.0, int(TokenRule.ROBOT), int(TokenRule.ATTENTION))
    return _select(torch.cat((seeds, others)), rules)


def select_by_attention(tokens: Candidates) -> Selection:
    """The K with the highest attention (FastV, arXiv 2403.06764)."""
    rules = torch.full_like(tokens.scores, int(TokenRule.ATTENTION))
    return _select(rank_by_attention(tokens.scores)[:tokens.kept_count], rules)


def select_by_coverage(tokens: Candidates) -> Selection:
    """Farthest points alone, from the middle on; in patches the same tokens of every picture."""
    return _cover(tokens, rank_by_chance(tokens, tokens.seed), 0, torch.zeros_like(tokens.robot_mask))


def select_by_chance(tokens: Candidates) -> Selection:
    """K at random, others for each picture."""
    rules = torch.full_like(tokens.scores, int(TokenRule.RANDOM))
    return _select(rank_by_chance(tokens, tokens.draw)[:tokens.kept_count], rules)


def select_efficientvla(tokens: Candidates) -> Selection:
    """Key tokens by relevance; of the rest one half by relevance, one by how unlike all key tokens they are.

    The visual part of EfficientVLA (arXiv 2506.10100, section 3.3): unlike is far by cosine distance from the nearest
    key token. Its relevance adds up the attention of all words; here it is that of the last token, as everywhere.
    """
    ranking = rank_by_attention(tokens.scores)
    key_count = min(KEY_COUNT, tokens.kept_count)
    relevant = ranking[:key_count + int((tokens.kept_count - key_count) * RELEVANT_RATIO)]
    distances = TokenDistances.of_features(tokens.features).between.index_select(0, ranking[:key_count])
    unlike = (distances.amin(0) + _prefer(ranking)).index_fill(0, relevant, -1.0)
    others = unlike.sort(descending=True, stable=True).indices[:tokens.kept_count - len(relevant)]
    rules = torch.full_like(tokens.scores, int(TokenRule.COVERAGE)).index_fill(0, relevant, int(TokenRule.ATTENTION))
    return _select(torch.cat((relevant, others)), rules)


RULES: dict[str, Callable[[Candidates], Selection]] = {
    "none": keep_all,
    "sqap": select_sqap,
    "sqap-no-attention": select_sqap_without_attention,
    "sqap-no-robot": select_sqap_without_robot,
    "sqap-no-coverage": select_sqap_without_coverage,
    "fastv": select_by_attention,
    "coverage": select_by_coverage,
    "efficientvla": select_efficientvla,
    "random": select_by_chance,
}


def rank_by_attention(scores: Tensor) -> Tensor:
    """(N,) scores to (N,) int64 tokens, highest first, ties to the lower index."""
    return scores.sort(descending=True, stable=True).indices


def rank_by_chance(tokens: Candidates, draw: int | Tensor) -> Tensor:
    """The tokens in an order that depends on ``draw`` alone, the same on every device: (N,) int64."""
    index = torch.arange(len(tokens.scores), device=tokens.scores.device)
    # Different indices have different keys, so nothing is left to the sort.
    return scatter_bits(index ^ scatter_bits(draw)).sort().indices


def scatter_bits(value: Any) -> Any:
    """Give 32-bit numbers, an int or an int64 tensor, other ones without pattern, one to one."""
    for _ in range(2):
        value = ((value >> 16) ^ value) * 0x45D9F3B & 0xFFFFFFFF
    return (value >> 16) ^ value


def _cover(tokens: Candidates, ranking: Tensor, first_count: int, robot_mask: Tensor) -> Selection:
    # The first of the ranking, the robot, farthest points; the ranking decides between equally far ones.
    seeds, preference = ranking[:first_count], _prefer(ranking)
    distances = tokens.patches
    if tokens.coverage_space == "feature":
        distances = TokenDistances.of_features(tokens.features)
    robot = rank_robot(seeds, robot_mask, tokens.patches, tokens.robot_count)
    fill = fill_in_fixed_shape if tokens.fixed_shape else fill_on_host
    others = fill(seeds, robot, preference, distances, tokens.kept_count - first_count)
    rules = torch.where(robot > 0.0, int(TokenRule.ROBOT), int(TokenRule.COVERAGE))
    return _select(torch.cat((seeds, others)), rules.index_fill(0, seeds, int(TokenRule.ATTENTION)))


def _prefer(ranking: Tensor) -> Tensor:
    # (N,) float32: 0 for the last of the ranking, below 1 for the first.
    count = len(ranking)
    falling = torch.arange(count - 1, -1, -1, dtype=torch.float32, device=ranking.device) / count
    return torch.empty_like(falling).index_copy_(0, ranking, falling)


def _select(kept: Tensor, rules: Tensor) -> Selection:
    # Tokens in any order, and the rule of every token of the picture.
    kept = kept.sort().values
    return Selection(kept, rules.to(torch.int8).index_select(0, kept))
