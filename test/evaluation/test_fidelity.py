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

"""How near a policy is to float: numbers that are known beforehand, and scenes that repeat."""

import copy

import numpy as np
import pytest
import torch

from sqap_vla_ros.config import build_config
from sqap_vla_ros.data import Observation, RobotFootprint
from sqap_vla_ros.errors import ConfigError, InputError
from sqap_vla_ros.evaluation.closed_loop import find_footprint
from sqap_vla_ros.evaluation.fidelity import FIRST_SEED, correlate_ranks, measure_fidelity, view_scenes
from sqap_vla_ros.knobs import FootprintKnobs
from sqap_vla_ros.models.own_format import save_model
from sqap_vla_ros.policy.policy import Policy
from sqap_vla_ros.pruning.pruner import Pruner
from sqap_vla_ros.quantization.quantize import W8A8, quantize_
from sqap_vla_ros.quantization.rotation import RotationPlan
from sqap_vla_ros.simulation.observing import mix_suites, visit_trials
from sqap_vla_ros.simulation.suite import SEED_RANGES, SUITES
from sqap_vla_ros.simulation.tabletop import Tabletop

HAND = RobotFootprint(("hand",), np.array([[13.5, 9.5]]), np.array([3.0]))
LAYER = 1


def policy_of(model, rule="none", pruned_ratio=0.5, layer=LAYER):
    config = build_config({"model.recipe": "float", "prune.rule": rule, "prune.pruned_ratio": pruned_ratio,
                           "prune.layer": layer})
    pruner = None if rule == "none" else Pruner(config.prune, (model.grid,))
    return Policy(model, config, pruner, None, torch.device("cpu"))


@pytest.fixture
def observations():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    return [Observation(0, (rgb,), "pick up the red block", (HAND,)) for rgb in pictures]


@pytest.mark.parametrize(("first", "second", "expected"), [
    ([1, 2, 3, 4], [10, 20, 30, 40], 1.0), ([1, 2, 3, 4], [4, 3, 2, 1], -1.0), ([1, 2, 3, 4], [1, 2, 4, 3], 0.8),
    # Ranks 1.5 1.5 3 4 and 1 2 3 4: 4.5 over the root of 4.5 times 5.
    ([7, 7, 8, 9], [1, 2, 3, 4], 4.5 / 22.5**0.5), ([5, 5, 5], [1, 2, 3], 0.0), ([1, 2, 3], [0, 0, 0], 0.0)])
def test_rank_correlation_in_numbers(first, second, expected):
    assert correlate_ranks(np.array(first, float), np.array(second, float)) == pytest.approx(expected, abs=1e-12)


def test_rank_correlation_sees_the_order_alone():
    scores = np.random.default_rng(1).random(256)
    assert correlate_ranks(scores, np.exp(9.0 * scores)) == pytest.approx(1.0, abs=1e-12)


def test_the_same_policy_is_as_near_as_can_be(tiny_demo, observations):
    found = measure_fidelity(policy_of(tiny_demo()), policy_of(tiny_demo()), observations)
    assert (found.action_mse, found.observations, found.top_overlap) == (0.0, 3, None)
    assert (found.action_cosine, found.score_rank_correlation) == pytest.approx((1.0, 1.0), abs=1e-12)


def test_errors_of_actions_are_measured_as_the_model_gives_them(tiny_demo, observations):
    model, moved = tiny_demo(), tiny_demo()
    with torch.no_grad():
        # Motion of every step by 0.1 of its range from -1 to 1; the gripper stays.
        moved.head_fc2.bias.view(4, 7)[:, :6] += 0.1
    found = measure_fidelity(policy_of(model), policy_of(moved), observations)
    assert found.action_mse == pytest.approx(0.01 * 6 / 7, rel=1e-4)
    assert found.action_cosine < 0.999 and found.score_rank_correlation == pytest.approx(1.0, abs=1e-12)


def test_pruning_alone_changes_actions_and_no_score(tiny_demo, observations):
    reference = policy_of(tiny_demo())
    found = {rule: measure_fidelity(reference, policy_of(tiny_demo(), rule), observations)
             for rule in ("sqap", "fastv", "random")}
    assert all(one.action_mse > 0.0 for one in found.values())
    assert [one.score_rank_correlation for one in found.values()] == pytest.approx([1.0] * 3, abs=1e-12)
    assert [one.top_overlap for one in found.values()] == [1.0, 1.0, None]
    assert reference.pruner is None


