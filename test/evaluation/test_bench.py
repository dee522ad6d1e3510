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

"""Engines are measured in turn, on the same observation, and compared within rounds."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sqap_vla_ros.config import build_config
from sqap_vla_ros.data import StageTimes
from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.evaluation.bench import (
    WARM_UP_ROUNDS,
    BenchRounds,
    build_engine,
    describe_engine,
    prepare_observations,
    run_rounds,
    summarize_rounds,
)
from sqap_vla_ros.models.own_format import save_model
from sqap_vla_ros.policy.observations import write_observations
from sqap_vla_ros.quantization.linear import QuantLinear


class Clockwork:
    """A policy that takes as long as it is told."""

    def __init__(self, name, llm_ms, calls, stop_after=None):
        self.name, self.llm_ms, self.calls, self.stop_after = name, llm_ms, calls, stop_after

    def infer(self, observation):
        self.calls.append((self.name, observation))
        if self.stop_after is not None and len(self.calls) > self.stop_after:
            raise KeyboardInterrupt
        slow = 1.0 + len(self.calls) // 3  # each round of three is slower than the one before
        return SimpleNamespace(times=StageTimes({"vision": 2.0, "llm": self.llm_ms * slow, "head": 1.0}))


def make_policies(calls, **more):
    return {name: Clockwork(name, llm_ms, calls, **more)
            for name, llm_ms in (("float32", 40.0), ("bfloat16", 20.0), ("cpu", 8.0))}


@pytest.fixture
def checkpoint(tiny_demo, tmp_path):
    save_model(tiny_demo(), tmp_path / "checkpoint")
    rng = np.random.default_rng(0)
    write_observations(tmp_path / "pictures", [
        (rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), "pick up the red block") for _ in range(5)])
    return tmp_path


def test_every_round_runs_every_engine_once_on_the_same_observation():
    calls, rounds, told = [], BenchRounds(), []
    run_rounds(make_policies(calls), ["a", "b"], 6, rounds, lambda: told.append(len(rounds.milliseconds)))
    assert told == [1, 2, 3, 4, 5, 6]
    by_round = [calls[index:index + 3] for index in range(0, len(calls), 3)]
    assert len(by_round) == 6 + WARM_UP_ROUNDS
    assert all({name for name, _ in part} == {"float32", "bfloat16", "cpu"} for part in by_round)
    assert [{observation for _, observation in part} for part in by_round[WARM_UP_ROUNDS:]] == [{"a"}, {"b"}] * 3
    assert len({tuple(name for name, _ in part) for part in by_round}) > 1


def test_interruption_keeps_whole_rounds():
    rounds = BenchRounds()
    with pytest.raises(KeyboardInterrupt):
        run_rounds(make_policies([], stop_after=3 * WARM_UP_ROUNDS + 7), ["a"], 100, rounds)
    assert [set(row) for row in rounds.milliseconds] == [{"float32", "bfloat16", "cpu"}] * 2


def test_medians_spread_and_ratios():
    rng = np.random.default_rng(1)
    drift = np.exp(rng.normal(size=60))  # the machine's own ups and downs, far larger than what is looked for
    rounds = BenchRounds([{"cpu": {"vision": 2.0 * slow, "llm": 8.0 * slow},
                           "float32": {"vision": 2.0 * slow, "llm": 34.0 * slow * rng.normal(1.0, 0.01)}}
                          for slow in drift])
    summary = summarize_rounds(rounds, ("float32", "cpu"))
    assert list(summary["engines"]) == ["float32", "cpu"]
    cpu = summary["engines"]["cpu"]
    assert list(cpu["stages_ms"]) == ["vision", "llm", "total"]
    assert cpu["stages_ms"]["llm"] == pytest.approx(8.0 * np.median(drift), abs=1e-3)
    assert cpu["spread_ms"]["total"] == pytest.approx(np.percentile(10.0 * drift, (10, 90)), abs=1e-3)
    assert list(summary["ratios"]) == ["cpu"]
    assert set(summary["ratios"]["cpu"]) == {"llm_vs_float32", "total_vs_float32"}
    assert summary["ratios"]["cpu"]["llm_vs_float32"] == pytest.approx(4.25, abs=0.02)
    low, high = summary["intervals"]["cpu"]["llm_vs_float32"]
    assert 4.2 < low < summary["ratios"]["cpu"]["llm_vs_float32"] < high < 4.3
    assert summary["ratios"]["cpu"]["total_vs_float32"] == pytest.approx(3.6, abs=0.02)


def test_float_engines_keep_all_tokens_and_quantized_ones_prune(checkpoint):
    config = build_config({"model.checkpoint": str(checkpoint / "checkpoint"), "model.recipe": "w4a4-rtn",
                           "prune.rule": "sqap", "prune.pruned_ratio": 0.75, "prune.layer": 1})
    observation = prepare_observations(str(checkpoint), checkpoint / "pictures", 1)[0]
    policies = {name: build_engine(name, config) for name in ("float32", "bfloat16", "cpu", "reference")}
    steps = {name: policy.infer(observation).chunk.steps for name, policy in policies.items()}
    np.testing.assert_allclose(steps["cpu"], steps["reference"], atol=1e-6)
    assert 1e-6 < np.abs(steps["float32"] - steps["bfloat16"]).max() < 1e-2
    assert np.abs(steps["float32"] - steps["cpu"]).max() > 1e-5
    assert {policy.model.decoder.norm.weight.dtype for policy in (policies["float32"], policies["bfloat16"])} == {
        torch.float32, torch.bfloat16}
    told = {name: describe_engine(policy) for name, policy in policies.items()}
    assert [told[name]["kept_tokens"] for name in policies] == [64, 64, 16, 16]
    assert told["bfloat16"]["weight_bytes"] * 2 == told["float32"]["weight_bytes"] == told["cpu"]["float32_bytes"]
    linears = [module for module in policies["cpu"].model.modules() if isinstance(module, QuantLinear)]
    assert told["cpu"]["weight_bytes"] == sum(linear.stored_bytes for linear in linears)
    assert (told["cpu"]["prune_layer"], told["float32"]["prune_layer"]) == (1, None)


def test_observations_are_spread_over_the_folder_and_show_a_robot(checkpoint):
    chosen = prepare_observations(str(checkpoint), checkpoint / "pictures", 3)
    everything = prepare_observations(str(checkpoint), checkpoint / "pictures", 99)
    assert len(everything) == 5
    assert [observation.images[0].sum() for observation in chosen] == [
        everything[index].images[0].sum() for index in (0, 2, 4)]
    for observation in everything:
        assert observation.footprints[0].centers_px[0].tolist() == [32.0, pytest.approx(21.6)]
    with pytest.raises(ConfigError, match="comes without pictures; give --observations"):
        prepare_observations(str(checkpoint), None, 3)
