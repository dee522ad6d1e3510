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

"""Every rule inside a whole policy: K tokens leave the decoder's layer, and runs repeat."""

import numpy as np
import pytest

from sqap_vla_ros.config import build_config
from sqap_vla_ros.data import Observation, RobotFootprint, TokenRule
from sqap_vla_ros.models.own_format import save_model
from sqap_vla_ros.policy.policy import build_policy
from sqap_vla_ros.pruning.selection import RULES

# Within token (2, 3) of the 8 x 8 grid over 32 x 32 px.
HAND = RobotFootprint(("hand",), np.array([[13.5, 9.5]]), np.array([1.9]))


def observe(seed):
    rgb = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return Observation(seed, (rgb,), "pick up the red block", (HAND,))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "none"])
@pytest.mark.parametrize("space", ["patch", "feature"])
def test_every_rule_keeps_its_budget_and_repeats_whatever_ran_before(rule, space, tiny_demo, tmp_path):
    save_model(tiny_demo(), tmp_path / "checkpoint")
    config = build_config({"model.checkpoint": str(tmp_path / "checkpoint"), "model.recipe": "float", "prune.layer": 0,
                           "prune.pruned_ratio": 0.5, "prune.rule": rule, "prune.coverage_space": space})
    policy = build_policy(config)
    policy.warm_up()
    first, other, again = (policy.infer(observe(seed)) for seed in (1, 2, 1))
    for inference in (first, other, again):
        (tokens,) = inference.tokens
        assert len(tokens.kept) == 32 and (np.diff(tokens.kept) > 0).all()
        assert tokens.count(TokenRule.UNPRUNED) == 0
        assert (2 * 8 + 3 in tokens.kept) or rule not in ("sqap", "sqap-no-attention", "sqap-no-coverage")
    np.testing.assert_array_equal(first.tokens[0].kept, again.tokens[0].kept)
    np.testing.assert_array_equal(first.chunk.steps, again.chunk.steps)
    # Only coverage of patches keeps the same tokens of every picture, and so does its ablation with one robot.
    same = np.array_equal(first.tokens[0].kept, other.tokens[0].kept)
    assert same == (space == "patch" and rule in ("coverage", "sqap-no-attention"))


@pytest.mark.parametrize("recipe", ["w4a4-rtn", "w8a8"])
@pytest.mark.parametrize("threads", [1, 2])
def test_keeping_all_is_the_identity_to_the_bit_when_quantized(recipe, threads, tiny_demo, tmp_path):
    save_model(tiny_demo(), tmp_path / "checkpoint")
    knobs = {"model.checkpoint": str(tmp_path / "checkpoint"), "model.recipe": recipe, "model.threads": threads}
    plain = build_policy(build_config({**knobs, "prune.rule": "none"})).infer(observe(1))
    for layer in range(3):
        kept = build_policy(build_config({**knobs, "prune.pruned_ratio": 0.0, "prune.layer": layer})).infer(observe(1))
        np.testing.assert_array_equal(kept.chunk.steps, plain.chunk.steps)
