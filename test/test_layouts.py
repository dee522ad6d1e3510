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

"""The RViz and Foxglove layouts show topics that the nodes have."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray

from sqap_vla_ros.data import ActionChunk, Inference, StageTimes, TokenRule, TokenUse
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.diagnostics import Health

CONFIG = Path(__file__).parents[1] / "config"
RVIZ = yaml.safe_load((CONFIG / "policy.rviz").read_text())["Visualization Manager"]
FOXGLOVE = json.loads((CONFIG / "policy.foxglove.json").read_text())
PANELS = FOXGLOVE["configById"]
# What a display or a panel draws.
TYPES = {"rviz_default_plugins/Image": "sensor_msgs/msg/Image", "rviz_default_plugins/Camera": "sensor_msgs/msg/Image",
         "rviz_default_plugins/Path": "nav_msgs/msg/Path"}
PLOT_PATH = re.compile(r'(?P<topic>/[\w/]+)\.status\[:\]\.values\[:\]\{key=="(?P<key>\w+)"\}\.value')


def topics_of(rows):
    """Absolute names of what a node in no namespace publishes, with their rows."""
    return {f"/{end.name.replace('~', 'policy_node').lstrip('/')}": end for role, end in rows
            if role is interface.Role.PUBLISHES}


PUBLISHED = topics_of(interface.SIM_ROBOT) | topics_of(interface.POLICY_NODE)


@pytest.mark.parametrize("display", [item for item in RVIZ["Displays"] if "Topic" in item],
                         ids=lambda item: item["Name"])
def test_rviz_display_can_hear_its_topic(display):
    end = PUBLISHED[display["Topic"]["Value"]]
    assert end.type_name == TYPES[display["Class"]]
    # A reliable subscription hears no best-effort publisher, as most cameras are.
    assert display["Topic"]["Durability Policy"] == "Volatile"
    if end.qos is interface.Qos.SENSOR:
        assert display["Topic"]["Reliability Policy"] == "Best Effort"


def test_rviz_shows_what_there_is_to_see():
    assert {item["Class"].removeprefix("rviz_default_plugins/") for item in RVIZ["Displays"]} == {
        "Axes", "Camera", "Grid", "Image", "Path", "TF"}
    assert all(item["Enabled"] and item["Value"] for item in RVIZ["Displays"])
    assert RVIZ["Global Options"]["Fixed Frame"] == "panda_link0"


def panels_in(layout):
    """Ids of the panels of a layout's tree."""
    if isinstance(layout, str):
        return [layout]
    assert layout["direction"] in ("row", "column") and 0 < layout["splitPercentage"] < 100
    return panels_in(layout["first"]) + panels_in(layout["second"])


def test_foxglove_places_every_panel_once():
    assert sorted(panels_in(FOXGLOVE["layout"])) == sorted(PANELS)


@pytest.mark.parametrize(("panel", "topic", "kind"), [
    ("Image!overlay", PANELS["Image!overlay"]["imageMode"]["imageTopic"], "sensor_msgs/msg/Image"),
    ("DiagnosticSummary!all", PANELS["DiagnosticSummary!all"]["topicToRender"], "diagnostic_msgs/msg/DiagnosticArray"),
    ("DiagnosticStatusPanel!policy", PANELS["DiagnosticStatusPanel!policy"]["topicToRender"],
     "diagnostic_msgs/msg/DiagnosticArray"),
    ("RawMessages!instruction", PANELS["RawMessages!instruction"]["topicPath"], "std_msgs/msg/String"),
    ("RawMessages!commands", PANELS["RawMessages!commands"]["topicPath"], "geometry_msgs/msg/TwistStamped"),
    *(("3D!path", topic, kind) for topic, kind in zip(
        PANELS["3D!path"]["topics"], ("nav_msgs/msg/Path", "sensor_msgs/msg/CameraInfo"), strict=True)),
])
def test_foxglove_panel_has_a_topic_that_it_can_show(panel, topic, kind):
    assert panel in PANELS and PUBLISHED[topic].type_name == kind


def test_foxglove_plots_numbers_that_the_latency_message_has():
    tokens = TokenUse((2, 2), np.array([0, 3]), np.array([TokenRule.ROBOT, TokenRule.COVERAGE], dtype=np.int8))
    stages = dict.fromkeys(("preprocess", "vision", "llm", "head"), 1.5)
    inference = Inference(ActionChunk(0, 10**8, np.zeros((1, 7))), StageTimes(stages), (tokens,))
    message = Health("policy_node").latency(inference, 40.0, "", 0)
    assert isinstance(message, DiagnosticArray)
    values = {item.key: item.value for item in message.status[0].values}
    paths = [path["value"] for panel in ("Plot!latency", "Plot!tokens") for path in PANELS[panel]["paths"]]
    assert len(paths) == 9
    for path in paths:
        found = PLOT_PATH.fullmatch(path)
        assert PUBLISHED[found["topic"]] is interface.LATENCY
        assert float(values[found["key"]]) >= 0.0
