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

"""The linters of ROS, with the package's own settings."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ["sqap_vla_ros", "launch", "setup.py", "bootstrap.py"]
# Sentences of ours say what a thing is, so not all begin with a verb, nor with a capital where a name has none; what
# Python itself calls, and what stands beside a documented class or an interface, needs no sentence.
UNASKED = ["D102", "D103", "D104", "D105", "D107", "D401", "D402", "D403"]


@pytest.fixture(autouse=True)
def in_the_package(monkeypatch):
    """Linters look for what to leave out below the working directory."""
    monkeypatch.chdir(ROOT)


def test_ament_flake8():
    pytest.importorskip("ament_flake8.main", reason="ament_flake8 comes with ROS 2, or with `make`")
    # It forks, which a process with the threads of other tests may not survive.
    program = "import sys; from ament_flake8.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", program, "--config", str(ROOT / ".flake8"), *SOURCES, "test"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_ament_pep257(capsys):
    pep257 = pytest.importorskip("ament_pep257.main", reason="ament_pep257 comes with ROS 2, or with `make`")
    code = pep257.main(argv=["--convention", "pep257", "--add-ignore", *UNASKED, "--", *SOURCES])
    assert code == 0, capsys.readouterr().out
    assert "checking sqap_vla_ros/ros/policy_node.py" in capsys.readouterr().out


def test_ament_copyright(capsys):
    """With the package's files only; what else lies about here is nobody's source."""
    copyright_lint = pytest.importorskip("ament_copyright.main", reason="ament_copyright comes with ROS 2")
    assert copyright_lint.main([*SOURCES, "test", "interfaces", "LICENSE", "CONTRIBUTING.md"]) == 0, \
        capsys.readouterr().out


def test_each_source_begins_with_the_licence_s_header():
    """As ament_copyright wants it, where that is not at hand."""
    files = [path for folder in ("sqap_vla_ros", "launch", "test", "interfaces")
             for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".c", ".cmake")]
    heads = {path: [line.lstrip("#/").strip() for line in path.read_text(encoding="utf-8").splitlines()[:13]]
             for path in files}
    strays = [str(path) for path, head in heads.items() if any(head) and not (
        re.fullmatch(r"Copyright \d{4} sqap_vla_ros maintainers", head[0])
        and head[2].startswith("Licensed under the Apache License, Version 2.0"))]
    assert len(files) > 300 and strays == []


def test_a_fault_is_found(tmp_path, capsys):
    """That the settings do not switch everything off."""
    flake8 = pytest.importorskip("ament_flake8.main", reason="ament_flake8 comes with ROS 2, or with `make`")
    pep257 = pytest.importorskip("ament_pep257.main", reason="ament_pep257 comes with ROS 2, or with `make`")
    faulty = tmp_path / "faulty.py"
    faulty.write_text('import os\n\n\nclass Thing:\n    """A thing without an end"""\n')
    assert flake8.main_with_errors(argv=["--config", str(ROOT / ".flake8"), str(faulty)])[0] == 1
    assert pep257.main(argv=["--convention", "pep257", "--add-ignore", *UNASKED, "--", str(faulty)]) == 1
    told = "".join(capsys.readouterr())
    assert "F401" in told and "D400" in told and "D100" in told