def test_order_turned_round_is_seen_in_the_layer_that_pruning_reads(tiny_demo, observations):
    model = tiny_demo()
    with torch.no_grad():
        # All heads alike, so that their mean has the order of one of them.
        for name in ("q_proj", "k_proj"):
            heads = getattr(model.decoder.layers[LAYER].self_attn, name).weight.view(-1, 16, 64)
            heads.copy_(heads[:1].clone().expand_as(heads))
        turned = copy.deepcopy(model)
        turned.decoder.layers[LAYER].self_attn.q_proj.weight.neg_()
    found = measure_fidelity(policy_of(model), policy_of(turned, "fastv"), observations)
    assert found.score_rank_correlation == pytest.approx(-1.0, abs=1e-3) and found.top_overlap == 0.0
    # A layer before, both are the same; the decoder has no layer 5.
    before, none = (measure_fidelity(policy_of(model), policy_of(turned, layer=layer), observations)
                    for layer in (LAYER - 1, 5))
    assert before.score_rank_correlation == pytest.approx(1.0, abs=1e-12)
    assert none.score_rank_correlation is None and none.action_mse == before.action_mse > 0.0


def test_rotated_queries_and_keys_keep_the_order_of_scores_that_outliers_spoil(tiny_demo, observations):
    model = tiny_demo()
    with torch.no_grad():
        for layer in model.decoder.layers:
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                linear.weight.view(-1, 16, 64)[:, 3::8] *= 12.0  # a channel and the one it turns with
    correlations = []
    for rotation in (RotationPlan(), RotationPlan(queries_keys=False)):
        rounded = copy.deepcopy(model)
        quantize_(rounded, W8A8(qk_bits=4, rotation=rotation))
        correlations.append(measure_fidelity(policy_of(model), policy_of(rounded), observations).score_rank_correlation)
    rotated, plain = correlations
    assert rotated > 0.98 and 1.0 - rotated < 0.6 * (1.0 - plain)


def test_what_cannot_be_compared_is_refused(tiny_demo, observations):
    whole = policy_of(tiny_demo())
    with pytest.raises(ConfigError, match="no observations to compare"):
        measure_fidelity(whole, whole, [])
    with pytest.raises(ConfigError, match=r"drops tokens by the rule 'fastv'; build it with prune.rule 'none'"):
        measure_fidelity(policy_of(tiny_demo(), "fastv"), whole, observations)
    with pytest.raises(ConfigError, match="different actions or token grids"):
        measure_fidelity(whole, policy_of(tiny_demo(chunk_steps=2)), observations)


def test_scenes_are_of_every_group_with_the_footprint_of_the_moment():
    count, seed = 18, FIRST_SEED + 500
    trials = mix_suites(count, seed)
    assert {trial.group for trial in trials} == {group for groups in SUITES.values() for group in groups}
    observations = view_scenes("demo", count, seed)
    assert [observation.instruction for observation in observations] == [trial.task.instruction for trial in trials]
    starts = 0
    for observation, (tabletop, trial) in zip(observations, visit_trials(trials), strict=True):
        assert np.array_equal(observation.images[0], tabletop.render())
        footprint, expected = observation.footprints[0], find_footprint(tabletop, FootprintKnobs())
        np.testing.assert_array_equal(footprint.centers_px, expected.centers_px)
        tabletop.reset(trial.seed)
        starts += np.allclose(footprint.centers_px, find_footprint(tabletop, FootprintKnobs()).centers_px,
                              equal_nan=True)
    assert starts <= 2  # the expert had been at work in nearly all


def test_scenes_can_be_two_of_other_frames():
    knobs = FootprintKnobs(frames=("panda_link7",), radii_m=(0.1,))
    observations = view_scenes("demo", 2, FIRST_SEED, knobs=knobs)
    assert [observation.footprints[0].frames for observation in observations] == [("panda_link7",)] * 2


def test_what_must_not_or_cannot_be_seen_is_refused_before_the_simulator_starts(tiny_demo, tmp_path, monkeypatch):
    monkeypatch.setattr(Tabletop, "reset", None)
    test = SEED_RANGES["test"]
    for first in (test.start - 4, test.start, test.stop - 1):
        with pytest.raises(ConfigError, match=f"take validation scenes, from {FIRST_SEED} on"):
            view_scenes("demo", 5, first)
    save_model(tiny_demo(), tmp_path)
    with pytest.raises(InputError, match="does not know"):
        view_scenes(str(tmp_path), 4)
