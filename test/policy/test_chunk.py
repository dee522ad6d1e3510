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

"""Indexing by time."""

import numpy as np
import pytest

from sqap_vla_ros.data import ActionChunk
from sqap_vla_ros.policy.chunk import executed_steps, step_at, step_velocity

START, PERIOD = 5_000_000_000_000_000_001, 100_000_000


def chunk(steps=4):
    return ActionChunk(START, PERIOD, np.arange(7.0 * steps).reshape(steps, 7))


@pytest.mark.parametrize(("after_ns", "index", "executed"), [
    (-10 * PERIOD, None, 0), (-1, None, 0), (0, 0, 0), (1, 0, 0), (PERIOD - 1, 0, 0), (PERIOD, 1, 1),
    (2 * PERIOD + 1, 2, 2), (4 * PERIOD - 1, 3, 3), (4 * PERIOD, None, 4), (400 * PERIOD, None, 4)])
def test_steps_by_time(after_ns, index, executed):
    assert step_at(chunk(), START + after_ns) == index
    assert executed_steps(chunk(), START + after_ns) == executed


def test_every_step_is_due_for_exactly_its_period():
    times = range(START - PERIOD, START + 6 * PERIOD, PERIOD // 50)
    due = [step_at(chunk(), now) for now in times]
    assert [due.count(index) for index in range(4)] == [50] * 4
    assert due.count(None) == 50 + 2 * 50


def test_a_step_becomes_a_velocity():
    np.testing.assert_allclose(step_velocity(chunk(), 1), [70, 80, 90, 100, 110, 120])
