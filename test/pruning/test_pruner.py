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

"""The pruner keeps exactly K of one picture or several, is the identity at K = N, and refuses what does not fit."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sqap_vla_ros.data import TokenRule
from sqap_vla_ros.errors import ConfigError, InferenceError
from sqap_vla_ros.knobs import PruneKnobs
from sqap_vla_ros.models.llama import Choice, LlamaConfig, LlamaDecoder, PruneStep
from sqap_vla_ros.pruning.pruner import Pruner, draw_seed
from sqap_vla_ros.pruning.selection import RULES

ONE = [(16, 16)]
TWO = [(16, 16), (8, 12)]


def picture_of(total: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, total, generator=generator), torch.randn(1, total, 12, generator=generator)


@pytest.mark.parametrize(("ratio", "kept"), [(0.0, 256), (0.4, 154), (0.6, 102), (0.7, 77), (0.95, 13)])
def test_kept_count_follows_from_the_ratio(ratio: float, kept: int) -> None:
    pruner = Pruner(PruneKnobs(pruned_ratio=ratio), ONE)
    assert pruner.kept_count == kept and pruner.total_count == 256
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for mask in (None, torch.rand(256, generator=generator) < 0.2, torch.ones(256, dtype=torch.bool)):
            (selection,) = pruner.select(*picture_of(256, seed), [mask])
            assert selection.kept.unique().shape == (kept,) and selection.rules.shape == (kept,)


def test_at_least_one_token_of_each_picture_stays() -> None:
    assert Pruner(PruneKnobs(pruned_ratio=0.95), [(2, 2), (2, 2)]).kept_count == 2


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_attention_may_choose_none_or_all(ratio: float) -> None:
    pruner = Pruner(PruneKnobs(pruned_ratio=0.5, attention_ratio=ratio), [(8, 8)])
    scores, hidden = picture_of(64, 0)
    use = pruner.select(scores, hidden, [None])[0].token_use((8, 8))
    assert use.kept.dtype == np.int64 and use.rules.dtype == np.int8
    assert use.count(TokenRule.ATTENTION) == 32 * ratio
    if ratio == 1.0:
        assert np.array_equal(use.kept, scores[0].topk(32).indices.sort().values.numpy())


def test_an_unknown_robot_is_no_robot() -> None:
    pruner = Pruner(PruneKnobs(), ONE)
    given = picture_of(256, 1)
    (unknown,), (nowhere,) = (pruner.select(*given, [mask]) for mask in (None, torch.zeros(256, dtype=torch.bool)))
    assert torch.equal(unknown.kept, nowhere.kept) and torch.equal(unknown.rules, nowhere.rules)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "none"])
def test_each_of_several_pictures_keeps_what_it_would_alone(rule: str) -> None:
    knobs = PruneKnobs(rule=rule, pruned_ratio=0.6)
    both = Pruner(knobs, TWO)
    assert (both.kept_count, both.total_count) == (102 + 38, 256 + 96)
    scores, hidden = picture_of(256 + 96, 3)
    masks = [torch.arange(256) % 16 < 3, torch.arange(96) >= 84]
    selections = both.select(scores, hidden, masks, draw=11)
    for index, part in enumerate((slice(0, 256), slice(256, 352))):
        alone = Pruner(knobs, [TWO[index]])
        # The draw of the second picture is its own, so that equal grids do not keep the same tokens.
        expected = alone.select(scores[:, part], hidden[:, part], [masks[index]], draw=11)[0]
        if rule != "random" or index == 0:
            assert torch.equal(selections[index].kept, expected.kept)
            assert torch.equal(selections[index].rules, expected.rules)
        assert len(selections[index].kept) == (102, 38)[index]
    positions = both.positions(selections)
    assert positions.shape == (1, 140) and bool((positions.diff() > 0).all())
    assert torch.equal(positions[0, :102], selections[0].kept)
    assert torch.equal(positions[0, 102:], selections[1].kept + 256)


def test_pictures_of_one_grid_draw_differently() -> None:
    pruner = Pruner(PruneKnobs(rule="random"), ONE * 2)
    first, second = pruner.select(*picture_of(512, 0), [None, None], draw=4)
    assert not torch.equal(first.kept, second.kept)


def test_draw_depends_on_picture_and_seed_alone() -> None:
    rng = np.random.default_rng(0)
    picture, other = rng.integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    draw = draw_seed([picture], 0)
    assert 0 <= draw < 1 << 32
    assert draw == draw_seed([np.asfortranarray(picture.copy())], 0)
    almost = picture.copy()
    almost[20, 30, 1] ^= 1
    draws = [draw, draw_seed([almost], 0), draw_seed([other], 0), draw_seed([picture, other], 0),
             draw_seed([picture], 1)]
    assert len(set(draws)) == 5


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("space", ["patch", "feature"])
def test_hidden_states_decide_in_feature_space_alone(rule: str, space: str) -> None:
    pruner = Pruner(PruneKnobs(rule=rule, pruned_ratio=0.5, coverage_space=space), ONE)
    scores, hidden = picture_of(256, 0)
    first, second = (pruner.select(scores, given, [None])[0].kept for given in (hidden, picture_of(256, 1)[1]))
    covers = rule in ("sqap", "sqap-no-attention", "sqap-no-robot", "coverage")
    assert torch.equal(first, second) == (rule != "efficientvla" and not (covers and space == "feature"))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("ratio", [0.0, 0.3])
def test_keeping_all_is_the_identity_to_the_bit(rule: str, ratio: float) -> None:
    torch.manual_seed(0)
    decoder = LlamaDecoder(LlamaConfig(32, 64, 3, 4, 2)).eval()
    pruner = Pruner(PruneKnobs(rule=rule, pruned_ratio=ratio), [(4, 4)])
    x, positions = torch.randn(1, 22, 32), torch.arange(22)[None]
    unpruned = []

    def select(scores: Tensor, hidden: Tensor) -> Choice:
        selections = pruner.select(scores, hidden, [None])
        unpruned.append(selections[0].token_use((4, 4)).count(TokenRule.UNPRUNED))
        return Choice(pruner.positions(selections))

    with torch.inference_mode():
        whole = decoder(x, positions)
        found = decoder(x, positions, prune=PruneStep(1, slice(1, 17), select))
    if rule == "none" or ratio == 0.0:
        assert torch.equal(found, whole) and unpruned == [16]
    else:
        assert found.shape == (1, 22 - 5, 32) and unpruned == [0]


def test_hidden_states_may_carry_gradients() -> None:
    scores, hidden = picture_of(256, 0)
    for rule in RULES:
        knobs = PruneKnobs(rule=rule, coverage_space="feature")
        expected = Pruner(knobs, ONE).select(scores, hidden, [None])[0].kept
        found = Pruner(knobs, ONE).select(scores.clone().requires_grad_(), hidden.clone().requires_grad_(), [None])
        assert torch.equal(found[0].kept, expected)


def test_fixed_shapes_make_the_same_choice() -> None:
    scores, hidden = picture_of(352, 5)
    for rule in RULES:
        plain, fixed = (Pruner(PruneKnobs(rule=rule), TWO, fixed_shape=fixed).select(scores, hidden, [None, None], 3)
                        for fixed in (False, True))
        assert all(torch.equal(one.kept, other.kept) for one, other in zip(plain, fixed, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("space", ["patch", "feature"])
def test_a_captured_graph_chooses_as_the_host_does(rule: str, space: str) -> None:
    knobs = PruneKnobs(rule=rule, coverage_space=space)
    pruner = Pruner(knobs, TWO, "cuda")
    scores, hidden = (tensor.cuda() for tensor in picture_of(352, 0))
    masks = [torch.zeros(total, dtype=torch.bool, device="cuda") for total in (256, 96)]
    draw = torch.zeros((), dtype=torch.int64, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        pruner.positions(pruner.select(scores, hidden, masks, draw))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = pruner.positions(pruner.select(scores, hidden, masks, draw))
    host = Pruner(knobs, TWO)
    for seed in range(1, 5):
        # Features along the axes have the same cosines on every device.
        axes = torch.eye(12)[torch.arange(352) * seed % 12][None]
        robots = [torch.arange(256) % 16 < seed, torch.arange(96) >= 96 - 5 * seed]
        given = (picture_of(352, seed)[0], axes, robots, seed)
        for target, source in zip((scores, hidden, *masks), (given[0], axes, *robots), strict=True):
            target.copy_(source)
        draw.fill_(seed)
        graph.replay()
        assert torch.equal(found.cpu(), host.positions(host.select(*given)))


@pytest.mark.parametrize("rule", ["none", "sqap", "random"])
def test_recorded_scores_are_those_it_was_given_and_only_while_asked(rule: str) -> None:
    pruner = Pruner(PruneKnobs(rule=rule), ONE)
    pruner.select(*picture_of(256, 0), [None])
    given = [picture_of(256, seed)[0] for seed in (1, 2)]
    with pruner.record_scores() as record:
        for scores in given:
            (kept,) = pruner.select(scores, picture_of(256, 0)[1], [None])
    assert len(record) == 2 and all(torch.equal(*pair) for pair in zip(record, given, strict=True))
    assert torch.equal(pruner.select(given[1], picture_of(256, 0)[1], [None])[0].kept, kept.kept)
    assert len(record) == 2
    with pruner.record_scores() as other:
        pruner.select(given[0], picture_of(256, 0)[1], [None])
    assert len(record) == 2 and len(other) == 1


def test_layer_beyond_the_decoder_is_refused() -> None:
    pruner = Pruner(PruneKnobs(layer=8), ONE)
    pruner.check_depth(9)
    with pytest.raises(ConfigError, match=r"prune.layer is 8 and the decoder has 8 layers; give 0 to 7"):
        pruner.check_depth(8)


@pytest.mark.parametrize(("scores", "hidden", "masks", "words"), [
    ((1, 255), (1, 256, 4), [None], r"scores have shape \(1, 255\) for a grid of 16 x 16 tokens"),
    ((2, 256), (2, 256, 4), [None], r"scores have shape \(2, 256\)"),
    ((1, 256), (1, 64, 4), [None], r"hidden states have shape \(1, 64\) for a grid of 16 x 16 tokens"),
    ((1, 256), (1, 256, 4), [64], r"a robot mask has shape \(64,\) for a grid of 16 x 16 tokens"),
    ((1, 256), (1, 256, 4), [None, None], "2 robot masks came for 1 pictures; give one of each")])
def test_what_is_not_of_the_grids_is_refused(scores: tuple[int, ...], hidden: tuple[int, ...],
                                             masks: list[int | None], words: str) -> None:
    given = [None if size is None else torch.zeros(size, dtype=torch.bool) for size in masks]
    with pytest.raises(InferenceError, match=words):
        Pruner(PruneKnobs(), ONE).select(torch.zeros(scores), torch.zeros(hidden), given)


def test_every_token_is_counted_for_the_kept_one_nearest_to_it() -> None:
    pruner = Pruner(PruneKnobs(pruned_ratio=0.6), [(16, 16), (4, 4)])
    scores, hidden = torch.rand(1, 272), torch.randn(1, 272, 8)
    selections = pruner.select(scores, hidden, [None, None])
    areas = pruner.log_areas(selections)
    assert areas is not None and areas.shape == (1, pruner.kept_count)
    counts = areas.exp().round()
    assert counts.min() == 1 and counts[0, :102].sum() == 256 and counts[0, 102:].sum() == 16
    kept = selections[0].kept
    row, column = kept // 16, kept % 16
    nearest = [int(((row - token // 16) ** 2 + (column - token % 16) ** 2).argmin()) for token in range(256)]
    assert counts[0, :102].tolist() == [nearest.count(index) for index in range(102)]


@pytest.mark.parametrize("knobs", [PruneKnobs(area_attention=False), PruneKnobs(rule="fastv"),
                                   PruneKnobs(pruned_ratio=0.0)])
def test_kept_tokens_stand_for_themselves_alone_where_nothing_else_is_said(knobs: PruneKnobs) -> None:
    pruner = Pruner(knobs, [(16, 16)])
    assert pruner.log_areas(pruner.select(torch.rand(1, 256), torch.randn(1, 256, 8), [None])) is None


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.25, 16), (1.0, 58)])
def test_so_many_tokens_are_chosen_for_showing_the_robot(ratio: float, count: int) -> None:
    pruner = Pruner(PruneKnobs(pruned_ratio=0.75, robot_ratio=ratio), ONE)
    (selection,) = pruner.select(torch.rand(1, 256), torch.randn(1, 256, 8), [torch.ones(256, dtype=torch.bool)])
    assert int((selection.rules == int(TokenRule.ROBOT)).sum()) == count
