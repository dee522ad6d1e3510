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

"""The node's parameter file, read as ROS would."""

import pytest

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.parameter_file import read_parameter_file


@pytest.fixture
def write(tmp_path):
    """Writer of a parameter file with the execute_steps of several nodes."""

    def write(**steps):
        path = tmp_path / "robot.yaml"
        path.write_text("".join(f"{name}:\n  ros__parameters:\n    use_sim_time: true\n    control: {{execute_steps: "
                                f"{count}}}\n" for name, count in steps.items()))
        return path

    return write


@pytest.mark.parametrize(("name", "namespace", "found"), [
    ("policy_node", "", True), ("/policy_node", "", True), ("/**", "", True), ("/**/policy_node", "", True),
    ("/**/policy_node", "left/arm", True), ("/*/policy_node", "left", True), ("/*/policy_node", "", False),
    ("/left/policy_node", "/left", True), ("/left/policy_node", "right", False), ("/left/policy_node", "", False),
    ("watchdog_node", "", False), ("/**/watchdog_node", "", False)])
def test_entries_are_those_of_the_node_in_its_namespace(write, name, namespace, found):
    path = write(**{name: 3})
    if found:
        assert read_parameter_file(path, namespace) == {"control.execute_steps": 3}
    else:
        with pytest.raises(ConfigError, match=r"sets no parameter of .*policy_node"):
            read_parameter_file(path, namespace)


def test_each_arm_has_its_own(write):
    path = write(**{"/**": 1, "/left/policy_node": 2, "/right/policy_node": 3})
    assert [read_parameter_file(path, arm)["control.execute_steps"] for arm in ("left", "right", "")] == [2, 3, 1]


@pytest.mark.parametrize("text", ["", "[1]", "policy_node: 3", "policy_node: {other: {}}", "\x00"])
def test_what_is_no_parameter_file_is_told(tmp_path, text):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)):
        read_parameter_file(path)
