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

"""Commands as MoveIt Servo wants them, for as long as a slow policy has steps to carry out."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import rclpy
from moveit_msgs.msg import ServoStatus
from moveit_msgs.srv import ServoCommandType
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from sqap_vla_ros.ros import codecs, interface

pytestmark = pytest.mark.timed

SPEC = importlib.util.spec_from_file_location("servo_stand_in", Path(__file__).with_name("servo_stand_in.py"))
MOVE, REST = ((0.1, 0.0, 0.0), (0.0, 0.0, 0.0)), ((0.0,) * 3, (0.0,) * 3)


@pytest.fixture
def servo():
    """Servo's stand-in, spun by a thread."""
    module = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(module)
    context = Context()
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
    node = module.ServoStandIn(context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    ended = threading.Event()

    def spin():
        while not ended.is_set():
            executor.spin_once(timeout_sec=0.05)

    thread = threading.Thread(target=spin)
    thread.start()
    yield node
    ended.set()
    thread.join(60.0)
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown(context=context)


def switch(peer):
    client = peer.node.create_client(ServoCommandType, interface.SWITCH_COMMAND_TYPE.name)
    return peer.call(client, ServoCommandType.Request(command_type=ServoCommandType.Request.TWIST)).success


# --- the stand-in itself


@pytest.fixture
def commands(peer, servo):
    publisher = interface.advertise(peer.node, interface.TWIST)
    peer.wait(lambda: publisher.get_subscription_count() == 2, "Servo's ear")

    def send(velocity, frame_id="base", age_s=0.0):
        publisher.publish(codecs.encode_twist(*velocity, peer.clock_ns() - int(age_s * 1e9), frame_id))

    return send


@pytest.mark.parametrize(("command", "reason"), [
    ({"velocity": MOVE, "frame_id": ""}, "no frame_id"), ({"velocity": MOVE, "age_s": 0.2}, "stale"),
    ({"velocity": ((np.nan, 0.0, 0.0), (0.0, 0.0, 0.0))}, "not finite")])
def test_the_stand_in_refuses_what_servo_refuses(peer, servo, commands, command, reason):
    statuses = []
    peer.node.create_subscription(ServoStatus, "servo_node/status", statuses.append, 10)
    assert switch(peer)
    commands(**command)
    peer.wait(lambda: servo.refused, "refusal")
    assert servo.refused == {reason: 1} and servo.accepted == 0
    peer.wait(lambda: any((status.code, status.message) == (ServoStatus.INVALID, reason) for status in statuses),
              "the status")
    commands(MOVE)
    peer.wait(lambda: servo.accepted == 1, "what is right")


def test_the_stand_in_takes_nothing_before_it_is_switched(peer, servo, commands):
    commands(MOVE)
    peer.wait(lambda: servo.refused, "refusal")
    assert servo.refused == {"command type is not TWIST": 1}


def test_the_stand_in_halts_once_when_commands_end_in_motion_and_not_when_they_end_at_rest(peer, servo, commands):
    assert switch(peer)
    commands(MOVE)
    peer.wait(lambda: servo.halts, "the halt")
    commands(MOVE)
    peer.wait(lambda: servo.accepted == 2, "motion")
    commands(REST)
    peer.wait(lambda: servo.rests == 1, "rest")
    end = time.monotonic() + 0.3
    peer.wait(lambda: time.monotonic() > end, "thrice the timeout")
    assert (servo.halts, servo.accepted, servo.moving, servo.rests) == (1, 3, 2, 1) and not servo.refused


# --- the node, and a policy that takes 0.4 s


@pytest.fixture
def slow_policy(fake):
    """``slow_policy(chunk_steps)``: the node with such a policy, in a process of its own."""
    started = []

    def start(chunk_steps):
        started.append(subprocess.Popen(
            [sys.executable, fake.__file__, "--ros-args", "-p", "control.dry_run:=false", "-p",
             "control.enable_actuation:=true"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "FAKE_DELAY_S": "0.4",
                              "FAKE_CHUNK_STEPS": str(chunk_steps)}))

    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60.0) == 0


def watch(peer, servo, duration_s):
    """So many halts, refusals, commands, rests and answers in a time."""
    def count():
        return np.array([servo.halts, sum(servo.refused.values()), servo.accepted, servo.rests,
                         len(peer.heard["latency"])])

    before = count()
    end = time.monotonic() + duration_s
    peer.wait_streaming(lambda: time.monotonic() > end, "the time to pass")
    return count() - before


# A machine that is busy with other things may stop any process for 0.1 s, so one of several short looks must be clean.
@pytest.mark.parametrize(("duration_s", "looks"), [(4.0, 4), pytest.param(60.0, 1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("chunk_steps", [6, 10])
def test_a_slow_policy_never_makes_servo_halt(slow_policy, peer, servo, chunk_steps, duration_s, looks):
    slow_policy(chunk_steps)
    assert switch(peer)
    peer.instruct("go")
    peer.wait_streaming(lambda: servo.moving >= 10, "motion")
    for _ in range(looks):
        halts, refused, accepted, rests, answers = watch(peer, servo, duration_s)
        if halts == refused == 0:
            break
    assert halts == refused == 0
    # 50 commands a second, and an answer every 0.4 s and a moment.
    assert accepted > 40 * duration_s and answers > 1.8 * duration_s
    if chunk_steps == 10:
        # An answer's steps last longer than two inferences, so there is always one to carry out.
        assert rests == 0
