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

"""Statistics beside checkpoints: which file counts, which data set, and what its numbers mean."""

import json

import numpy as np
import pytest

from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.models.dataset_statistics import OFT_SPAN_OFFSET, DatasetStatistics, read_statistics
from sqap_vla_ros.models.oft_presets import PRESETS, find_preset
from sqap_vla_ros.policy.preprocess import unnormalize_actions


def entry(dims=7, **more):
    return {"action": {"q01": [-0.5] * dims, "q99": [1.5] * dims, "min": [-2.0] * dims, "max": [4] * dims, **more}}


def write(folder, name, values):
    (folder / name).write_text(json.dumps(values))
    return folder


def test_statistics_beside_the_model_take_the_place_of_all_in_its_configuration(tmp_path):
    write(tmp_path, "config.json", {"norm_stats": {"bridge_orig": entry(), "fractal": entry()}})
    assert list(read_statistics(tmp_path).datasets) == ["bridge_orig", "fractal"]
    write(tmp_path, "dataset_statistics.json", {"mine": entry()})
    assert list(read_statistics(tmp_path).datasets) == ["mine"]
    assert read_statistics(tmp_path).choose(None) == "mine"


def test_a_data_set_is_named_or_the_only_one_and_others_are_listed(tmp_path):
    both = {"libero_goal_no_noops": entry(), "bridge_orig": entry()}
    statistics = read_statistics(write(tmp_path, "dataset_statistics.json", both))
    assert statistics.choose("bridge_orig") == "bridge_orig"
    assert statistics.choose("libero_goal") == "libero_goal_no_noops"
    with pytest.raises(ConfigError, match=r"no data set 'bridge'.*knows libero_goal_no_noops, bridge_orig"):
        statistics.choose("bridge")
    with pytest.raises(ConfigError, match=r"no data set is named.*knows libero_goal_no_noops, bridge_orig"):
        statistics.choose(None)


def test_what_is_read_of_statistics_survives_json_and_nothing_else_does(tmp_path):
    written = {"a": {**entry(2, mask=[True, False], std=[1.0] * 2), "proprio": entry(3)["action"], "num_steps": 5}}
    statistics = read_statistics(write(tmp_path, "dataset_statistics.json", written))
    values = json.loads(json.dumps(statistics.to_json()))
    assert values == {"a": {"action": {"q01": [-0.5] * 2, "q99": [1.5] * 2, "min": [-2.0] * 2, "max": [4] * 2,
                                       "mask": [True, False]}, "proprio": entry(3)["action"]}}
    again = DatasetStatistics(tmp_path, values)
    for part, kind in (("action", "q99"), ("proprio", "min-max")):
        assert again.bounds("a", part, kind) == statistics.bounds("a", part, kind)


def test_both_normalisations_with_and_without_mask(tmp_path):
    masked = entry(mask=[True] * 6 + [False])
    statistics = read_statistics(write(tmp_path, "dataset_statistics.json", {"a": masked, "b": entry()}))
    quantiles, ends = (statistics.bounds(name, "action", kind) for name, kind in (("a", "q99"), ("b", "min-max")))
    x = np.linspace(-1, 1, 7)[None]
    expected = np.where(np.arange(7) < 6, x + 0.5, x)
    np.testing.assert_allclose(unnormalize_actions(x, quantiles.action_spec(1)), expected, atol=1e-12)
    # Half of 2 (x + 1) times a span that is 1e-8 wider.
    wider = expected + np.where(np.arange(7) < 6, 0.5 * (x + 1) * 1e-8, 0)
    np.testing.assert_allclose(unnormalize_actions(x, quantiles.action_spec(1, OFT_SPAN_OFFSET)), wider, atol=1e-15)
    np.testing.assert_allclose(unnormalize_actions(x, ends.action_spec(1)), 3 * x + 1, atol=1e-12)


@pytest.mark.parametrize(("part", "message"), [
    ({"q01": [0.0]}, "'q99' must be a list of numbers, it is None"),
    ({"q01": [0.0], "q99": [1.0, 2.0]}, "1 low ends, 2 high ends and 1 in 'mask'"),
    ({"q01": [0.0], "q99": [float("nan")]}, "'q99' must hold finite numbers, it holds nan"),
    ({"q01": [0.0], "q99": [True]}, "'q99' must hold finite numbers, it holds True"),
    ({"q01": [0.0], "q99": [1.0], "mask": [1]}, "'mask' must be a list of true and false"),
    ([], "missing; a data set must tell"),
])
def test_what_is_no_statistics_is_named(tmp_path, part, message):
    statistics = read_statistics(write(tmp_path, "dataset_statistics.json", {"mine": {"action": part}}))
    with pytest.raises(CheckpointError, match=f"data set 'mine', action: {message}"):
        statistics.bounds(None, "action", "q99")


@pytest.mark.parametrize("values", [None, {"model_type": "openvla"}, {"norm_stats": {}}, [1]])
def test_a_checkpoint_that_does_not_tell_is_refused(tmp_path, values):
    if values is not None:
        write(tmp_path, "config.json", values)
    with pytest.raises(CheckpointError, match=r"norm_stats|JSON object"):
        read_statistics(tmp_path)


def test_presets_are_those_of_the_published_robots(tmp_path):
    sizes = {name: (p.chunk_steps, p.action_dims, p.proprio_dims, p.normalization, len(p.cameras), p.action_tokens)
             for name, p in PRESETS.items()}
    assert sizes == {"libero": (8, 7, 8, "q99", 2, 56), "aloha": (25, 14, 14, "min-max", 3, 350),
                     "bridge": (5, 7, 7, "q99", 1, 35)}
    statistics = read_statistics(write(tmp_path, "dataset_statistics.json", {"fold": entry(14), "pick": entry(7)}))
    spec = find_preset("aloha").action_spec(statistics, "fold")
    assert (spec.chunk_steps, spec.low[0], len(spec.low), spec.high[0] - 4.0) == (25, -2.0, 14, pytest.approx(1e-8))
    with pytest.raises(CheckpointError, match="14 action dimensions, the preset is for 7; presets are libero, aloha"):
        find_preset("libero").action_spec(statistics, "fold")
    with pytest.raises(ConfigError, match="preset 'Libero'; presets are libero, aloha, bridge"):
        find_preset("Libero")
