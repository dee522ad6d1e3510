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

"""The node as a process of its own: how it ends, and what it says when it cannot begin."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from sqap_vla_ros.ros import codecs

DEADLINE_S = 100.0


@pytest.fixture
def run(fake):
    started = []

    def start(*arguments, module=None):
        program = ["-m", module] if module else [fake.__file__]
        started.append(subprocess.Popen([sys.executable, *program, *arguments], stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True,
                                        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(DEADLINE_S)
        process.stdout.close()


def moving(message):
    return np.concatenate(codecs.decode_twist(message)).any()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_rests_the_robot_before_the_process_ends_with_0(run, peer, number):
    process = run("--ros-args", "-p", "control.dry_run:=false", "-p", "control.enable_actuation:=true")
    peer.instruct("go")
    peer.wait_twists(moving, "motion", count=5)
    process.send_signal(number)
    peer.wait(lambda: process.poll() is not None, "the end")
    output = process.stdout.read()
    assert process.returncode == 0, output
    assert "Traceback" not in output and "terminate" not in output
    # What was sent before the end is delivered after it.
    peer.wait(lambda: not moving(peer.heard["twist"][-1]), "rest")


def test_a_parameter_out_of_range_ends_the_process_with_a_sentence(run):
    process = run("--ros-args", "-p", "control.command_hz:=0.1")
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert "the node cannot start" in output and "control.command_hz" in output and "Traceback" not in output


def test_knobs_that_contradict_each_other_end_the_process_with_a_sentence(run):
    process = run("--ros-args", "-p", "footprint.frames:=[tool0]")
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert "give one radius per frame" in output and "Traceback" not in output


def test_the_real_node_without_its_checkpoint_says_so_and_lives(run, peer, tmp_path):
    process = run("--ros-args", "-p", f"model.checkpoint:={tmp_path / 'nothing'}", "-p", "autostart:=true",
                  module="sqap_vla_ros.ros.policy_node")
    status, values = peer.diagnosis(lambda status, values: status.level == DiagnosticStatus.ERROR, "the error",
                                    streaming=False)
    assert status.message.startswith("could not configure: ") and str(tmp_path / "nothing") in status.message
    assert values["state"] == "unconfigured" and peer.state_label() == "unconfigured"
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0
    assert "Traceback" not in process.stdout.read()
