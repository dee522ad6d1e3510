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

"""The rig itself: its judge sees what is wrong, its pictures are broken, its policy falls ill and gets well."""

import random
import threading

import numpy as np
import pytest
from rclpy.parameter import Parameter as RosParameter

from sqap_vla_ros.config import Config
from sqap_vla_ros.data import Observation
from sqap_vla_ros.errors import ConfigError, InferenceError, InputError
from sqap_vla_ros.ros import codecs
from sqap_vla_ros.ros.rig.faults import FAULTS, choose_faults
from sqap_vla_ros.ros.rig.faulty_policy import FaultyPolicy, Illness
from sqap_vla_ros.ros.rig.judge import Arrival, Judge
from sqap_vla_ros.ros.rig.robot import BROKEN, break_picture, choose_wrong_stamps
from sqap_vla_ros.ros.rig.soak import SimulatedTime
from sqap_vla_ros.ros.rig.stand_in import MARK_M_S, SPEED_M_S, StandInPolicy
from sqap_vla_ros.ros.rig.tampering import Tampering

S = 1_000_000_000
MS = 1_000_000


def arrival(at_ns, x=0.1, *, turn=0.0, age_ns=0, frame_id="base"):
    return Arrival(at_ns, at_ns, at_ns - age_ns, frame_id, np.array([x, 0.0, 0.0, 0.0, 0.0, turn]))


# --- the judge


@pytest.mark.parametrize(("changes", "kinds"), [
    ({}, []), ({"x": 0.5}, []), ({"x": 0.500001}, ["too fast"]), ({"turn": 1.1}, ["too fast"]),
    ({"age_ns": 99 * MS}, []), ({"age_ns": 100 * MS}, ["stale"]), ({"age_ns": -100 * MS}, ["ahead of the clock"]),
    ({"frame_id": ""}, ["no frame_id"]), ({"x": np.nan}, ["not finite"]), ({"x": np.inf}, ["not finite", "too fast"])])
def test_every_rule_is_judged(changes, kinds):
    judge = Judge(0.5, 1.0)
    judge.note(arrival(S, **changes))
    assert list(judge.unsafe) == kinds and judge.commands == 1
    assert [item.kind for item in judge.examples] == kinds


def test_motion_is_unsafe_once_the_fault_asks_for_rest():
    judge = Judge(0.5, 1.0)
    judge.begin("tf-stops", 10 * S, 0.5)
    judge.note(arrival(10 * S + 500 * MS))
    assert not judge.unsafe
    judge.note(arrival(10 * S + 501 * MS))
    judge.note(arrival(10 * S + 600 * MS, 0.0))
    assert judge.unsafe == {"no rest": 1} and judge.unsafe_by_fault == {"tf-stops": 1}
    assert judge.examples[0].sentence == "the robot still moves 0.50 s after the fault began"
    judge.end()
    judge.note(arrival(20 * S))
    assert judge.unsafe == {"no rest": 1}


def test_reaction_is_the_first_zero_of_the_rest_in_which_the_fault_ends():
    judge = Judge(0.5, 1.0)
    judge.note(arrival(9 * S))
    judge.begin("camera-stops", 10 * S, None)
    for after_ms, x in ((20, 0.1), (40, 0.0), (60, 0.1), (80, 0.0), (100, 0.0)):
        judge.note(arrival(10 * S + after_ms * MS, x))
    assert judge.end() == pytest.approx(0.08)
    assert judge.first_move_ns(10 * S + 61 * MS) is None
    judge.note(arrival(11 * S))
    assert judge.first_move_ns(10 * S + 61 * MS) == 11 * S
    judge.begin("camera-stops", 12 * S, None)
    judge.note(arrival(12 * S + 20 * MS))
    assert judge.end() is None


def test_other_caps_count_after_a_moment():
    judge = Judge(0.5, 1.0)
    judge.change_caps(0.05, 1.0, 10 * S)
    judge.note(arrival(10 * S + 199 * MS))
    assert not judge.unsafe
    judge.note(arrival(10 * S + 201 * MS))
    assert judge.unsafe == {"too fast": 1}
    judge.change_caps(0.5, 1.0, 11 * S)
    judge.note(arrival(11 * S))
    assert judge.unsafe == {"too fast": 1}


def test_stamps_prove_nothing_right_after_the_clock_jumped():
    judge = Judge(0.5, 1.0)
    judge.note_clock_jump(10 * S)
    judge.note(arrival(10 * S + 100 * MS, age_ns=-30 * S))
    assert not judge.unsafe
    judge.note(arrival(10 * S + 300 * MS, age_ns=-30 * S))
    assert judge.unsafe == {"ahead of the clock": 1}


# --- faults


def test_there_are_twelve_broken_pictures_and_all_but_two_cannot_be_decoded():
    picture = codecs.encode_image(np.full((8, 10, 3), 7, dtype=np.uint8), 5 * S, "camera")
    assert len(BROKEN) == len(set(BROKEN)) == 12
    decodable = {}
    for kind in BROKEN:
        try:
            decodable[kind] = codecs.decode_image(break_picture(kind, picture)).shape
        except InputError:
            continue
    # These two are pictures, but of another camera and of none.
    assert decodable == {"another size": (4, 5, 3), "no frame": (8, 10, 3)}
    assert break_picture("no frame", picture).header.frame_id == "" and picture.header.frame_id == "camera"


