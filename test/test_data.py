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

"""The plain values between the parts."""

import dataclasses

import numpy as np
import pytest

from sqap_vla_ros.data import ACTION_NAMES, ActionChunk, Inference, StageTimes, TokenRule, TokenUse


def test_token_use_counts_by_rule():
    rules = np.array([TokenRule.ATTENTION, TokenRule.COVERAGE, TokenRule.COVERAGE, TokenRule.ROBOT], dtype=np.int8)
    use = TokenUse((4, 4), np.array([1, 5, 6, 9]), rules)
    assert [use.count(rule) for rule in TokenRule] == [1, 1, 2, 0, 0]


def test_stage_times_add_up():
    assert StageTimes({"vision": 3.5, "llm": 20.25, "head": 0.25}).total_ms == 24.0
    assert StageTimes().total_ms == 0.0


def test_actions_are_six_motions_and_the_gripper():
    assert len(ACTION_NAMES) == 7 and ACTION_NAMES[-1] == "gripper"


def test_what_crosses_a_border_is_frozen():
    chunk = ActionChunk(0, 1, np.zeros((1, 7)))
    inference = Inference(chunk, StageTimes(), ())
    for value, name in ((chunk, "stamp_ns"), (inference, "chunk"), (inference.times, "milliseconds")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, None)
