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

"""What several packages' tests share: a quiet environment, and a demo model built in milliseconds."""

import fcntl
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

# Read when torch, MuJoCo and ROS load, so set before the imports. Node processes that tests start inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MUJOCO_GL", "osmesa")
# Nothing a test publishes may leave this machine; Humble knows only the second name.
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
if os.environ.get("ROS_DISTRO") == "humble":
    os.environ["ROS_LOCALHOST_ONLY"] = "1"

import pytest
import torch

from sqap_vla_ros.models.demo import DemoConfig, DemoVla
from sqap_vla_ros.models.llama import LlamaConfig
from sqap_vla_ros.models.vit import VitConfig
from sqap_vla_ros.models.vla import ActionSpec

WORDS = ("pick", "up", "the", "red", "blue", "block")


def tiny_demo_config(chunk_steps=4, layers=3):
    """Sizes of a demo model with an 8 x 8 token grid over 32 x 32 px and a 64-wide decoder."""
    action = ActionSpec(chunk_steps, (-0.02, -0.03, -0.04, -0.1, -0.2, -0.3, 0.0),
                        (0.03, 0.03, 0.05, 0.1, 0.2, 0.4, 1.0), (True,) * 6 + (False,))
    return DemoConfig(vision=VitConfig(32, 6, 4, 32, 1, 2), decoder=LlamaConfig(64, 128, layers, 4, 2),
                      vocabulary=WORDS, action=action)


def make_tiny_demo(seed=0, **sizes):
    """A demo model of :func:`tiny_demo_config` with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DemoVla(tiny_demo_config(**sizes)).eval()


@pytest.fixture(autouse=True)
def in_turn(request):
    """Where several processes share the tests, one that is marked `timed` runs while no other does."""
    if not hasattr(request.config, "workerinput"):
        yield
        return
    folder = Path(tempfile.gettempdir(), f"sqap-tests-{request.config.workerinput['testrunuid']}")
    folder.mkdir(exist_ok=True)
    with ExitStack() as closing:
        # Whoever waits to be alone holds the door, so that the others do not go in before.
        door, room = (closing.enter_context((folder / name).open("w")) for name in ("door", "room"))
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if request.node.get_closest_marker("timed") else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


@pytest.fixture(scope="module")
def tabletop():
    """One simulation for a whole module; every test resets it."""
    from sqap_vla_ros.simulation.tabletop import Tabletop

    table = Tabletop()
    yield table
    table.close()


@pytest.fixture(autouse=True)
def same_threads():
    """Building a policy sets the threads of the process; no test shall see those of the one before."""
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.fixture(scope="session")
def tiny_demo():
    """Builder of tiny demo models: ``tiny_demo(seed=0, chunk_steps=4, layers=3)``."""
    return make_tiny_demo


@pytest.fixture(scope="session")
def oracles():
    """Folder of the originals' tiny checkpoints and what they gave; the test is skipped where there is none."""
    folder = Path(os.environ.get("SQAP_ORACLES", Path(__file__).parents[2] / "shared" / "oracles"))
    if not folder.is_dir():
        pytest.skip(f"no reference outputs of the original models at {folder}; SQAP_ORACLES names another folder")
    return folder


@pytest.fixture(scope="session")
def simulated_bag(tmp_path_factory):
    """Folder of a bag: the scripted expert at work on the simulated table for 12 steps, by the simulated clock."""
    import numpy as np
    from rclpy.serialization import serialize_message
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore
    from rosgraph_msgs.msg import Clock
    from sensor_msgs.msg import JointState
    from std_msgs.msg import String
    from tf2_msgs.msg import TFMessage

    from sqap_vla_ros.ros import codecs, interface
    from sqap_vla_ros.simulation import expert
    from sqap_vla_ros.simulation.suite import choose_trials
    from sqap_vla_ros.simulation.tabletop import Tabletop

    path, store = tmp_path_factory.mktemp("bags") / "expert", get_typestore(Stores.ROS2_HUMBLE)
    trial = choose_trials("base", 1, 2_000_000)[0]
    table = Tabletop(trial.layout)
    table.reset(trial.seed)
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        ends = {end.name: writer.add_connection(f"/{end.name.lstrip('/')}", end.type_name, typestore=store) for end in (
            interface.CLOCK, interface.TF_STATIC, interface.TF, interface.JOINT_STATES, interface.CAMERA_INFO,
            interface.IMAGE, interface.INSTRUCTION, interface.TWIST)}

        def write(end, message, at_ns):
            writer.write(ends[end.name], at_ns, serialize_message(message))

        def tell_frames(at_ns):
            write(interface.CLOCK, Clock(clock=codecs.ns_to_stamp(at_ns)), at_ns)
            write(interface.TF, TFMessage(transforms=[codecs.encode_transform(*pose, at_ns)
                                                      for pose in table.link_poses()]), at_ns)

        for step in range(12):
            now_ns = 1_000_000_000 + step * 100_000_000
            tell_frames(now_ns)
            if step == 0:
                write(interface.TF_STATIC, TFMessage(transforms=[codecs.encode_transform(*pose, now_ns)
                                                                 for pose in table.static_poses()]), now_ns)
                write(interface.INSTRUCTION, String(data=trial.task.instruction), now_ns)
            names, positions, velocities = table.joint_state()
            write(interface.JOINT_STATES, JointState(header=codecs.make_header(now_ns, ""), name=list(names),
                                                     position=positions.tolist(), velocity=velocities.tolist()), now_ns)
            write(interface.CAMERA_INFO, codecs.encode_camera_info(table.camera(), now_ns, "camera_optical_frame"),
                  now_ns)
            write(interface.IMAGE, codecs.encode_image(table.render(), now_ns, "camera_optical_frame"), now_ns)
            action = expert.act(table.state(), trial.task, table.layout)
            write(interface.TWIST, codecs.encode_twist(*np.split(action[:6] / 0.1, 2), now_ns, "panda_link0"), now_ns)
            table.set_twist(*np.split(action[:6] / 0.1, 2))
            table.set_gripper(action[6])
            for tick in range(1, 5):
                table.advance(0.02)
                tell_frames(now_ns + tick * 20_000_000)
            table.advance(0.02)
    table.close()
    return path