def test_no_wrong_stamp_is_near():
    now_ns = 1_800_000_000 * S
    distances = [abs(codecs.stamp_to_ns(stamp) - now_ns) * 1e-9 for stamp in choose_wrong_stamps(now_ns)]
    assert len(distances) == 6 and min(distances) > 5.0


def test_faults_that_need_simulated_time_are_left_out_of_the_system_s():
    assert len(FAULTS) == 15
    assert len(choose_faults(tuple(FAULTS), simulated=True)) == 15
    assert "clock-jumps" not in {fault.name for fault in choose_faults(tuple(FAULTS), simulated=False)}
    with pytest.raises(ConfigError, match="clock-jumps need simulated time; add --clock simulated"):
        choose_faults(("clock-jumps",), simulated=False)


def test_simulated_time_tells_what_it_showed():
    sent = []
    clock = SimulatedTime(sent.append)
    for _ in range(3):
        clock.tick()
    clock.jump_back(5 * S)
    shown = [codecs.stamp_to_ns(message.clock) for message in sent]
    assert np.diff(shown).tolist() == [10 * MS, 10 * MS, -5 * S]
    assert clock.at(2**62) == shown[-1] and clock.at(1) == shown[0] - 10 * MS


# --- the policy


@pytest.fixture
def observation():
    return Observation(5 * S, (np.zeros((4, 4, 3), dtype=np.uint8),), "go", (None,))


def test_each_answer_of_the_stand_in_can_be_told_from_the_others(observation):
    policy = StandInPolicy(Config())
    speeds = [policy.infer(observation).chunk.steps[0, 0] / 0.1 for _ in range(3)]
    np.testing.assert_allclose(speeds, SPEED_M_S + MARK_M_S * np.arange(3), rtol=0, atol=1e-12)


def test_an_ill_policy_does_what_its_illness_says(observation):
    illness = Illness()
    policy = FaultyPolicy(StandInPolicy(Config()), illness)
    well = policy.infer(observation).chunk.steps
    illness.set("inference-raises")
    with pytest.raises(InferenceError, match="the rig had the policy fail"):
        policy.infer(observation)
    with pytest.raises(ZeroDivisionError):
        policy.infer(observation)
    illness.set("inference-nan")
    assert np.isnan(policy.infer(observation).chunk.steps).sum(axis=0).tolist() == [0, 6, 0, 0, 0, 0, 0]
    illness.set("inference-races")
    fast = policy.infer(observation).chunk.steps
    np.testing.assert_allclose(fast[:, 0], 100 * well[:, 0], rtol=1e-3)
    assert fast[0, 6] == well[0, 6] == 1.0
    illness.set("camera-stops")
    np.testing.assert_allclose(policy.infer(observation).chunk.steps, well, rtol=1e-3)
    assert policy.describe()["family"] == "stand-in"


def test_a_hanging_policy_goes_on_when_the_fault_ends(observation):
    illness = Illness()
    policy = FaultyPolicy(StandInPolicy(Config()), illness)
    illness.set("inference-hangs")
    thread = threading.Thread(target=policy.infer, args=(observation,))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    illness.set("")
    thread.join(10.0)
    assert not thread.is_alive()


# --- parameters


class Answering:
    """A client of ~/set_parameters that answers as it is told, at once."""

    def __init__(self, accept):
        self.accept, self.asked = accept, []

    def call_async(self, request):
        parameter = RosParameter.from_parameter_msg(request.parameters[0])
        self.asked.append((parameter.name, parameter.value))
        good = self.accept(parameter.name, parameter.value)
        result = type("Result", (), {"successful": good})
        return type("Answer", (), {"done": lambda self: True,
                                   "result": lambda self: type("All", (), {"results": [result]})})()


def test_tampering_ends_where_it_began_and_tells_the_judge_of_caps():
    judge = Judge(Config().safety.max_linear_m_s, Config().safety.max_angular_rad_s)
    client = Answering(lambda name, value: 0.005 < value <= 0.6 if name == "safety.max_linear_m_s" and isinstance(
        value, float) else name in {"safety.max_angular_rad_s", "safety.max_image_age_s", "footprint.joined"} and (
        value == value and value != np.inf))
    moments = iter(range(0, 10**6 * S, S))
    tampering = Tampering(client, Config(), judge, random.Random(1), lambda: next(moments))
    for _ in range(60):
        tampering.tamper()
    assert len({name for name, _ in client.asked}) >= 7
    assert not judge.unsafe
    while not tampering.restore():
        pass
    last = dict(client.asked)
    assert (last["safety.max_linear_m_s"], last["safety.max_angular_rad_s"]) == (0.6, 1.5)
    judge.note(arrival(2 * 10**6 * S, 0.601))
    assert judge.unsafe == {"too fast": 1}


def test_nonsense_that_is_taken_is_unsafe():
    judge = Judge(0.6, 1.5)
    tampering = Tampering(Answering(lambda name, value: True), Config(), judge, random.Random(1), lambda: 0)
    for _ in range(60):
        tampering.tamper()
    assert judge.unsafe["nonsense taken"] > 10
    assert {item.sentence for item in judge.examples} >= {"parameter safety.max_linear_m_s was set to -1.0"}
