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

"""Node processes and their ROS domain."""

import socket

import pytest
import rclpy

from sqap_vla_ros.cli import processes
from sqap_vla_ros.cli.processes import DOMAINS, NodeProcess, choose_domain
from sqap_vla_ros.errors import SqapError


def test_domain_in_use_is_not_chosen(monkeypatch):
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    domain = choose_domain()
    assert domain in DOMAINS
    monkeypatch.setattr(processes, "DOMAINS", range(domain, domain + 1))
    assert choose_domain() == domain
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node = rclpy.create_node("somebody", context=context)
    with pytest.raises(SqapError, match="somebody listens on each"):
        choose_domain()
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_second_participant_alone_keeps_a_domain_taken(monkeypatch):
    domain = choose_domain()
    monkeypatch.setattr(processes, "DOMAINS", range(domain, domain + 1))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("", 7400 + 250 * domain + 12))
        with pytest.raises(SqapError, match="somebody listens"):
            choose_domain()
    assert choose_domain() == domain


def test_node_that_fails_is_told_with_the_end_of_its_log(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "broken.py").write_text("import sys\nprint('line one')\nsys.exit('out of order')\n")
    process = NodeProcess("broken", "broken", {"a.b": 1.5}, tmp_path)
    process._process.wait(30)
    with pytest.raises(SqapError, match="broken ended with exit code 1") as raised:
        process.check()
    assert "    line one\n    out of order" in str(raised.value)


def test_deaf_process_is_stopped_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "deaf.py").write_text(
        "import signal, time\n"
        "for number in (signal.SIGINT, signal.SIGTERM):\n    signal.signal(number, signal.SIG_IGN)\n"
        "print('deaf', flush=True)\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(processes, "_PATIENCE_S", 0.2)
    process = NodeProcess("deaf", "deaf", {}, tmp_path)
    while "deaf" not in (tmp_path / "deaf.log").read_text():
        process.check()
    process.stop()
    with pytest.raises(SqapError, match="deaf was killed by SIGKILL"):
        process.check()
