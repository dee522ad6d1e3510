"""The linters of ROS, with the package's own settings."""

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
