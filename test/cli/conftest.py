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

"""`sqap` as a process of its own, and a checkpoint small enough to answer at once."""

import os
import subprocess
import sys

import pytest
import torch

from sqap_vla_ros.models.demo import DemoConfig, DemoVla
from sqap_vla_ros.models.llama import LlamaConfig
from sqap_vla_ros.models.own_format import save_model
from sqap_vla_ros.models.vit import VitConfig
from sqap_vla_ros.models.vla import ActionSpec
from sqap_vla_ros.simulation.tasks import VOCABULARY


def start_sqap(*words):
    """Start the command line with pipes."""
    return subprocess.Popen([sys.executable, "-m", "sqap_vla_ros.cli.main", *map(str, words)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"})


@pytest.fixture
def sqap():
    """Starter of `sqap`; what still runs at the end is killed."""
    started = []

    def start(*words):
        started.append(start_sqap(*words))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """A checkpoint with random weights that knows the words; it succeeds at nothing."""
    folder = tmp_path_factory.mktemp("untrained")
    action = ActionSpec(4, (-0.04,) * 6 + (0.0,), (0.04,) * 6 + (1.0,), (True,) * 6 + (False,))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_model(DemoVla(DemoConfig(VitConfig(32, 6, 4, 32, 1, 2), LlamaConfig(64, 128, 3, 4, 2), VOCABULARY,
                                      action)), folder)
    return folder
