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

import numpy as np
import pytest

from sqap_vla_ros.data import ActionChunk
from sqap_vla_ros.errors import InferenceError, InputError
from sqap_vla_ros.knobs import ControlKnobs, SafetyKnobs
from sqap_vla_ros.policy.ensemble import AdaptiveEnsemble
from sqap_vla_ros.ros.cycle import Cycle, Picture
from sqap_vla_ros.ros.pacing import PICTURE_GRACE_S

S = 1_000_000_000
STEP = S // 10
CONTROL, SAFETY = ControlKnobs(execute_steps=2), SafetyKnobs()


TAKEN = ("", "")


def chunk_at(stamp_ns, steps=4, **columns):
    values = np.zeros((steps, 7))
    values[:, 0] = 0.01 * np.arange(1, steps + 1)
    for name, value in columns.items():
        values[:, "xyz".index(name)] = value
    return ActionChunk(stamp_ns, STEP, values)


def cycle_with(instruction="go", chunk=None):
    cycle = Cycle()
    cycle.set_instruction(instruction)
    if chunk is not None:
        assert answer(cycle, chunk) == TAKEN
    return cycle


def answer(cycle, chunk, now_ns=None, safety=SAFETY):
    """The policy answers, at once when no time is given."""
    return cycle.end(cycle.generation, chunk, chunk.stamp_ns if now_ns is None else now_ns, safety)


def show(cycle, stamp_ns, now_ns=None):
    cycle.take_picture(Picture(("message",), stamp_ns, 0), stamp_ns if now_ns is None else now_ns, SAFETY)


def test_nothing_is_due_without_words_or_without_a_picture():
    cycle = cycle_with("")
    show(cycle, S)
    assert cycle.due_picture(S, CONTROL, SAFETY) is None
    cycle.set_instruction("go")
    assert cycle.due_picture(S, CONTROL, SAFETY).stamp_ns == S
    assert cycle_with().due_picture(S, CONTROL, SAFETY) is None


@pytest.mark.parametrize(("after_steps", "due"), [(0.5, False), (1.99, False), (2.0, True), (3.5, True), (9.0, True)])
def test_a_picture_is_due_when_the_chunk_has_run_its_share(after_steps, due):
    cycle = cycle_with(chunk=chunk_at(S))
    stamp_ns = S + round(after_steps * STEP)
    show(cycle, stamp_ns)
    assert (cycle.due_picture(stamp_ns, CONTROL, SAFETY) is not None) is due


def test_a_picture_counts_from_its_own_stamp_not_from_when_it_is_looked_at():
    cycle = cycle_with(chunk=chunk_at(S))
    show(cycle, S + STEP)
    # Also when the chunk has ended: the picture shows none of what became of it.
    for now_ns in (S + 3 * STEP, S + 4 * STEP):
        assert cycle.due_picture(now_ns, CONTROL, SAFETY) is None
    show(cycle, S + 2 * STEP, S + 4 * STEP)
    assert cycle.due_picture(S + 4 * STEP, CONTROL, SAFETY).stamp_ns == S + 2 * STEP


def test_the_newest_picture_wins_and_one_that_aged_while_waiting_is_dropped():
    cycle = cycle_with()
    show(cycle, S)
    show(cycle, S + STEP)
    assert cycle.due_picture(S + STEP, CONTROL, SAFETY).stamp_ns == S + STEP
    assert cycle.due_picture(S + STEP + S, CONTROL, SAFETY) is None
    assert cycle.picture is None


@pytest.mark.parametrize(("age_s", "sentence"), [(0.51, "the oldest allowed is 0.5 s"), (-0.2, "ahead")])
def test_a_picture_of_another_time_is_refused_and_remembered_as_the_reason(age_s, sentence):
    cycle = cycle_with()
    with pytest.raises(InputError, match=sentence):
        show(cycle, 5 * S, 5 * S + round(age_s * S))
    assert cycle.picture is None
    kind, why = cycle.why_hold(5 * S, SAFETY)
    assert kind == "no_image" and sentence in why


def test_the_step_of_this_moment_is_commanded_and_none_after_the_last():
    cycle = cycle_with(chunk=chunk_at(S))
    speeds = []
    for step in (0.0, 0.99, 1.0, 3.99):
        command = cycle.command(S + round(step * STEP), SAFETY)
        speeds.append(command.velocity[0])
    np.testing.assert_allclose(speeds, (0.1, 0.1, 0.2, 0.4))
    assert cycle.command(S + 4 * STEP, SAFETY) is None
    assert cycle.command(S - 1, SAFETY) is None


