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

"""Every rule: exactly K, in both forms alike, and each keeps what it says."""

import time
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from sqap_vla_ros.data import TokenRule
from sqap_vla_ros.knobs import PruneKnobs
from sqap_vla_ros.pruning.coverage import TokenDistances
from sqap_vla_ros.pruning.selection import RULES, Candidates, Selection, rank_by_chance, scatter_bits

Make = Callable[..., Candidates]
Block = Callable[[int, int, int, int], Tensor]
CHOOSING = [name for name in RULES if name != "none"]


def tokens_by(selection: Selection, rule: TokenRule) -> set[int]:
    return set(selection.kept[selection.rules == int(rule)].tolist())


def counts_of(selection: Selection) -> list[int]:
    return [selection.token_use((16, 16)).count(rule) for rule in TokenRule][:4]


def top(scores: Tensor, count: int) -> set[int]:
    return set(scores.topk(count).indices.tolist())


def test_the_knob_names_the_rules_of_the_table() -> None:
    (rule,) = (entry.metadata["knob"] for entry in fields(PruneKnobs) if entry.name == "rule")
    assert set(rule.choices) == set(RULES)


@pytest.mark.parametrize("name", CHOOSING)
@pytest.mark.parametrize("space", ["patch", "feature"])
def test_exactly_k_in_both_forms_alike(name: str, space: str, make_tokens: Make) -> None:
    generator = torch.Generator().manual_seed(7)
    for picture in range(12):
        kept_count = int(torch.randint(1, 256, (), generator=generator))
        mask = torch.rand(256, generator=generator) < torch.rand((), generator=generator) ** 3
        tokens = make_tokens(picture, kept_count=kept_count, attention_count=round(0.1 * kept_count),
                             robot_mask=mask, coverage_space=space)
        selection, fixed = RULES[name](tokens), RULES[name](replace(tokens, fixed_shape=True))
        assert selection.kept.shape == selection.rules.shape == (kept_count,)
        assert selection.kept.dtype == torch.int64 and selection.rules.dtype == torch.int8
        assert bool((selection.kept.diff() > 0).all()) and int(selection.kept[-1]) < 256
        assert torch.equal(selection.kept, fixed.kept) and torch.equal(selection.rules, fixed.rules)
        assert TokenRule.UNPRUNED not in selection.rules.tolist()


@pytest.mark.parametrize("name", RULES)
def test_k_equal_to_n_keeps_all_in_order(name: str, make_tokens: Make, block: Block) -> None:
    tokens = make_tokens(0, kept_count=256, attention_count=26, robot_mask=block(2, 6, 3, 7))
    assert RULES[name](tokens).kept.tolist() == list(range(256))


@pytest.mark.parametrize("name", CHOOSING)
def test_the_draw_matters_to_chance_alone(name: str, make_tokens: Make, block: Block) -> None:
    tokens = make_tokens(1, robot_mask=block(2, 6, 3, 7))
    selections = [RULES[name](replace(tokens, draw=draw)) for draw in (1, 1, 2)]
    assert torch.equal(selections[0].kept, selections[1].kept)
    assert torch.equal(selections[0].kept, selections[2].kept) == (name != "random")


@pytest.mark.parametrize(("name", "blind"), [
    ("random", ("scores", "features", "robot_mask")), ("coverage", ("scores", "features", "robot_mask")),
    ("fastv", ("features", "robot_mask")), ("efficientvla", ("robot_mask",)), ("sqap", ("features",)),
    ("sqap-no-attention", ("scores", "features")), ("sqap-no-robot", ("features", "robot_mask")),
    ("sqap-no-coverage", ("features",))])
def test_a_rule_sees_only_what_is_its_own(name: str, blind: tuple[str, ...], make_tokens: Make, block: Block) -> None:
    tokens, other = (make_tokens(picture, robot_mask=block(picture, 6, 3, 7)) for picture in (2, 3))
    kept = RULES[name](tokens).kept
    for field in ("scores", "features", "robot_mask"):
        changed = RULES[name](replace(tokens, **{field: getattr(other, field)})).kept
        assert torch.equal(changed, kept) == (field in blind), field


def test_sqap_gives_each_part_its_share(make_tokens: Make, block: Block) -> None:
    robot = block(2, 6, 3, 7)
    tokens = make_tokens(0, robot_mask=robot)
    selection, robots = RULES["sqap"](tokens), set(robot.nonzero()[:, 0].tolist())
    best = top(tokens.scores, 10)
    assert tokens_by(selection, TokenRule.ATTENTION) == best
    assert tokens_by(selection, TokenRule.ROBOT) == robots - best
    assert len(tokens_by(selection, TokenRule.COVERAGE)) == 100 - len(best | robots)


