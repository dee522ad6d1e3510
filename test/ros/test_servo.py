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
import rclpy
from moveit_msgs.srv import ServoCommandType
from std_srvs.srv import Trigger

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.knobs import ControlKnobs
from sqap_vla_ros.ros import interface, servo
from sqap_vla_ros.ros.servo import ServoSwitch

SWITCH, START = interface.SWITCH_COMMAND_TYPE.name, interface.START_SERVO.name


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(servo, "BEAT_S", 0.05)


@pytest.fixture
def told():
    return []


@pytest.fixture
def switch(bare_node, told):
    made = []

    def build(**knobs):
        made.append(ServoSwitch(bare_node, ControlKnobs(**{"dry_run": False} | knobs), told.append))
        return made[-1]

    yield build
    for item in made:
        item.close()


class Servo:
    """MoveIt Servo's side: refuses so often, then agrees."""

    def __init__(self, node, end, refusals=0):
        self.requests, self._left = [], refusals
        self.service = node.create_service(end.type, end.name, self._answer)

    def _answer(self, request, response):
        self.requests.append(request)
        self._left -= 1
        response.success = self._left < 0
        if isinstance(response, Trigger.Response) and not response.success:
            response.message = "no robot state yet"
        return response


@pytest.mark.parametrize(("command", "kind"), [("twist", ServoCommandType.Request.TWIST),
                                               ("pose", ServoCommandType.Request.POSE)])
def test_servo_is_switched_to_the_commands_type(peer, switch, told, command, kind):
    there = Servo(peer.node, interface.SWITCH_COMMAND_TYPE)
    asker = switch(servo="jazzy", command=command)
    assert there.requests == [] and not asker.agreed
    asker.begin()
    peer.wait(lambda: asker.agreed, "agreement")
    assert {request.command_type for request in there.requests} == {kind}
    assert set(told) <= {f"no service {SWITCH}; is MoveIt Servo running?"}


def test_servo_of_humble_is_started_once_it_is_there(peer, switch, told):
    asker = switch(servo="humble")
    asker.begin()
    assert told == [f"no service {START}; is MoveIt Servo running?"]
    there = Servo(peer.node, interface.START_SERVO)
    peer.wait(lambda: asker.agreed, "agreement")
    # That it was missing was told once, however often it was looked for.
    assert len(told) == 1 and type(there.requests[0]) is Trigger.Request


@pytest.mark.parametrize(("distribution", "end", "sentence"), [
    ("jazzy", interface.SWITCH_COMMAND_TYPE, f"{SWITCH} was refused"),
    ("humble", interface.START_SERVO, f"{START} was refused: no robot state yet")])
def test_a_refusal_is_told_once_and_servo_is_asked_again(peer, switch, told, distribution, end, sentence):
    there = Servo(peer.node, end, refusals=3)
    asker = switch(servo=distribution)
    peer.wait(asker._client.service_is_ready, "service")
    asker.begin()
    peer.wait(lambda: asker.agreed, "agreement")
    assert len(there.requests) >= 4
    assert told == [sentence]


def test_servo_that_does_not_answer_is_told_once_and_asked_again(peer, switch, told):
    # Served by a node that nobody spins.
    other = rclpy.create_node("servo_node", context=peer.context)
    there = Servo(other, interface.SWITCH_COMMAND_TYPE)
    asker = switch(servo="jazzy")
    peer.wait(asker._client.service_is_ready, "service")
    asker.begin()
    beats = count_beats(peer)
    peer.wait(lambda: beats() >= 20, "beats")
    assert told == [f"{SWITCH} does not answer"] and not asker.agreed
    peer.executor.add_node(other)
    peer.wait(lambda: asker.agreed, "agreement")
    assert len(there.requests) > 1
    other.destroy_node()


def test_servo_that_was_started_again_is_asked_again(peer, switch, told):
    there = Servo(peer.node, interface.SWITCH_COMMAND_TYPE)
    asker = switch(servo="jazzy")
    peer.wait(asker._client.service_is_ready, "service")
    asker.begin()
    peer.wait(lambda: asker.agreed, "agreement")
    peer.node.destroy_service(there.service)
    peer.wait(lambda: not asker.agreed, "its end")
    assert told == [f"no service {SWITCH}; is MoveIt Servo running?"]
    again = Servo(peer.node, interface.SWITCH_COMMAND_TYPE)
    peer.wait(lambda: asker.agreed, "the second agreement")
    assert again.requests[0].command_type == ServoCommandType.Request.TWIST


def test_after_deactivation_nothing_is_asked(peer, switch):
    there = Servo(peer.node, interface.SWITCH_COMMAND_TYPE, refusals=1000)
    asker = switch(servo="jazzy")
    asker.begin()
    peer.wait(lambda: len(there.requests) >= 2, "requests")
    asker.end()
    beats = count_beats(peer)
    # What was asked last is still on its way.
    peer.wait(lambda: beats() >= 5, "beats")
    asked = len(there.requests)
    peer.wait(lambda: beats() >= 20, "beats")
    assert len(there.requests) == asked
    asker.begin()
    peer.wait(lambda: len(there.requests) > asked, "another request")


@pytest.mark.parametrize("knobs", [{"servo": "none"}, {"servo": "jazzy", "dry_run": True},
                                   {"servo": "humble", "dry_run": True}])
def test_without_servo_and_in_a_dry_run_nobody_is_asked(peer, bare_node, switch, told, knobs):
    asker = switch(**knobs)
    asker.begin()
    assert asker.agreed and told == []
    assert bare_node.get_client_names_and_types_by_node("policy_node", "/") == []
    assert list(bare_node.timers) == []


def test_servo_of_humble_takes_no_poses(switch):
    with pytest.raises(ConfigError) as refused:
        switch(servo="humble", command="pose")
    assert str(refused.value) == ("control.command is 'pose', which MoveIt Servo of Humble does not take; set it to "
                                  "'twist', or control.servo to 'none' or 'jazzy'")


def count_beats(peer):
    """Beats of a timer as quick as Servo's is asked, from now on."""
    beats = []
    peer.node.create_timer(servo.BEAT_S, lambda: beats.append(1))
    return lambda: len(beats)
