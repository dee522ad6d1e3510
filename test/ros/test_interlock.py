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

"""What latches, what ends it, and what a person is told."""

import pytest

from sqap_vla_ros.knobs import ControlKnobs
from sqap_vla_ros.ros.interlock import Interlock

ON, OFF = ControlKnobs(enable_actuation=True), ControlKnobs(enable_actuation=False)


def failed(times, limit=3, sentence="no memory"):
    interlock = Interlock()
    return interlock, [interlock.note_failure(sentence, limit) for _ in range(times)]


def test_nothing_stops_at_first_but_actuation_that_is_off():
    interlock = Interlock()
    assert interlock.open
    assert interlock.why_stopped(ON) == ("", "")
    assert interlock.why_stopped(OFF) == (
        "actuation", "control.enable_actuation is false; set it, or call ~/enable_actuation with true")
    # Actuation is a knob, not a latch.
    assert interlock.open


def test_the_e_stop_latches_and_tells_whether_it_is_still_pressed():
    interlock = Interlock()
    interlock.press(False)
    assert interlock.open
    interlock.press(True)
    assert not interlock.open
    assert interlock.why_stopped(ON) == ("estop", "the e-stop is pressed; release it, then call ~/reset_fault to go on")
    interlock.press(False)
    assert not interlock.open
    assert interlock.why_stopped(ON) == ("estop", "the e-stop was pressed; call ~/reset_fault to go on")


def test_a_reset_is_refused_while_the_e_stop_is_pressed():
    interlock = Interlock()
    interlock.trip("an inference took 12 s")
    interlock.press(True)
    for _ in range(2):
        assert interlock.reset() == ("the e-stop is pressed: the last message on estop is true; release it, then call "
                                     "~/reset_fault again")
        assert interlock.why_stopped(ON)[0] == "estop"
    interlock.press(False)
    assert interlock.reset() == ""
    assert interlock.open and interlock.why_stopped(ON) == ("", "")


def test_a_button_pressed_again_stops_again():
    interlock = Interlock()
    interlock.press(True)
    interlock.press(False)
    interlock.press(True)
    assert interlock.reset() != ""
    interlock.press(False)
    assert interlock.reset() == ""
    interlock.press(True)
    assert not interlock.open


@pytest.mark.parametrize("limit", [1, 3, 5])
def test_so_many_failures_in_a_row_are_a_fault_told_once(limit):
    interlock, made_fault = failed(limit + 2, limit)
    assert made_fault == [False] * (limit - 1) + [True] + [False] * 2
    assert interlock.why_stopped(ON) == (
        "fault", f"fault: {limit} inferences in a row have failed, the last one: no memory; call ~/reset_fault when "
                 "the cause is gone")


def test_a_success_ends_the_row_but_not_a_fault():
    interlock, _ = failed(2)
    interlock.note_success()
    assert not interlock.note_failure("again", 3) and not interlock.note_failure("again", 3)
    assert interlock.open
    assert interlock.note_failure("again", 3)
    interlock.note_success()
    assert not interlock.open


def test_a_lowered_limit_counts_the_failures_before():
    interlock, _ = failed(3, limit=10)
    assert interlock.open
    assert interlock.note_failure("no memory", 2)
    assert "4 inferences in a row have failed" in interlock.why_stopped(ON)[1]


def test_after_a_reset_failures_are_counted_anew():
    interlock, _ = failed(3)
    assert interlock.reset() == ""
    assert [interlock.note_failure("no memory", 3) for _ in range(3)] == [False, False, True]
    assert not interlock.open


def test_the_first_fault_keeps_its_sentence():
    interlock = Interlock()
    interlock.trip("an inference took 12 s")
    interlock.trip("another thing")
    assert [interlock.note_failure("no memory", 1) for _ in range(2)] == [False, False]
    assert interlock.why_stopped(ON) == (
        "fault", "fault: an inference took 12 s; call ~/reset_fault when the cause is gone")


def test_a_fault_without_words_is_one():
    interlock = Interlock()
    interlock.trip("")
    assert not interlock.open and interlock.why_stopped(ON)[0] == "fault"


def test_the_gravest_is_told_and_a_reset_does_not_switch_actuation_on():
    interlock = Interlock()
    interlock.trip("an inference took 12 s")
    assert interlock.why_stopped(OFF)[0] == "fault"
    interlock.press(True)
    assert interlock.why_stopped(OFF)[0] == "estop"
    interlock.press(False)
    assert interlock.why_stopped(OFF)[0] == "estop"
    assert interlock.reset() == ""
    assert interlock.why_stopped(OFF)[0] == "actuation"


def test_nothing_to_reset_is_no_refusal():
    assert Interlock().reset() == ""
