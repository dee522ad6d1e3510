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

"""Distances, and that both forms of farthest point sampling choose the same points, quickly."""

import statistics
import time

import pytest
import torch
from torch import Tensor

from sqap_vla_ros.pruning.coverage import (
    FEATURE_STEPS,
    TokenDistances,
    fill_in_fixed_shape,
    fill_on_host,
    rank_robot,
)

PATCHES = TokenDistances.of_grid((16, 16))
NOBODY, UNDECIDED = torch.zeros(256), torch.zeros(256)
NONE_KEPT = torch.zeros(0, dtype=torch.int64)


def covering_radius(kept: Tensor) -> float:
    """Distance from the worst covered token to its nearest kept one, in patches."""
    return float(PATCHES.between[kept].amin(0).max()) ** 0.5


def test_distances_are_those_of_a_grid() -> None:
    distances = TokenDistances.of_grid((3, 5))
    assert distances.between.shape == (15, 15)
    assert distances.between[0].tolist() == [0, 1, 4, 9, 16, 1, 2, 5, 10, 17, 4, 5, 8, 13, 20]
    assert int(distances.to_nothing.argmax()) == 7 and float(distances.to_nothing.min()) > 20


def test_distances_of_features_are_cosine_distances_that_rotation_and_length_do_not_change() -> None:
    torch.manual_seed(0)
    features = torch.randn(40, 16)
    distances = TokenDistances.of_features(features)
    expected = 1.0 - torch.nn.functional.cosine_similarity(features[:, None], features[None], dim=-1)
    torch.testing.assert_close(distances.between / FEATURE_STEPS, expected, atol=0.51 / FEATURE_STEPS, rtol=0)
    assert torch.equal(distances.between, distances.between.round())
    assert not distances.between.diagonal().any()
    turn = torch.linalg.qr(torch.randn(16, 16)).Q
    turned = TokenDistances.of_features(features @ turn * torch.rand(40, 1).add(0.1))
    assert (turned.between - distances.between).abs().max() <= 1.0
    assert TokenDistances.of_features(features.bfloat16()).between.dtype == torch.float32


def test_features_that_are_not_numbers_stay() -> None:
    features = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    features[[9, 33]] = torch.nan
    distances = TokenDistances.of_features(features)
    assert not distances.between.isnan().any()
    for fill in (fill_on_host, fill_in_fixed_shape):
        order = fill(torch.tensor([5]), torch.zeros(64), torch.zeros(64), distances, 8)
        assert {9, 33} <= set(order.tolist()) and len(set(order.tolist())) == 8


def test_tokens_with_the_same_features_are_picked_once() -> None:
    distances = TokenDistances.of_features(torch.ones(12, 4))
    for fill in (fill_on_host, fill_in_fixed_shape):
        order = fill(torch.tensor([2]), torch.zeros(12), torch.arange(12) / 12, distances, 11)
        assert order.tolist() == [11, 10, 9, 8, 7, 6, 5, 4, 3, 1, 0]


def test_first_points_without_seed_are_middle_and_corners() -> None:
    order = fill_on_host(NONE_KEPT, NOBODY, UNDECIDED, PATCHES, 5)
    assert order.tolist() == [7 * 16 + 7, 255, 15, 240, 0]


def test_every_point_is_the_farthest() -> None:
    seeds = torch.tensor([3, 200, 77])
    order = fill_on_host(seeds, NOBODY, UNDECIDED, PATCHES, 60)
    kept = seeds
    for pick in order:
        nearest = PATCHES.between[kept].amin(0)
        assert float(nearest[pick]) == float(nearest.max()) > 0
        kept = torch.cat((kept, pick[None]))


@pytest.mark.parametrize(("count", "radius"), [(77, 1.42), (102, 1.42), (128, 1.01), (154, 1.01)])
def test_coverage_beats_a_random_choice(count: int, radius: float) -> None:
    order = fill_on_host(NONE_KEPT, NOBODY, UNDECIDED, PATCHES, count)
    assert covering_radius(order) <= radius
    chance = [covering_radius(torch.randperm(256, generator=torch.Generator().manual_seed(seed))[:count])
              for seed in range(20)]
    assert sum(chance) / len(chance) > 1.3 * covering_radius(order)


def test_robot_tokens_rank_by_their_distance_from_the_centroid() -> None:
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[2:5, 4:13] = True
    mask[4, 12] = False
    rank = rank_robot(torch.tensor([3 * 16 + 8]), mask.flatten(), PATCHES, 256)
    assert set(rank.nonzero()[:, 0].tolist()) == set(mask.flatten().nonzero()[:, 0].tolist()) - {3 * 16 + 8}
    assert float(rank[rank > 0].min()) >= 1.0
    where = mask.nonzero().double()
    away = (where - where.mean(0)).square().sum(1)
    ranks = rank.view(16, 16)[mask].double()
    for first in range(len(away)):
        for second in range(len(away)):
            if ranks[first] > 0 and ranks[second] > 0 and away[first] < away[second] - 1e-9:
                assert ranks[first] > ranks[second]


def test_robot_tokens_beyond_their_share_do_not_rank() -> None:
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[2:5, 4:13] = True
    seeds = torch.tensor([3 * 16 + 8, 0])
    every = rank_robot(seeds, mask.flatten(), PATCHES, 256)
    for most in (0, 1, 7, 26, 27):
        few = rank_robot(seeds, mask.flatten(), PATCHES, most)
        assert int(few.count_nonzero()) == min(most, 26)
        assert torch.equal(few[few > 0.0], every[few > 0.0])
        assert float(every[few == 0.0].max()) <= float(few[few > 0.0].min()) if 0 < most < 26 else True


def test_fixed_shape_form_makes_the_same_choice() -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(40):
        seeds = torch.randperm(256, generator=generator)[:int(torch.randint(0, 20, (), generator=generator))]
        mask = torch.rand(256, generator=generator) < torch.rand((), generator=generator) ** 2
        count = int(torch.randint(0, 160, (), generator=generator))
        preference = torch.randperm(256, generator=generator) / 256
        robot = rank_robot(seeds, mask, PATCHES, int(torch.randint(0, 256, (), generator=generator)))
        for distances in (PATCHES, TokenDistances.of_features(torch.randn(256, 8, generator=generator))):
            expected = fill_on_host(seeds, robot, preference, distances, count)
            assert torch.equal(fill_in_fixed_shape(seeds, robot, preference, distances, count), expected)
            assert len(set(expected.tolist()) | set(seeds.tolist())) == count + len(seeds)


def test_farthest_points_are_quick() -> None:
    # Keeping 154 of 256 within 0.5 ms of one core; the best of several medians, as other programs disturb a clock.
    def median_s() -> float:
        times = []
        for _ in range(31):
            start = time.thread_time()
            fill_on_host(NONE_KEPT, NOBODY, UNDECIDED, PATCHES, 154)
            times.append(time.thread_time() - start)
        return statistics.median(times)
    assert min(median_s() for _ in range(7)) < 0.5e-3
