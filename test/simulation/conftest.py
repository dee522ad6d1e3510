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

"""The simulated robot in its own process, and a node in this one that talks to it over DDS."""

import os
import signal
import subprocess
import sys
import time

import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor

from sqap_vla_ros.cli.processes import choose_domain


class RosWorld:
    """One ROS domain of its own: a node here, node processes there."""

    def __init__(self):
        self.domain = choose_domain()
        self.environment = {**os.environ, "ROS_DOMAIN_ID": str(self.domain), "MUJOCO_GL": "osmesa",
                            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "OMP_NUM_THREADS": "1"}
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=self.domain)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.node = rclpy.create_node("tester", context=self.context)
        self.executor.add_node(self.node)
        self.processes = []

    def start(self, module, **parameters):
        """Run a node module as a process."""
        flags = [part for name, value in parameters.items()
                 for part in ("-p", f"{name.replace('__', '.')}:={str(value).lower()}")]
        process = subprocess.Popen([sys.executable, "-m", module, "--ros-args", *flags], env=self.environment,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.processes.append(process)
        return process

    def wait_until(self, condition, timeout_s=20.0, what="the condition"):
        """Serve callbacks until ``condition()`` holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            for process in self.processes:
                assert process.poll() is None, f"a node ended with {process.returncode}:\n{process.stdout.read()}"
            assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s} s"
            self.executor.spin_once(timeout_sec=0.05)

    def call(self, client, request, timeout_s=20.0):
        """Call a service and return its answer."""
        self.wait_until(client.service_is_ready, timeout_s, f"service {client.srv_name}")
        future = client.call_async(request)
        self.wait_until(future.done, timeout_s, f"answer of {client.srv_name}")
        return future.result()

    def close(self):
        """End the processes and this domain."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.communicate(timeout=20)
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def ros_world():
    """A fresh ROS domain."""
    world = RosWorld()
    yield world
    world.close()