def test_without_footprint_the_other_rules_fill_all(make_tokens: Make) -> None:
    assert counts_of(RULES["sqap"](make_tokens(1, kept_count=77, attention_count=8))) == [8, 0, 69, 0]


def test_sqap_without_a_part_is_sqap_in_the_rest(make_tokens: Make, block: Block) -> None:
    robot = block(4, 9, 8, 13)
    tokens = make_tokens(4, robot_mask=robot)
    robots, best = set(robot.nonzero()[:, 0].tolist()), top(tokens.scores, 10)
    nobody = RULES["sqap"](replace(tokens, robot_mask=torch.zeros_like(robot)))
    assert torch.equal(RULES["sqap-no-robot"](tokens).kept, nobody.kept)
    blunt = RULES["sqap-no-attention"](tokens)
    assert tokens_by(blunt, TokenRule.ROBOT) == robots and counts_of(blunt) == [0, 25, 75, 0]
    narrow = RULES["sqap-no-coverage"](tokens)
    assert tokens_by(narrow, TokenRule.ROBOT) == robots - best
    # What coverage would have chosen goes to the highest attention among the rest.
    rest = tokens.scores.masked_fill(robot, -1.0)
    rest[list(best)] = -1.0
    assert tokens_by(narrow, TokenRule.ATTENTION) == best | top(rest, 100 - len(best | robots))