def test_commands_of_one_step_are_known_as_one():
    cycle = cycle_with(chunk=chunk_at(S, x=0.3))
    steps = [cycle.command(S + now, SAFETY).step for now in (0, STEP // 2, STEP, 3 * STEP // 2)]
    assert steps == [(S, 0), (S, 0), (S, 1), (S, 1)]


def test_an_answer_is_carried_out_for_a_while_only_when_no_newer_one_comes():
    cycle = cycle_with(chunk=chunk_at(S))
    patient, hasty = SafetyKnobs(command_timeout_s=0.35, max_image_age_s=9.0), (
        SafetyKnobs(command_timeout_s=0.25, max_image_age_s=9.0))
    cycle.take_picture(Picture(("message",), S, 0), S, SAFETY)
    cycle.set_instruction("go")
    cycle.take_picture(Picture(("message",), S, 0), S, SAFETY)
    cycle.begin()
    assert cycle.end(cycle.generation, chunk_at(S), S, SAFETY) == ("", "")
    assert cycle.command(S + 3 * STEP, patient) is not None
    assert cycle.command(S + 3 * STEP, hasty) is None
    kind, why = cycle.why_hold(S + 3 * STEP, hasty)
    assert kind == "" and why == "no new answer for 0.3 s, and safety.command_timeout_s is 0.25 s"


def test_what_was_decided_before_an_interlock_closed_is_void():
    cycle = cycle_with(chunk=chunk_at(S))
    generation = cycle.generation
    cycle.begin_anew()
    assert cycle.command(S, SAFETY) is None
    assert cycle.end(generation, chunk_at(S), S, SAFETY) == ("dropped_chunk", "")


def test_a_step_that_is_not_finite_voids_the_chunk():
    cycle = cycle_with(chunk=chunk_at(S, y=np.nan))
    with pytest.raises(InferenceError, match="not finite"):
        cycle.command(S, SAFETY)
    assert cycle.command(S, SAFETY) is None


def test_answers_of_an_older_generation_do_not_count():
    cycle = cycle_with()
    began = cycle.generation
    for begin_another in (lambda: cycle.set_instruction("other"), cycle.clear):
        begin_another()
        assert cycle.end(began, chunk_at(S), S, SAFETY) == ("dropped_chunk", "")
        assert cycle.chunk is None
        began = cycle.generation
    assert cycle.end(began, chunk_at(S), S, SAFETY) == TAKEN


def test_a_failed_inference_holds():
    cycle = cycle_with(chunk=chunk_at(S))
    assert answer(cycle, None, S) == TAKEN
    assert cycle.command(S, SAFETY) is None


def test_why_the_robot_holds():
    cycle = Cycle()
    assert cycle.why_hold(0, SAFETY)[0] == "clock"
    assert cycle.why_hold(S, SAFETY) == ("", "there is no instruction on instruction yet")
    cycle.set_instruction("", "the words were strange")
    assert cycle.why_hold(S, SAFETY) == ("", "the words were strange")
    cycle.set_instruction("go")
    assert cycle.why_hold(S, SAFETY) == ("no_image", "no image has arrived on camera/image_raw")
    show(cycle, S)
    assert cycle.why_hold(S, SAFETY) == ("", "the next actions are not ready")
    answer(cycle, chunk_at(S))
    assert cycle.why_hold(S, SAFETY) == ("", "")
    assert cycle.why_hold(3 * S, SAFETY)[1] == "no image for 2.0 s on camera/image_raw; is the camera running?"


# --- how an answer counts that took its time

def speed(cycle, now_ns):
    """Commanded along x, m/s; None for a hold."""
    command = cycle.command(round(now_ns), SAFETY)
    return None if command is None else round(float(command.velocity[0]), 6)


def look(cycle, stamp_ns):
    show(cycle, stamp_ns)
    assert cycle.due_picture(stamp_ns, CONTROL, SAFETY).stamp_ns == stamp_ns
    cycle.begin()


def test_after_a_hold_a_chunk_begins_at_its_first_step_however_long_it_took():
    cycle = cycle_with()
    look(cycle, S)
    assert [speed(cycle, S + step * STEP) for step in range(4)] == [None] * 4
    assert answer(cycle, chunk_at(S), S + 7 * STEP) == TAKEN
    cycle.take_picture(Picture(("message",), S + 7 * STEP, 0), S + 7 * STEP, SAFETY)
    assert [speed(cycle, S + step * STEP) for step in (7, 7.99, 8, 9, 10, 11)] == [0.1, 0.1, 0.2, 0.3, 0.4, None]


def test_one_step_at_a_time_moves_for_one_step_per_look_and_looks_when_it_is_over():
    cycle, now_ns, moved = cycle_with(), S, []
    for _ in range(3):
        look(cycle, now_ns)
        assert speed(cycle, now_ns + STEP) is None
        answer(cycle, chunk_at(now_ns, steps=1), now_ns + 3 * STEP)
        show(cycle, now_ns + 3 * STEP)
        moved += [speed(cycle, now_ns + step * STEP) for step in (3, 3.5, 3.99, 4)]
        # A picture from before the end of the step shows a robot that still moves.
        assert cycle.due_picture(now_ns + 4 * STEP, CONTROL, SAFETY) is None
        now_ns += 4 * STEP
    assert moved == [0.1, 0.1, 0.1, None] * 3


def test_where_the_robot_moved_on_a_chunk_counts_from_its_image():
    cycle = cycle_with(chunk=chunk_at(S))
    speed(cycle, S)
    look(cycle, S + 2 * STEP)
    assert speed(cycle, S + 3.5 * STEP) == 0.4
    assert answer(cycle, chunk_at(S + 2 * STEP), S + 7 * STEP // 2) == TAKEN
    assert cycle.chunk.stamp_ns == S + 2 * STEP
    assert speed(cycle, S + 3.5 * STEP) == 0.2


def test_only_the_time_of_standing_still_is_not_counted():
    cycle = cycle_with(chunk=chunk_at(S))
    speed(cycle, S)
    look(cycle, S + 2 * STEP)
    # Two steps of the old chunk are still carried out, then the robot stands for three.
    assert speed(cycle, S + 3.5 * STEP) == 0.4 and speed(cycle, S + 4 * STEP) is None
    assert answer(cycle, chunk_at(S + 2 * STEP), S + 7 * STEP) == TAKEN
    show(cycle, S + 7 * STEP)
    assert [speed(cycle, S + step * STEP) for step in (7, 8, 9)] == [0.3, 0.4, None]


def test_an_answer_that_is_too_old_is_dropped_and_the_way_out_is_told():
    cycle, sentence = cycle_with(), ("an answer came 2.10 s after its image, and safety.max_answer_age_s is 2 s; raise "
                                     "that, or take a faster model.recipe or model.engine")
    look(cycle, S)
    now_ns = S + 21 * STEP
    assert answer(cycle, chunk_at(S), now_ns) == ("late_answer", sentence)
    assert speed(cycle, now_ns) is None
    look(cycle, now_ns)
    assert cycle.why_hold(now_ns, SAFETY) == ("", sentence)
    assert answer(cycle, chunk_at(now_ns), now_ns + 21 * STEP, SafetyKnobs(max_answer_age_s=3.0)) == TAKEN
    show(cycle, now_ns + 21 * STEP)
    assert speed(cycle, now_ns + 21 * STEP) == 0.1
    # At the limit it still counts.
    assert answer(cycle, chunk_at(now_ns), now_ns + 2 * S) == TAKEN


def test_a_chunk_that_is_over_when_it_comes_is_dropped_and_told():
    cycle = cycle_with(chunk=chunk_at(S, steps=8))
    speed(cycle, S)
    look(cycle, S + 2 * STEP)
    assert answer(cycle, chunk_at(S + 2 * STEP), S + 6 * STEP) == (
        "over_chunk", "an answer's 4 steps of 0.1 s were over when it came: the robot has moved for 0.40 s since its "
                      "image; raise control.command_hz or control.step_period_s")
    # What is in force goes on.
    assert speed(cycle, S + 6 * STEP) == pytest.approx(0.7)


# --- the ensemble

def blending_cycle():
    cycle = Cycle(AdaptiveEnsemble(2, 0.0))
    cycle.set_instruction("go")
    return cycle


def test_steps_are_matched_by_the_motion_between_two_looks():
    cycle = blending_cycle()
    look(cycle, S)
    answer(cycle, chunk_at(S), S + 3 * STEP)
    assert speed(cycle, S + 3 * STEP) == 0.1
    # One step of motion lies between the two images, and half a second.
    show(cycle, S + 4 * STEP)
    cycle.begin()
    assert speed(cycle, S + 4 * STEP) == 0.2
    answer(cycle, chunk_at(S + 4 * STEP, x=0.04), S + 5 * STEP)
    assert cycle.chunk.stamp_ns == S + 4 * STEP
    np.testing.assert_allclose(cycle.chunk.steps[:, 0], np.mean([(0.02, 0.03, 0.04, 0.04), (0.04,) * 4], axis=0))


@pytest.mark.parametrize("forget", [
    lambda cycle: cycle.set_instruction("go"), lambda cycle: (cycle.clear(), cycle.set_instruction("go")), None])
def test_a_new_instruction_and_a_clock_that_jumped_begin_another_ensemble(forget):
    cycle = blending_cycle()
    answer(cycle, chunk_at(S))
    if forget is not None:
        forget(cycle)
    answer(cycle, chunk_at(S, x=0.05))
    assert cycle.chunk.steps[0, 0] == pytest.approx(0.03 if forget is None else 0.05)


@pytest.mark.parametrize(("pause_s", "first"), [(1.9, 0.03), (2.1, 0.05)])
def test_what_was_decided_long_ago_is_not_blended(pause_s, first):
    cycle = blending_cycle()
    answer(cycle, chunk_at(S))
    answer(cycle, chunk_at(S + round(pause_s * S), x=0.05))
    assert cycle.chunk.steps[0, 0] == pytest.approx(first)


def test_a_chunk_that_cannot_be_blended_holds():
    cycle = blending_cycle()
    answer(cycle, chunk_at(S))
    with pytest.raises(InferenceError, match="a chunk of the ensemble has 4 of 28 values that are not finite"):
        answer(cycle, chunk_at(S, y=np.nan))
    assert speed(cycle, S) is None


# --- simulated time that stands still

def waits(cycle, now_ns, wall_ns=0):
    return cycle.must_wait(now_ns, wall_ns, CONTROL.execute_steps)


def test_a_command_waits_for_the_answer_to_the_picture_of_this_moment():
    cycle = cycle_with()
    show(cycle, S)
    assert waits(cycle, S)
    cycle.begin()
    assert waits(cycle, S)
    # Once time has moved on, waiting is over.
    assert not waits(cycle, S + 1)
    answer(cycle, chunk_at(S))
    assert not waits(cycle, S)


def test_nothing_is_waited_for_while_a_chunk_runs_or_nobody_asked():
    cycle = cycle_with(chunk=chunk_at(S))
    show(cycle, S + STEP)
    assert not waits(cycle, S + STEP)
    show(cycle, S + 2 * STEP)
    assert waits(cycle, S + 2 * STEP)
    cycle.set_instruction("", "enough")
    assert not waits(cycle, S + 2 * STEP)


def test_a_picture_that_the_rhythm_promises_is_waited_for_but_not_for_long():
    cycle = cycle_with()
    show(cycle, S)
    show(cycle, S + STEP)
    cycle.begin()
    answer(cycle, chunk_at(S + STEP))
    before, due = S + 3 * STEP - 1, S + 3 * STEP
    show(cycle, S + 2 * STEP)
    assert not waits(cycle, before)
    # The clock is at the next picture's time, the picture is still on its way.
    assert waits(cycle, due, wall_ns=7 * S)
    assert waits(cycle, due, wall_ns=7 * S + round(0.9 * PICTURE_GRACE_S * S))
    assert not waits(cycle, due, wall_ns=7 * S + round(1.1 * PICTURE_GRACE_S * S))
    # A clock that runs on waits for nobody.
    assert not waits(cycle, due + 1, wall_ns=7 * S)
    show(cycle, due)
    assert waits(cycle, due, wall_ns=8 * S)


def test_a_failed_answer_is_not_waited_for_again():
    cycle = cycle_with()
    show(cycle, S)
    show(cycle, S + STEP)
    cycle.begin()
    answer(cycle, None, S + STEP)
    assert not waits(cycle, S + STEP)


def test_motion_ends_with_the_pictures_however_long_the_chunk_is():
    cycle = cycle_with()
    show(cycle, S)
    cycle.begin()
    assert answer(cycle, chunk_at(S, steps=16)) == TAKEN
    assert cycle.command(S + 5 * STEP, SAFETY) is not None
    assert cycle.why_hold(S + 5 * STEP, SAFETY) == ("", "")
    assert cycle.command(S + 6 * STEP, SAFETY) is None
    assert cycle.why_hold(S + 6 * STEP, SAFETY)[0] == "no_image"
    show(cycle, S + 6 * STEP)
    assert cycle.command(S + 6 * STEP, SAFETY) is not None
