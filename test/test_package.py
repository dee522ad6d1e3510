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

"""package.xml, setup.py and the built messages say the same as the code, and as ROS."""

import ast
import importlib
import json
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MANIFEST = ElementTree.parse(ROOT / "package.xml").getroot()
SETUP = (ROOT / "setup.py").read_text()


def imported_packages():
    """Top-level names that the package imports anywhere."""
    for path in (ROOT / "sqap_vla_ros").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
                [node.module] if isinstance(node, ast.ImportFrom) else [])
            yield from (name.split(".")[0] for name in names)


def test_versions_agree():
    versions = {MANIFEST.findtext("version"), re.search(r'version="([^"]+)"', SETUP).group(1)}
    assert len(versions) == 1
    assert MANIFEST.get("format") == "3"
    assert MANIFEST.findtext("export/build_type") == "ament_python"


def test_manifest_is_one_that_ros_accepts():
    package = pytest.importorskip("catkin_pkg.package", reason="catkin_pkg comes with ROS 2, or with `make`")
    warnings = []
    manifest = package.parse_package(str(ROOT), warnings=warnings)
    assert warnings == []
    assert manifest.get_build_type() == "ament_python"
    assert {url.type for url in manifest.urls} == {"repository", "bugtracker"}
    assert (ROOT / manifest.licenses[0].file).is_file()


def test_launch_files_start_what_is_built():
    started = {name for path in (ROOT / "launch").glob("*.launch.py")
               for name in re.findall(r'"(\w+_node)"', path.read_text())}
    built = set(re.findall(r'"(\w+) = [\w.:]+"', SETUP))
    assert {"policy_node", "watchdog_node", "sim_robot_node"} == started & built
    assert started <= built | {"servo_node"}  # MoveIt's


def test_manifest_names_every_ros_package_in_use():
    ros = {name for name in imported_packages()
           if name.endswith(("_msgs", "_srvs", "_interfaces")) or name in {"rclpy", "tf2_ros", "cv_bridge"}}
    assert "rclpy" in ros
    assert ros <= {element.text for element in MANIFEST.iter("exec_depend")}


def test_setup_names_every_python_package_in_use():
    distributions = {"cv2": "opencv-python-headless", "PIL": "pillow", "yaml": "pyyaml",
                     "imageio_ffmpeg": "imageio-ffmpeg"}
    libraries = {"numpy", "scipy", "torch", "tokenizers", "transformers", "safetensors", "mujoco", "tqdm", "rich",
                 "matplotlib", "psutil", "rosbags", *distributions}
    used = {distributions.get(name, name) for name in imported_packages() if name in libraries}
    declared = set(re.findall(r'"([a-z0-9-]+)[><=]', SETUP))
    assert {"torch", "numpy"} <= used <= declared


@pytest.mark.parametrize("entry", re.findall(r'"(\w+ = [\w.:]+)"', SETUP))
def test_command_exists(entry):
    module, function = entry.split(" = ")[1].split(":")
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


# Of the originals in Humble, Jazzy and Kilted. Nodes hear each other only when these agree.
HASHES = {
    "control_msgs/action/GripperCommand": "e17c0e644eccf14bea84a0a93e0977182872c2eb7873ca6694900059b46dbc84",
    "control_msgs/action/ParallelGripperCommand": "adfd3c1ebe8abc38ebcc0e454b6423d291d4010dd5697d14eca5b9be4726ae18",
    "control_msgs/msg/GripperCommand": "57eb8f326c9889ca8bb34ead82cc94cc09bf6bc5c3b6c09546dca3a00b589890",
    "moveit_msgs/msg/ServoStatus": "882a75f7648d6f8a9bf528e4787f51c58f2d5d88b702e450443d99f270e6936b",
    "moveit_msgs/srv/ServoCommandType": "2065f4daf271249330596d344ecd48f5c2d2a52e3b21b1fc56d99c52b8eeae22",
    "statistics_msgs/msg/MetricsMessage": "36a67fb499fc2a11b8b9ff9ac735ed76e8d5a1f7775d6d5b97b625188ec68e20",
    "statistics_msgs/msg/StatisticDataPoint": "b7e61a407346ea912effb6954023d2d2c9adf8f7bc10f6cae576d350c445f6a5",
    "statistics_msgs/msg/StatisticDataType": "840d83bd5dc660e0c6e996f9e1ab80bec3c5a91976360a40d6cc579a37a8c959",
    "tf2_msgs/msg/TFMessage": "e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087",
}


@pytest.mark.parametrize("name", HASHES)
def test_message_is_the_one_ros_defines(name):
    prefixes = [sys.prefix, *os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)]
    descriptions = [path for prefix in prefixes if (path := Path(prefix, "share", f"{name}.json")).exists()]
    if not descriptions and os.environ.get("ROS_DISTRO") == "humble":
        pytest.skip("Humble's messages carry no hash")
    hashes = json.loads(descriptions[0].read_text())["type_hashes"]
    assert {entry["type_name"]: entry["hash_string"] for entry in hashes}[name] == f"RIHS01_{HASHES[name]}"


def test_constants_are_those_of_ros():
    """A hash does not cover them."""
    servo = pytest.importorskip("moveit_msgs.srv").ServoCommandType.Request
    assert (servo.JOINT_JOG, servo.TWIST, servo.POSE) == (0, 1, 2)
    status = importlib.import_module("moveit_msgs.msg").ServoStatus
    assert [status.INVALID, status.NO_WARNING, status.HALT_FOR_SINGULARITY, status.HALT_FOR_COLLISION,
            status.JOINT_BOUND] == [-1, 0, 2, 5, 6]
    kinds = importlib.import_module("statistics_msgs.msg").StatisticDataType
    assert [kinds.STATISTICS_DATA_TYPE_AVERAGE, kinds.STATISTICS_DATA_TYPE_MINIMUM, kinds.STATISTICS_DATA_TYPE_MAXIMUM,
            kinds.STATISTICS_DATA_TYPE_STDDEV, kinds.STATISTICS_DATA_TYPE_SAMPLE_COUNT] == [1, 2, 3, 4, 5]
