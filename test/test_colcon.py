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

"""What `colcon build` installs, with copies and with links."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAME = "sqap_vla_ros"
# What a fresh clone has, and no more.
PARTS = ("config", "launch", "resource", NAME, "LICENSE", "package.xml", "setup.cfg", "setup.py")
EXECUTABLES = set(re.findall(r'"(\w+) = [\w.:]+"', (ROOT / "setup.py").read_text()))
# How each node is made to end at once, with a sentence: a parameter that it refuses.
REFUSED = {"policy_node": ("control.command_hz:=0.1", "control.command_hz"),
           "watchdog_node": ("timeout_s:=-1.0", "timeout_s"),
           "sim_robot_node": ("real_time_factor:=-1.0", "both must be 0 or more")}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=["copied", "linked"])
def installed(request, tmp_path_factory):
    """A workspace with the package built in it; gives the install prefix of the package."""
    pytest.importorskip("colcon_core", reason="colcon comes with ROS 2, or with `make`")
    workspace = tmp_path_factory.mktemp(request.param)
    source = workspace / "src" / NAME
    source.mkdir(parents=True)
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / part, source / part)
    command = [sys.executable, "-m", "colcon", "build", *(["--symlink-install"] if request.param == "linked" else [])]
    done = subprocess.run(command, cwd=workspace, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return workspace / "install" / NAME


def environment():
    """Without what pytest and earlier workspaces put on the paths."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "COLCON_PREFIX_PATH")}


def run_sourced(prefix, *command):
    """Run a command as after `. install/setup.sh`, with the interpreter of this environment first on the path."""
    script = f'. "{prefix.parent}/setup.sh" && exec "$@"'
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return subprocess.run(["sh", "-c", script, "sh", *command], cwd=prefix.parent, env=environment() | {"PATH": path},
                          capture_output=True, text=True, timeout=100)


def test_everything_is_where_ros_looks(installed):
    share = installed / "share" / NAME
    assert (installed / "share/ament_index/resource_index/packages" / NAME).is_file()
    assert (share / "package.xml").is_file()
    for folder, pattern in (("launch", "*.launch.py"), ("config", "*.*"), ("config/sros2", "*.xml")):
        wanted = {path.name for path in (ROOT / folder).glob(pattern)}
        assert wanted and {path.name for path in (share / folder).iterdir() if path.is_file()} == wanted
    programs = installed / "lib" / NAME
    assert {path.name for path in programs.iterdir()} == EXECUTABLES >= REFUSED.keys() | {"sqap"}
    assert all(os.access(program, os.X_OK) for program in programs.iterdir())


@pytest.mark.parametrize("node", REFUSED)
def test_a_node_starts_and_says_what_it_refuses(installed, node):
    parameter, sentence = REFUSED[node]
    done = run_sourced(installed, str(installed / "lib" / NAME / node), "--ros-args", "-p", parameter)
    assert done.returncode == 1, done.stdout + done.stderr
    assert sentence in done.stderr and "Traceback" not in done.stderr


def test_the_command_line_finds_the_installed_package(installed):
    """With its assets, and with its C compiled."""
    program = str(installed / "lib" / NAME / "sqap")
    assert run_sourced(installed, program, "--help").stdout.startswith("usage: sqap")
    done = run_sourced(installed, program, "info", "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    where = run_sourced(installed, sys.executable, "-c",
                        "from sqap_vla_ros.compiled import load_library; print(load_library()._name)").stdout
    assert Path(where.strip()).is_relative_to(installed.parents[1]), where
