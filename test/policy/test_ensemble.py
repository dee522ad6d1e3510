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

"""The adaptive ensemble by its formula, by time, and against the original."""

import math

import numpy as np
import pytest
from safetensors.numpy import load_file

from sqap_vla_ros.data import ActionChunk
from sqap_vla_ros.errors import ConfigError, InferenceError
from sqap_vla_ros.policy.ensemble import AdaptiveEnsemble, blend_predictions

START, PERIOD = 5_000_000_000_000_000_001, 200_000_000


def chunk(steps, at=0.0):
    """A chunk whose image was taken ``at`` steps after the start."""
    return ActionChunk(START + round(at * PERIOD), PERIOD, np.asarray(steps, dtype=np.float64))


def chunks(count, steps=5, seed=0):
    return np.random.default_rng(seed).normal(size=(count, steps, 7))


def ensemble_plainly(predictions, alpha):
    """Of (K, 7) predictions of one moment, the newest last."""
    newest = predictions[-1]
    weights = [math.exp(alpha * float(p @ newest) / (math.sqrt(p @ p) * math.sqrt(newest @ newest) + 1e-7))
               for p in predictions]
    return sum(weight * p for weight, p in zip(weights, predictions, strict=True)) / sum(weights)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 2.0])
def test_each_step_blends_what_was_said_of_its_time(alpha):
    given = chunks(4)
    ensemble = AdaptiveEnsemble(3, alpha, gripper_is_binary=False)
    for index, steps in enumerate(given):
        blended = ensemble.blend(chunk(steps, at=index), "lift").steps
    for step in range(5):
        # Three chunks count; one that is n older says at its place n further on what this one says here.
        predictions = [given[3 - age][step + age] for age in (2, 1, 0) if step + age < 5]
        np.testing.assert_allclose(blended[step], ensemble_plainly(predictions, alpha), atol=1e-12)


def test_alike_predictions_weigh_more():
    newest, alike, opposite = np.eye(7)[0], 2 * np.eye(7)[0], -np.eye(7)[0]
    predictions = np.stack((opposite, alike, newest))[:, None]
    weights = np.exp([-1.0, 1.0, 1.0])
    expected = (weights * [-1, 2, 1]).sum() / weights.sum()
    assert blend_predictions(predictions, 1.0)[0, 0] == pytest.approx(expected, abs=1e-6)
    assert blend_predictions(predictions, 0.0)[0, 0] == pytest.approx(2 / 3)


def test_standing_still_divides_by_nothing():
    np.testing.assert_array_equal(blend_predictions(np.zeros((3, 2, 7)), 0.1), np.zeros((2, 7)))


def test_the_first_chunk_is_itself():
    steps = chunks(1)[0]
    given = chunk(steps)
    blended = AdaptiveEnsemble(7, gripper_is_binary=False).blend(given, "lift")
    np.testing.assert_allclose(blended.steps, steps, atol=1e-14)
    assert (blended.stamp_ns, blended.step_period_ns) == (given.stamp_ns, PERIOD)


@pytest.mark.parametrize(("steps_between", "offset"), [
    (0, 0), (0.4, 0), (0.6, 1), (1, 1), (1.4, 1), (2.6, 3), (4, 4), (4.6, None), (5, None), (5000, None)])
def test_slow_and_uneven_inference_is_matched_by_stamps(steps_between, offset):
    older, newer = chunks(2)
    ensemble = AdaptiveEnsemble(2, 0.1, gripper_is_binary=False)
    ensemble.blend(chunk(older), "lift")
    first = ensemble.blend(chunk(newer, at=steps_between), "lift").steps[0]
    both = [newer[0]] if offset is None else [older[offset], newer[0]]
    np.testing.assert_allclose(first, ensemble_plainly(both, 0.1), atol=1e-12)


def test_chunks_for_another_task_do_not_count():
    older, newer, last = chunks(3)
    ensemble = AdaptiveEnsemble(7, gripper_is_binary=False)
    ensemble.blend(chunk(older), "lift")
    np.testing.assert_allclose(ensemble.blend(chunk(newer, at=1), "drop").steps, newer, atol=1e-14)
    assert np.abs(ensemble.blend(chunk(last, at=2), "drop").steps - last)[:4].min(axis=1).max() > 0.01


def test_reset_and_a_clock_set_back_forget():
    older, newer = chunks(2)
    ensemble = AdaptiveEnsemble(7, gripper_is_binary=False)
    ensemble.blend(chunk(older), "lift")
    ensemble.reset()
    np.testing.assert_allclose(ensemble.blend(chunk(newer, at=1), "lift").steps, newer, atol=1e-14)
    np.testing.assert_allclose(ensemble.blend(chunk(older, at=0.9), "lift").steps, older, atol=1e-14)


def test_the_gripper_is_voted_on():
    ensemble, openings = AdaptiveEnsemble(3, 0.0), []
    for index, opening in enumerate((1.0, 1.0, 0.0, 0.0, 0.0)):
        steps = np.full((5, 7), 0.1)
        steps[:, 6] = opening
        openings.append(ensemble.blend(chunk(steps, at=index), "lift").steps[0, 6])
    # A vote is not fed back: the third blend is 2/3 open, the fourth 1/3.
    assert openings == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_a_chunk_that_is_not_finite_is_not_taken_up():
    older, broken, newer = chunks(3)
    broken[2, 3] = math.nan
    ensemble, reference = (AdaptiveEnsemble(3, gripper_is_binary=False) for _ in range(2))
    for each in (ensemble, reference):
        each.blend(chunk(older), "lift")
    with pytest.raises(InferenceError, match="a chunk of the ensemble has 1 of 35 values"):
        ensemble.blend(chunk(broken, at=1), "lift")
    np.testing.assert_array_equal(*(each.blend(chunk(newer, at=2), "lift").steps for each in (ensemble, reference)))


@pytest.mark.parametrize(("knobs", "named"), [
    ({"horizon": 0}, "horizon is 0 chunks; it must be at least 1"), ({"alpha": math.inf}, "alpha is inf"),
    ({"alpha": math.nan}, "alpha is nan")])
def test_impossible_knobs_are_refused(knobs, named):
    with pytest.raises(ConfigError, match=named):
        AdaptiveEnsemble(**knobs)


def test_actions_are_the_original_ones(oracles):
    reference = load_file(oracles / "cogact" / "reference_float32.safetensors")
    ensemble = AdaptiveEnsemble(7, 0.1, gripper_is_binary=False)
    assert reference["ens_in"].shape == (12, 16, 7)
    blended = [ensemble.blend(chunk(steps, at=index), "lift").steps[0]
               for index, steps in enumerate(reference["ens_in"])]
    np.testing.assert_allclose(blended, reference["ens_out"], atol=1e-12)
