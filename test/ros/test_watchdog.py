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

"""The watchdog speaks when commands stop, only then, and never anything but zeros."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from sqap_vla_ros.ros import codecs, interface
from sqap_vla_ros.ros.commands import HALTS
from sqap_vla_ros.ros.watchdog_node import Silence, WatchdogNode

pytestmark = pytest.mark.timed

MS = 1_000_000
DEADLINE_S = 100.0
MOVE = ((0.1, 0.0, 0.0), (0.0, 0.0, 0.2))
REST = ((0.0,) * 3, (0.0,) * 3)
MAY_MOVE = ("--ros-args", "-p", "control.dry_run:=false", "-p", "control.enable_actuation:=true")


def moving(message):
    return np.concatenate(codecs.decode_twist(message)).any()


# --- when zeros are due


def count_zeros(silence, *moments_ms):
    return [silence.count_zeros(now * MS, wall * MS) for now, wall in moments_ms]


def test_zeros_come_several_at_once_then_twenty_a_second_until_the_hold_is_over():
    silence = Silence(0.1, 0.2)
    silence.hear(True, 0, 0)
    assert count_zeros(silence, (50, 50), (99, 99)) == [0, 0] and not silence.speaking
    assert count_zeros(silence, (100, 100), (149, 149), (150, 150), (199, 199), (200, 200), (250, 250)) == [
        HALTS, 0, 1, 0, 1, 1]
    assert silence.speaking and silence.armed
    assert count_zeros(silence, (300, 300), (400, 400)) == [0, 0]
    assert not silence.speaking and not silence.armed


def test_rest_is_no_reason_to_speak_and_a_command_ends_the_zeros():
    silence = Silence(0.1, 1.0)
    silence.hear(True, 0, 0)
    silence.hear(False, 20 * MS, 20 * MS)
    assert count_zeros(silence, (500, 500)) == [0]
    silence.hear(True, 600 * MS, 600 * MS)
    assert count_zeros(silence, (700, 700)) == [HALTS]
    silence.hear(True, 710 * MS, 710 * MS)
    assert not silence.speaking
    assert count_zeros(silence, (800, 800), (810, 810)) == [0, HALTS]


@pytest.mark.parametrize(("moment_ms", "due"), [((0, 5000), 0), ((90, 5000), 0), ((5000, 90), 0), ((100, 5000), HALTS)])
def test_time_that_stands_still_or_runs_fast_is_no_silence(moment_ms, due):
    silence = Silence(0.1, 1.0)
    silence.hear(True, 0, 0)
    assert count_zeros(silence, moment_ms) == [due]


def test_a_clock_that_jumped_back_hides_no_silence():
    silence = Silence(0.1, 1.0)
    silence.hear(True, 60_000 * MS, 0)
    silence.rebase(1000 * MS)
    assert count_zeros(silence, (1090, 90), (1100, 100)) == [0, HALTS]


# --- the node


@pytest.fixture
def watchdog():
    """``watchdog(peer, **parameters)``: the node, spun by a thread, and somebody who commands beside it."""
    made = []

    def start(peer, **parameters):
        made.append(Bench(peer, parameters))
        return made[-1]

    yield start
    for bench in made:
        bench.close()


class Bench:
    """A watchdog, and somebody who commands."""

    def __init__(self, peer, parameters):
        self.peer, self._last_s, self._ending = peer, 0.0, False
        self._context = Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._node = WatchdogNode(context=self._context, parameter_overrides=[
            Parameter(name, value=value) for name, value in parameters.items()])
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin)
        self._thread.start()
        name = interface.TWIST.name
        self._commands = interface.advertise(peer.node, interface.TWIST)
        peer.wait(lambda: self._commands.get_subscription_count() == 2 and peer.node.count_publishers(name) == 2,
                  "acquaintance")

    def _spin(self):
        while not self._ending:
            self._executor.spin_once(timeout_sec=0.05)

    def close(self):
        self._ending = True
        self._thread.join(DEADLINE_S)
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def command(self, velocity, frame_id="base"):
        self._commands.publish(codecs.encode_twist(*velocity, self.peer.clock_ns(), frame_id))

    def go_on(self, **how):
        """Command motion, 50 times a second."""
        if time.monotonic() - self._last_s > 0.02:
            self._last_s = time.monotonic()
            self.command(MOVE, **how)

    def wait(self, condition, what, meanwhile=lambda: None):
        self.peer.wait(condition, what, meanwhile=meanwhile)

    def spin_s(self, duration_s, meanwhile=lambda: None):
        end = time.monotonic() + duration_s
        self.wait(lambda: time.monotonic() >= end, "the time to pass", meanwhile)

    def move_until_heard(self, **how):
        """Command motion until the watchdog has heard it."""
        heard = self.peer.heard

        def told():
            return any(status.message == "the robot moves" for array in heard["diagnostics"] for status in array.status)

        self.wait(told, "the watchdog to hear", lambda: self.go_on(**how))
        heard["twist"].clear()
        heard["diagnostics"].clear()

    @property
    def zeros(self):
        return [message for message in self.peer.heard["twist"] if not moving(message)]


def test_silence_after_motion_is_answered_with_fresh_zeros_in_the_last_frame(watchdog, peer):
    bench = watchdog(peer, hold_s=0.5)
    bench.move_until_heard(frame_id="tool0")
    last_ns = peer.clock_ns()
    bench.wait(lambda: len(bench.zeros) >= 4, "zeros")
    stamps = np.array([codecs.stamp_to_ns(message.header.stamp) for message in bench.zeros])
    assert {message.header.frame_id for message in bench.zeros} == {"tool0"}
    assert 0 < peer.clock_ns() - stamps[-1] < 100 * MS
    assert stamps[0] - last_ns < 150 * MS
    bench.spin_s(1.0)
    # Its own zeros end nothing: it goes on for hold_s at 20 Hz, and then is quiet.
    told = len(bench.zeros)
    assert 8 <= told <= HALTS + 10
    bench.spin_s(0.3)
    assert len(bench.zeros) == told
    statuses = [array.status[0] for array in peer.heard["diagnostics"]]
    values = {item.key: item.value for item in statuses[-1].values}
    assert (statuses[-1].name, statuses[-1].message) == ("watchdog_node: commands", "the robot rests")
    assert values["count.silences"] == "1" and int(values["count.zeros"]) >= told


def test_it_keeps_silent_after_rest_and_while_commands_come(watchdog, peer):
    bench = watchdog(peer)
    bench.move_until_heard()
    bench.command(REST)
    bench.spin_s(0.4)
    assert len(bench.zeros) == 1
    bench.spin_s(0.6, bench.go_on)
    assert len(bench.zeros) == 1


def test_while_it_speaks_diagnostics_say_error(watchdog, peer):
    bench = watchdog(peer, hold_s=10.0)
    bench.move_until_heard()
    bench.wait(lambda: any(array.status[0].level == DiagnosticStatus.ERROR for array in peer.heard["diagnostics"]),
               "an error")
    bench.peer.heard["diagnostics"].clear()
    bench.wait(lambda: peer.heard["diagnostics"] and peer.heard["diagnostics"][-1].status[0].level
               == DiagnosticStatus.OK, "commands to be heard again", bench.go_on)


def test_simulated_time_that_stands_still_is_no_silence(watchdog, simulated_peer):
    peer = simulated_peer
    bench = watchdog(peer, use_sim_time=True)

    def tick_and_move():
        peer.tick(peer.now_ns)
        bench.go_on()

    bench.wait(lambda: any(status.message == "the robot moves" for array in peer.heard["diagnostics"]
                           for status in array.status), "the watchdog to hear", tick_and_move)
    bench.spin_s(0.4)
    assert not bench.zeros
    bench.wait(lambda: bench.zeros, "zeros", lambda: peer.tick(peer.now_ns + 5 * MS))
    assert codecs.stamp_to_ns(bench.zeros[0].header.stamp) <= peer.now_ns


# --- the policy's process is killed


class Killing:
    """The policy's node and the watchdog, each in a process of its own."""

    def __init__(self, peer, fake):
        self._peer, self._fake = peer, fake
        self._arrivals = []
        end = interface.TWIST
        peer.node.create_subscription(end.type, end.name, self._on_twist, interface.Qos.TF.profile())
        self._watchdog = self._start("-m", "sqap_vla_ros.ros.watchdog_node")

    def close(self):
        self._watchdog.send_signal(signal.SIGTERM)
        assert self._watchdog.wait(DEADLINE_S) == 0

    @staticmethod
    def _start(*program):
        return subprocess.Popen([sys.executable, *program], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})

    def _on_twist(self, message, info):
        self._arrivals.append((info["received_timestamp"], moving(message)))

    def _instruct(self, text):
        # DDS takes a killed process for alive for a while, so a subscription may be that of the one before.
        peer, said = self._peer, [0.0]
        peer.heard["active"].clear()

        def say():
            if time.monotonic() - said[0] > 0.5:
                said[0] = time.monotonic()
                peer.say(text)

        peer.wait(lambda: any(message.data == text for message in peer.heard["active"]), "the echo", meanwhile=say)

    def kill(self):
        """Kill the policy in the middle of a motion.

        :return: time until the first zero, ms
        """
        peer = self._peer
        policy = self._start(self._fake.__file__, *MAY_MOVE)
        try:
            self._instruct("go")
            peer.wait_twists(moving, "motion", count=20)
            peer.heard["diagnostics"].clear()
            peer.wait_streaming(lambda: any(
                status.message == "the robot moves" for array in peer.heard["diagnostics"] for status in array.status),
                "the watchdog to hear")
            self._arrivals.clear()
            killed_ns = time.time_ns()
            policy.send_signal(signal.SIGKILL)
            peer.wait(lambda: any(not moves for _, moves in self._arrivals), "a zero")
        finally:
            policy.kill()
            policy.wait(DEADLINE_S)
        return next((at_ns - killed_ns) / MS for at_ns, moves in self._arrivals if not moves)


@pytest.mark.parametrize("times", [3, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_a_killed_policy_is_followed_by_zero_within_150_ms(peer, fake, times, capsys):
    killing = Killing(peer, fake)
    try:
        delays_ms = [killing.kill() for _ in range(times)]
    finally:
        killing.close()
    with capsys.disabled():
        print(f"\nzero after kill -9, ms: {' '.join(f'{delay:.0f}' for delay in delays_ms)}")
    assert len(delays_ms) == times and min(delays_ms) > 0.0 and max(delays_ms) < 150.0
