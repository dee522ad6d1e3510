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

"""Simulated time that stands still, jumps ahead and jumps back."""

import threading
import time

import numpy as np
import pytest

from sqap_vla_ros.ros import codecs, pacing

STEP_NS = 100_000_000
START_NS = 5_000_000_000


def speed(message):
    return round(codecs.decode_twist(message)[0][0], 6)


def stamp(message):
    return codecs.stamp_to_ns(message.header.stamp)


class LockStep:
    """A simulator that publishes a picture and holds its clock until a command for that moment comes."""

    def __init__(self, peer, running):
        self.peer, self.running = peer, running

    def begin(self, instruction, now_ns=START_NS):
        """Discovery, and the first command: the clock stands at ``now_ns`` until it has come."""
        peer = self.peer
        peer.instruct(instruction)

        def show():
            # While discovery is at it, the clock must be told again and again, as pictures are.
            peer.tick(now_ns)
            return any(speed(message) for message in peer.heard["twist"])

        peer.wait_streaming(show, "the first motion")
        peer.heard["twist"].clear()

    def step(self, now_ns, picture_late_s=0.0):
        """Commands for ``now_ns`` that come until the first has come."""
        peer = self.peer
        peer.tick(now_ns)
        if picture_late_s:
            late = time.monotonic() + picture_late_s
            peer.wait(lambda: time.monotonic() > late, "the picture's way")
        peer.send_frame(stamp_ns=now_ns)
        peer.wait(lambda: any(stamp(message) == now_ns for message in peer.heard["twist"]), "a command for this moment")


@pytest.fixture
def lock_step(launch, simulated_peer):
    def start(**parameters):
        return LockStep(simulated_peer, launch(autostart=True, use_sim_time=True, **parameters))

    return start


@pytest.mark.parametrize(("delay_s", "picture_late_s"), [(0.0, 0.0), (0.1, 0.0), (0.05, 0.04)])
def test_every_moment_gets_the_step_that_belongs_to_it_however_slow_the_policy(lock_step, monkeypatch, delay_s,
                                                                               picture_late_s):
    # However busy the machine that runs this test, too.
    monkeypatch.setattr(pacing, "PICTURE_GRACE_S", 30.0)
    loop = lock_step(control__execute_steps=2)
    loop.begin("count")
    loop.running.policy.delay_s = delay_s
    loop.running.policy.observations.clear()
    for index in range(1, 9):
        loop.step(START_NS + index * STEP_NS, picture_late_s)
    # Inference on every second picture; its first step for that moment, its second for the next.
    assert [seen.stamp_ns for seen in loop.running.policy.observations] == [
        START_NS + index * STEP_NS for index in (2, 4, 6, 8)]
    moments = {START_NS + index * STEP_NS: 0.1 if index % 2 == 0 else 0.2 for index in range(1, 9)}
    commanded = {(stamp(message), speed(message)) for message in loop.peer.heard["twist"] if stamp(message) in moments}
    assert commanded == set(moments.items())


def test_a_picture_that_never_comes_does_not_stop_the_commands(lock_step):
    loop = lock_step(control__execute_steps=2)
    loop.begin("count")
    loop.step(START_NS + STEP_NS)
    # A new picture is due now, and lost; the old chunk goes on after a moment of grace.
    loop.peer.tick(START_NS + 2 * STEP_NS)
    loop.peer.wait(lambda: any(stamp(message) == START_NS + 2 * STEP_NS for message in loop.peer.heard["twist"]),
                   "a command from the old chunk")
    assert speed(loop.peer.heard["twist"][-1]) == 0.3


def test_the_robot_is_found_at_the_pictures_own_time(lock_step):
    loop = lock_step(control__execute_steps=1)
    loop.begin("count")
    loop.running.policy.observations.clear()
    for index in range(1, 4):
        loop.step(START_NS + index * STEP_NS)
    assert [seen.footprint_reason for seen in loop.running.policy.observations] == [""] * 3


def test_a_jump_ahead_ends_the_chunk_and_the_next_picture_begins_another(lock_step):
    loop = lock_step()
    loop.begin("count")
    # The camera's rhythm, by which the node knows that a picture is on its way.
    loop.step(START_NS + STEP_NS)
    loop.peer.heard["twist"].clear()
    far_ns = START_NS + 10 * STEP_NS
    loop.step(far_ns)
    assert {speed(message) for message in loop.peer.heard["twist"] if stamp(message) == far_ns} == {0.1}
    # The gripper, too, may be another one's by now.
    loop.peer.wait(lambda: len(loop.peer.heard["gripper"]) == 2, "the gripper's goal again")
    assert [goal.position for goal in loop.peer.heard["gripper"]] == [0.08, 0.08]


