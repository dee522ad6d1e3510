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

"""Goals that take their time: called off by a stop, sent again when they are aborted."""

import pytest
from control_msgs.action import GripperCommand, ParallelGripperCommand
from rclpy.action import ActionServer, CancelResponse

from sqap_vla_ros.knobs import ControlKnobs
from sqap_vla_ros.ros.grippers import RETRY_NS, Gripper, open_link

BEAT_NS, NOW_NS = 20_000_000, 7_000_000_000
JOINTS = ("left_finger", "right_finger")


class HoldingServer:
    """Takes every goal and lets it run until it is called off or aborted."""

    def __init__(self, node, kind):
        self.taken, self.called_off, self._kind = [], [], kind
        self.server = ActionServer(node, kind, "gripper_cmd", self._cancel, cancel_callback=self._on_cancel,
                                   handle_accepted_callback=self.taken.append)

    def abort(self, number):
        def execute(handle):
            handle.abort()
            return self._kind.Result()

        self.taken[number].execute(execute)

    def _on_cancel(self, handle):
        self.called_off.append(self.taken.index(handle))
        return CancelResponse.ACCEPT

    def _cancel(self, handle):
        handle.canceled()
        return self._kind.Result()

    def release(self):
        for number, handle in enumerate(self.taken):
            if number in self.called_off:
                handle.execute()
            elif handle.is_active:
                self.abort(number)


KINDS = {"gripper_command": GripperCommand, "parallel_gripper_command": ParallelGripperCommand}


@pytest.fixture
def told():
    return []


@pytest.fixture(params=KINDS)
def holding(peer, bare_node, told, request):
    """A gripper whose action server holds its goals: the server, ``move(opening, times)`` 20 ms apart, ``stop()``."""
    peer.gripper_server.destroy()
    server = HoldingServer(peer.node, KINDS[request.param])
    peer.gripper_server = server.server
    knobs = ControlKnobs(dry_run=False, gripper=request.param, gripper_joints=JOINTS)
    gripper = Gripper(open_link(bare_node, knobs), told.append)
    beats = iter(range(10**6))

    def move(opening, times=1):
        for _ in range(times):
            gripper.move(opening, knobs, NOW_NS + next(beats) * BEAT_NS)

    peer.wait(lambda: server.taken, "the first goal", meanwhile=lambda: move(0.1))
    yield server, move, gripper.stop
    server.release()
    gripper.close()


def test_a_stop_calls_off_all_goals_in_flight_and_the_next_opening_is_a_new_goal(peer, holding, told):
    server, move, stop = holding
    move(0.5)
    peer.wait(lambda: len(server.taken) == 2, "the second goal")
    server.abort(1)
    # This answer comes last, so both goals are known to be taken then.
    peer.wait(lambda: "gripper_cmd aborted a goal" in told, "the sentence")
    stop()
    peer.wait(lambda: server.called_off, "the end of the first goal")
    move(0.5, RETRY_NS // BEAT_NS)
    peer.wait(lambda: len(server.taken) == 3, "the third goal")
    stop()
    peer.wait(lambda: len(server.called_off) == 2, "the end of the third goal")
    assert server.called_off == [0, 2] and len(server.taken) == 3


def test_a_goal_whose_acceptance_comes_after_the_stop_is_called_off(peer, holding):
    server, move, stop = holding
    # Nothing spins between these, so no answer comes between them either.
    move(0.5)
    stop()
    peer.wait(lambda: len(server.called_off) == 2, "the end of both goals")
    assert sorted(server.called_off) == [0, 1]
    move(0.5)
    peer.wait(lambda: len(server.taken) == 3, "the same opening as a new goal")
    assert sorted(server.called_off) == [0, 1]


def test_a_goal_that_is_aborted_on_its_way_is_sent_again_a_second_after_it_was_sent(peer, holding, told):
    server, move, _ = holding
    move(0.5)
    peer.wait(lambda: len(server.taken) == 2, "the second goal")
    server.abort(1)
    peer.wait(lambda: "gripper_cmd aborted a goal" in told, "the sentence")
    move(0.5, RETRY_NS // BEAT_NS - 1)
    for _ in range(10):
        peer.executor.spin_once(timeout_sec=0.02)
    assert len(server.taken) == 2
    move(0.5)
    peer.wait(lambda: len(server.taken) == 3, "the same opening again")
    assert server.called_off == []