@pytest.mark.parametrize("name", ["sqap", "sqap-no-attention", "sqap-no-coverage"])
def test_large_footprint_keeps_what_is_nearest_to_its_centroid(name: str, make_tokens: Make, block: Block) -> None:
    robot = block(0, 16, 0, 13)
    selection = RULES[name](make_tokens(2, kept_count=60, attention_count=0, robot_mask=robot))
    assert bool((selection.rules == int(TokenRule.ROBOT)).all())
    row, column = selection.kept // 16, selection.kept % 16
    inside = (row - 7.5) ** 2 + (column - 6.0) ** 2
    others = torch.tensor([index for index in robot.nonzero()[:, 0].tolist() if index not in selection.kept.tolist()])
    outside = (others // 16 - 7.5) ** 2 + (others % 16 - 6.0) ** 2
    assert float(inside.max()) <= float(outside.min())


@pytest.mark.parametrize("name", ["sqap", "sqap-no-attention", "sqap-no-coverage"])
def test_what_a_large_footprint_may_not_take_goes_to_the_others(name: str, make_tokens: Make, block: Block) -> None:
    selection = RULES[name](make_tokens(2, kept_count=60, robot_count=15, robot_mask=block(0, 16, 0, 13)))
    taken = {"sqap": [10, 15, 35, 0], "sqap-no-attention": [0, 15, 45, 0], "sqap-no-coverage": [45, 15, 0, 0]}
    assert counts_of(selection) == taken[name]


def test_robot_tokens_chosen_by_attention_count_as_attention(make_tokens: Make, block: Block) -> None:
    robot = block(4, 6, 4, 6)
    tokens = make_tokens(0, scores=robot.float(), kept_count=20, attention_count=4, robot_mask=robot)
    assert counts_of(RULES["sqap"](tokens)) == [4, 0, 16, 0]
    assert counts_of(RULES["sqap-no-coverage"](tokens)) == [20, 0, 0, 0]


def test_equally_far_points_are_chosen_by_attention(make_tokens: Make, patches: TokenDistances) -> None:
    tokens = make_tokens(6, attention_count=0)
    first, last = (RULES["sqap"](replace(tokens, kept_count=count)).kept for count in (128, 154))
    assert float(patches.between[first].amin(0).max()) == 1.0  # from here on every point is one patch away
    added = [index for index in last.tolist() if index not in first.tolist()]
    dropped = [index for index in range(256) if index not in last.tolist()]
    assert len(added) == 26
    assert float(tokens.scores[added].min()) > float(tokens.scores[dropped].max())


def test_without_attention_equally_far_points_are_spread_by_chance(make_tokens: Make) -> None:
    tokens = make_tokens(6, kept_count=154)
    first, last = (set(RULES["coverage"](replace(tokens, kept_count=count)).kept.tolist()) for count in (128, 154))
    rows = [sum(index // 64 == quarter for index in last - first) for quarter in range(4)]
    assert sum(rows) == 26 and max(rows) <= 13
    other = RULES["coverage"](replace(tokens, seed=1)).kept
    assert set(other.tolist()) != last


def test_ties_of_attention_go_to_the_lower_index(make_tokens: Make) -> None:
    tokens = make_tokens(0, scores=torch.zeros(256), kept_count=5)
    assert RULES["fastv"](tokens).kept.tolist() == [0, 1, 2, 3, 4]


def test_fastv_keeps_the_highest_attention(make_tokens: Make) -> None:
    tokens = make_tokens(5, kept_count=56)
    selection = RULES["fastv"](tokens)
    assert set(selection.kept.tolist()) == top(tokens.scores, 56) and counts_of(selection) == [56, 0, 0, 0]


def test_coverage_in_feature_space_keeps_one_token_of_every_kind(make_tokens: Make) -> None:
    # Twenty kinds of feature, most tokens of the first: patches cannot find the rare ones, features must.
    torch.manual_seed(0)
    kinds = torch.zeros(256, dtype=torch.int64)
    kinds[torch.randperm(256)[:19]] = torch.arange(1, 20)
    features = torch.randn(20, 32)[kinds] + 1e-3 * torch.randn(256, 32)
    tokens = make_tokens(0, features=features, kept_count=20)
    found = {space: len(set(kinds[RULES["coverage"](replace(tokens, coverage_space=space)).kept].tolist()))
             for space in ("patch", "feature")}
    assert found["feature"] == 20 and found["patch"] < 10


def test_efficientvla_splits_the_rest_between_relevance_and_novelty(make_tokens: Make) -> None:
    tokens = make_tokens(8, kept_count=56)
    selection = RULES["efficientvla"](tokens)
    relevant = top(tokens.scores, 4 + 26)
    assert tokens_by(selection, TokenRule.ATTENTION) == relevant and counts_of(selection) == [30, 0, 26, 0]
    unit = torch.nn.functional.normalize(tokens.features.double(), dim=-1)
    novelty = (1.0 - unit @ unit[tokens.scores.topk(4).indices].T).amin(1)
    dropped = set(range(256)) - set(selection.kept.tolist())
    novel = list(tokens_by(selection, TokenRule.COVERAGE))
    assert float(novelty[novel].min()) >= float(novelty[list(dropped)].max()) - 1e-4
    assert counts_of(RULES["efficientvla"](replace(tokens, kept_count=3))) == [3, 0, 0, 0]


def test_chance_favours_no_token(make_tokens: Make) -> None:
    pictures, kept_count = 2000, 64
    tokens = make_tokens(0, kept_count=kept_count)
    seen, pairs = torch.zeros(256), 0
    for draw in range(pictures):
        kept = RULES["random"](replace(tokens, draw=draw)).kept
        seen[kept] += 1
        pairs += int((kept.diff() == 1).sum())
    # 500 each, with a deviation of 19.4; and no more neighbours than chance has: 255 pairs of 64/256 * 63/255.
    assert float(seen.min()) > 500 - 5 * 19.4 and float(seen.max()) < 500 + 5 * 19.4
    assert pairs / pictures == pytest.approx(63 / 4, rel=0.02)


def test_what_chance_keeps_counts_as_random(make_tokens: Make) -> None:
    selection = RULES["random"](make_tokens(0, kept_count=40))
    assert len(tokens_by(selection, TokenRule.RANDOM)) == 40 and counts_of(selection) == [0, 0, 0, 0]


def test_chance_does_not_come_from_global_state(make_tokens: Make) -> None:
    tokens = make_tokens(0)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = rank_by_chance(tokens, 5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(rank_by_chance(tokens, 5), first)
    # A tensor serves as well, so that a captured graph can be given another picture.
    assert torch.equal(rank_by_chance(tokens, torch.tensor(5)), first)
    assert sorted(first.tolist()) == list(range(256))


def test_bits_are_scattered_one_to_one() -> None:
    low, high = torch.arange(1 << 16), (1 << 32) - 1 - torch.arange(1 << 16)
    found = scatter_bits(torch.cat((low, high)))
    assert len(found.unique()) == 1 << 17
    assert int(found.min()) >= 0 and int(found.max()) < 1 << 32
    assert [scatter_bits(value) for value in (0, 7, (1 << 32) - 1)] == [
        int(scatter_bits(torch.tensor(value))) for value in (0, 7, (1 << 32) - 1)]


def test_selection_is_quick(make_tokens: Make, block: Block) -> None:
    tokens, times = make_tokens(4, kept_count=154, attention_count=15, robot_mask=block(2, 6, 3, 7)), []
    for _ in range(50):
        start = time.thread_time()
        RULES["sqap"](tokens)
        times.append(time.thread_time() - start)
    assert min(times) < 1e-3
