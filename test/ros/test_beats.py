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

"""When a command waits for /clock."""

from types import SimpleNamespace

import pytest

from sqap_vla_ros.knobs import ControlKnobs
from sqap_vla_ros.ros.beats import Beats

MS = 1_000_000
OLD, NEW = 10_000 * MS, 10_150 * MS


class Wall:
    """A steady clock that shows what it is told."""

    now_ms = 0

    def now(self):
        return SimpleNamespace(nanoseconds=self.now_ms * MS)


@pytest.fixture
def beats_of():
    wall = Wall()
    node = SimpleNamespace(create_timer=lambda period_s, callback, clock: SimpleNamespace(
        timer_period_ns=round(period_s * 1e9)))
    beats = Beats(node, wall, lambda: None, lambda: None)
    beats.start(ControlKnobs(command_hz=50.0))

    def ask(wall_ms, now_ns):
        wall.now_ms = wall_ms
        return beats.comes_behind_a_stall(now_ns)

    return ask


def test_steady_beats_wait_for_nothing(beats_of):
    assert not any(beats_of(20 * count, OLD) for count in range(1, 20))


def test_behind_a_stall_all_wait_until_the_clock_has_moved(beats_of):
    assert not beats_of(20, OLD)
    # A picture, and the timer behind it, before /clock was read.
    assert beats_of(170, OLD) and beats_of(172, OLD) and beats_of(175, OLD)
    assert not beats_of(176, NEW) and not beats_of(196, NEW)


def test_a_clock_that_stands_still_is_waited_for_one_period_only(beats_of):
    assert beats_of(170, OLD) and beats_of(189, OLD) and not beats_of(190, OLD)


def test_where_every_beat_is_late_every_second_one_goes(beats_of):
    assert [beats_of(50 * count, OLD) for count in range(1, 7)] == [True, False] * 3
