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

import pytest

from sqap_vla_ros.ros.motion import MotionClock


def clock_of(*commands):
    clock = MotionClock()
    for now_ns, moving in commands:
        clock.note(now_ns, moving=moving)
    return clock


def test_a_robot_that_was_never_moved_stands_still():
    assert [MotionClock().at(now) for now in (0, 7)] == [0, 0]
    assert clock_of((5, False), (9, False)).at(20) == 0


@pytest.mark.parametrize(("now_ns", "shown_ns"), [
    (0, 0), (10, 0), (13, 3), (20, 10), (25, 10), (30, 10), (31, 11), (99, 79)])
def test_only_motion_counts_now_and_in_the_past(now_ns, shown_ns):
    clock = clock_of((5, False), (10, True), (15, True), (20, False), (28, False), (30, True), (40, True))
    assert clock.at(now_ns) == shown_ns


def test_reset_begins_anew():
    clock = clock_of((10, True))
    assert clock.at(15) == 5
    clock.reset()
    assert clock.at(15) == 0
    clock.note(20, moving=True)
    assert clock.at(22) == 2


def test_long_ago_is_forgotten_but_not_how_much_it_was():
    clock = clock_of(*((now, now % 2 == 0) for now in range(2000)))
    # Half of the time it moved.
    assert clock.at(1999) == clock.at(5000) == 1000
    assert clock.at(0) > 800
