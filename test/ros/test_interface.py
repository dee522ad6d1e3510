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
from rclpy.qos import DurabilityPolicy, QoSCompatibility, qos_check_compatible

from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.interface import POLICY_NODE, RIG_ROBOT, SIM_ROBOT, Endpoint, Role, format_table

ROWS = POLICY_NODE + SIM_ROBOT + RIG_ROBOT
# Two kinds of gripper action have one name; a controller serves one of them.
ENDPOINTS = {f"{value.name} {value.type.__name__}": value for value in vars(interface).values()
             if isinstance(value, Endpoint)}


def test_every_endpoint_is_in_a_table_once_and_has_a_name_of_its_own():
    defined = [value for value in vars(interface).values() if isinstance(value, Endpoint)]
    assert len(ENDPOINTS) == len(defined)
    assert {endpoint for _, endpoint in ROWS} == set(defined)
    for rows in (POLICY_NODE, SIM_ROBOT, RIG_ROBOT):
        assert len({(endpoint.name, endpoint.type) for _, endpoint in rows}) == len(rows)


def test_types_are_named_as_ros_names_them():
    assert interface.IMAGE.type_name == "sensor_msgs/msg/Image"
    assert interface.GRIPPER.type_name == "control_msgs/action/GripperCommand"
    assert interface.PARALLEL_GRIPPER.type_name == "control_msgs/action/ParallelGripperCommand"
    assert interface.SWITCH_COMMAND_TYPE.type_name == "moveit_msgs/srv/ServoCommandType"
    assert interface.RESET.type_name == "std_srvs/srv/Trigger"


@pytest.mark.parametrize("name", sorted(name for name, end in ENDPOINTS.items() if end.qos is not None))
def test_both_ends_of_every_topic_match(name):
    endpoint = ENDPOINTS[name]
    compatibility, reason = qos_check_compatible(interface.source_profile(endpoint), endpoint.qos.profile())
    # It warns of what is left to the system: history and deadlines.
    assert compatibility != QoSCompatibility.ERROR, reason


def test_late_comers_get_what_they_need_and_halts_are_never_queued():
    late = {end.name for end in ENDPOINTS.values() if end.qos is not None
            and end.qos.profile().durability == DurabilityPolicy.TRANSIENT_LOCAL}
    assert late == {"/tf_static", "~/active_instruction", "rig/fault"}
    assert interface.TWIST.qos.profile().depth == 1


def test_the_table_for_the_readme_has_every_row():
    lines = format_table(POLICY_NODE).splitlines()
    assert len(lines) == 2 + len(POLICY_NODE)
    assert lines[2] == ("| subscribes | `camera/image_raw` | `sensor_msgs/msg/Image` | best effort, 5 | "
                        f"{interface.IMAGE.unit} |")
    assert "| publishes | `camera/image_raw` | `sensor_msgs/msg/Image` | reliable, 10 |" in format_table(SIM_ROBOT)
    assert Role.CALLS_ACTION.value in format_table(POLICY_NODE)
