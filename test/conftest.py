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

import os
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