def test_an_answer_that_time_did_not_wait_for_begins_with_its_first_step(lock_step):
    loop = lock_step()
    loop.begin("count")
    loop.step(START_NS + STEP_NS)
    peer, policy, look_ns = loop.peer, loop.running.policy, START_NS + 8 * STEP_NS
    # The chunk ends and no picture comes, so the robot holds.
    peer.tick(look_ns - STEP_NS)
    peer.wait(lambda: any(stamp(message) == look_ns - STEP_NS for message in peer.heard["twist"]), "the hold")
    policy.pause.set()
    policy.observations.clear()
    peer.tick(look_ns)
    peer.send_frame(stamp_ns=look_ns)
    peer.wait(lambda: policy.observations, "the look")
    later = [look_ns + steps * STEP_NS for steps in (3, 4)]
    peer.tick(later[0])
    peer.wait(lambda: any(stamp(message) == later[0] for message in peer.heard["twist"]), "a hold")
    assert {speed(message) for message in peer.heard["twist"] if stamp(message) >= look_ns} == {0.0}
    policy.unblock.set()
    peer.wait(lambda: speed(peer.heard["twist"][-1]), "motion")
    peer.tick(later[1])
    peer.wait(lambda: stamp(peer.heard["twist"][-1]) == later[1], "a command for the next step")
    moved = {(stamp(message), speed(message)) for message in peer.heard["twist"] if stamp(message) >= look_ns}
    assert moved == {(later[0], 0.0), (later[0], 0.1), (later[1], 0.2)}


def test_a_jump_back_forgets_all_that_has_a_stamp(lock_step):
    loop = lock_step()
    loop.begin("count")
    loop.step(START_NS + STEP_NS)
    peer, back_ns = loop.peer, 1_000_000_000
    peer.heard["twist"].clear()
    peer.tick(back_ns)
    peer.wait(lambda: any(stamp(message) == back_ns for message in peer.heard["twist"]), "a command after the jump")
    assert {speed(message) for message in peer.heard["twist"] if stamp(message) == back_ns} == {0.0}
    _, values = peer.diagnosis(lambda status, values: values["count.clock_jump"] == "1", "the count", streaming=False)
    assert "jumped by -4.100 s" in values["reason.clock_jump"]
    # The instruction stays in force, and transforms from the old time are no longer in the way.
    loop.running.policy.observations.clear()
    loop.step(back_ns + STEP_NS)
    peer.wait(lambda: speed(peer.heard["twist"][-1]) > 0.0, "motion again")
    seen, = loop.running.policy.observations
    assert seen.stamp_ns == back_ns + STEP_NS and seen.footprint_reason == ""


def test_before_the_first_time_nothing_is_commanded_and_the_reason_is_told(launch, simulated_peer):
    peer = simulated_peer
    launch(autostart=True, use_sim_time=True)
    peer.instruct("go")
    _, values = peer.diagnosis(lambda status, values: values["count.clock"] == "1", "the count", streaming=False)
    assert values["hold"] == "no time has come on /clock yet, and use_sim_time is true"
    assert peer.heard["twist"] == []


def test_a_chunk_runs_by_simulated_time_not_by_the_wall(lock_step):
    loop = lock_step()
    loop.begin("count")
    for part in np.linspace(0.0, 0.9, 4):
        now_ns = START_NS + round(part * STEP_NS)
        loop.peer.heard["twist"].clear()
        loop.peer.tick(now_ns)
        loop.peer.wait(lambda now_ns=now_ns: len([message for message in loop.peer.heard["twist"]
                                                  if stamp(message) == now_ns]) >= 3, "commands while time stands")
        assert {speed(message) for message in loop.peer.heard["twist"] if stamp(message) == now_ns} == {0.1}


def test_behind_a_stall_no_command_bears_the_time_before_it(lock_step, monkeypatch):
    loop = lock_step(control__command_hz=50.0)
    loop.begin("count")
    peer, far_ns, inside, release = loop.peer, START_NS + 10 * STEP_NS, threading.Event(), threading.Event()

    def stall(text):
        inside.set()
        release.wait()

    monkeypatch.setattr(loop.running.policy, "check_instruction", stall)
    peer.say("stall")
    peer.wait(inside.is_set, "the stall")
    peer.tick(far_ns)
    arrived_s = time.monotonic() + 0.1
    peer.wait(lambda: time.monotonic() > arrived_s, "the clock's way")
    peer.heard["twist"].clear()
    release.set()
    peer.wait(lambda: len(peer.heard["twist"]) >= 3, "commands")
    assert {stamp(message) for message in peer.heard["twist"]} == {far_ns}
