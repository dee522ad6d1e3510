"""The three rules, their order, and that both forms of farthest point sampling agree."""

import time

import numpy as np
import pytest
import torch
from torch import Tensor

from sqap_vla_ros.data import TokenRule
from sqap_vla_ros.pruning.selection import PatchDistances, fill_in_fixed_shape, fill_on_host, select_tokens

GRID = (16, 16)
DISTANCES = PatchDistances.of_grid(GRID)
NOBODY = torch.zeros(256, dtype=torch.bool)
UNDECIDED = torch.zeros(256)
NONE_KEPT = torch.zeros(0, dtype=torch.int64)


def block(top: int, bottom: int, left: int, right: int) -> Tensor:
    mask = torch.zeros(GRID, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask.flatten()


def scores_of(seed: int) -> Tensor:
    return torch.rand(256, generator=torch.Generator().manual_seed(seed))


def covering_radius(kept: Tensor) -> float:
    """Distance from the worst covered token to its nearest kept one, in patches."""
    return float(DISTANCES.squared[kept].amin(0).max()) ** 0.5


def test_distances_are_those_of_a_grid() -> None:
    distances = PatchDistances.of_grid((3, 5))
    assert distances.squared.shape == (15, 15)
    assert distances.squared[0].tolist() == [0, 1, 4, 9, 16, 1, 2, 5, 10, 17, 4, 5, 8, 13, 20]
    assert int(distances.to_nothing.argmax()) == 7 and float(distances.to_nothing.min()) > 20


def test_each_rule_keeps_its_share() -> None:
    scores, robot = scores_of(0), block(2, 6, 3, 7)
    selection = select_tokens(scores, robot, DISTANCES, 100, 10)
    kept = selection.kept
    assert kept.shape == (100,) and kept.dtype == torch.int64
    assert bool((kept.diff() > 0).all())
    top = set(scores.topk(10).indices.tolist())
    by_rule = {rule: set(kept[selection.rules == int(rule)].tolist()) for rule in TokenRule}
    assert by_rule[TokenRule.ATTENTION] == top
    assert by_rule[TokenRule.ROBOT] == set(robot.nonzero()[:, 0].tolist()) - top
    assert len(by_rule[TokenRule.COVERAGE]) == 100 - len(top | set(robot.nonzero()[:, 0].tolist()))
    assert by_rule[TokenRule.UNPRUNED] == set()


def test_without_footprint_the_other_rules_fill_all() -> None:
    selection = select_tokens(scores_of(1), None, DISTANCES, 77, 8)
    use = selection.token_use(GRID)
    assert [use.count(rule) for rule in TokenRule] == [8, 0, 69, 0]
    assert use.kept.dtype == np.int64 and use.rules.dtype == np.int8 and len(np.unique(use.kept)) == 77


def test_equally_far_points_are_chosen_by_attention() -> None:
    order = fill_on_host(NONE_KEPT, NOBODY, UNDECIDED, DISTANCES, 128)
    assert covering_radius(order) == 1.0  # from here on every point is one patch away
    scores = scores_of(6)
    selection = select_tokens(scores, None, DISTANCES, 154, 0)
    first, last = (select_tokens(scores, None, DISTANCES, count, 0).kept.tolist() for count in (128, 154))
    added = [index for index in last if index not in first]
    assert len(added) == 26
    dropped = [index for index in range(256) if index not in selection.kept.tolist()]
    assert float(scores[added].min()) > float(scores[dropped].max())


def test_ties_of_attention_go_to_the_lower_index() -> None:
    selection = select_tokens(torch.zeros(256), None, DISTANCES, 5, 5)
    assert selection.kept.tolist() == [0, 1, 2, 3, 4]


def test_large_footprint_keeps_what_is_nearest_to_its_centroid() -> None:
    robot = block(0, 16, 0, 13)
    selection = select_tokens(scores_of(2), robot, DISTANCES, 60, 0)
    assert bool((selection.rules == int(TokenRule.ROBOT)).all())
    row, column = selection.kept // 16, selection.kept % 16
    inside = (row - 7.5) ** 2 + (column - 6.0) ** 2
    others = torch.tensor([index for index in robot.nonzero()[:, 0].tolist() if index not in selection.kept.tolist()])
    outside = (others // 16 - 7.5) ** 2 + (others % 16 - 6.0) ** 2
    assert float(inside.max()) <= float(outside.min())


def test_robot_tokens_chosen_by_attention_count_as_attention() -> None:
    scores, robot = torch.zeros(256), block(4, 6, 4, 6)
    scores[robot] = 1.0
    selection = select_tokens(scores, robot, DISTANCES, 20, 4)
    assert int((selection.rules == int(TokenRule.ATTENTION)).sum()) == 4
    assert int((selection.rules == int(TokenRule.ROBOT)).sum()) == 0


def test_first_points_without_seed_are_middle_and_corners() -> None:
    order = fill_on_host(NONE_KEPT, NOBODY, UNDECIDED, DISTANCES, 5)
    assert order.tolist() == [7 * 16 + 7, 255, 15, 240, 0]


def test_every_point_is_the_farthest() -> None:
    seeds = torch.tensor([3, 200, 77])
    order = fill_on_host(seeds, NOBODY, UNDECIDED, DISTANCES, 60)
    kept = seeds
    for pick in order:
        nearest = DISTANCES.squared[kept].amin(0)
        assert float(nearest[pick]) == float(nearest.max()) > 0
        kept = torch.cat((kept, pick[None]))


@pytest.mark.parametrize(("count", "radius"), [(77, 1.42), (102, 1.42), (154, 1.01)])
def test_coverage_beats_a_random_choice(count: int, radius: float) -> None:
    order = fill_on_host(NONE_KEPT, NOBODY, UNDECIDED, DISTANCES, count)
    assert covering_radius(order) <= radius
    chance = [covering_radius(torch.randperm(256, generator=torch.Generator().manual_seed(seed))[:count])
              for seed in range(20)]
    assert sum(chance) / len(chance) > 1.3 * covering_radius(order)


def test_fixed_shape_form_makes_the_same_choice() -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(60):
        seeds = torch.randperm(256, generator=generator)[:int(torch.randint(0, 20, (), generator=generator))]
        robot = torch.rand(256, generator=generator) < torch.rand((), generator=generator) ** 2
        count = int(torch.randint(0, 160, (), generator=generator))
        preference = torch.randperm(256, generator=generator) / 256
        expected = fill_on_host(seeds, robot, preference, DISTANCES, count)
        assert torch.equal(fill_in_fixed_shape(seeds, robot, preference, DISTANCES, count), expected)


def test_same_input_gives_the_same_tokens() -> None:
    first, second = (select_tokens(scores_of(3), block(1, 4, 9, 12), DISTANCES, 102, 10) for _ in range(2))
    assert torch.equal(first.kept, second.kept) and torch.equal(first.rules, second.rules)


def test_selection_is_quick() -> None:
    scores, robot = scores_of(4), block(2, 6, 3, 7)
    times = []
    for _ in range(50):
        start = time.thread_time()
        select_tokens(scores, robot, DISTANCES, 154, 15)
        times.append(time.thread_time() - start)
    assert min(times) < 1e-3
