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

"""Build ``.venv``: all that the package needs to run, be tested and be shown, with or without a ROS 2 installation.

Only the standard library is imported, since this runs before anything is installed. A step is skipped when its stamp
in ``.venv/.setup`` holds the hash of everything the step and those before it depend on.
"""

from __future__ import annotations

import ctypes.util
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STATE = VENV / ".setup"
# Under an activated .venv, sys.executable is inside the folder that may have to be rebuilt.
PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))

ROS_WHEELS = (
    "rclpy[fastrtps]", "diagnostic-msgs", "geometry-msgs", "lifecycle-msgs", "nav-msgs", "rcl-interfaces",
    "rosgraph-msgs", "sensor-msgs", "std-msgs", "std-srvs", "trajectory-msgs", "visualization-msgs",
)
# The generators' metadata name only some of what their cmake files look for.
GENERATOR_WHEELS = (
    "ament-cmake", "ament-cmake-gmock", "ament-cmake-gtest", "ament-cmake-include-directories", "ament-cmake-pytest",
    "ament-cmake-ros", "ament-package", "fastrtps-cmake-module", "python-cmake-module", "rosidl-core-generators",
    "rosidl-default-generators",
)
# What ROS packages are checked with; flake8 and pydocstyle, which they call, are among the Python packages.
LINT_WHEELS = ("ament-flake8", "ament-pep257")
GENERATOR_TOOLS = ("catkin-pkg", "cmake", "ninja", "numpy", "pyyaml")


class SetupError(Exception):
    """A step cannot be done; the message says what to do about it."""


class Step(NamedTuple):
    """One stage of the setup.

    :param name: shown, and the stem of the log file
    :param inputs: files and strings that decide whether the step must run again
    :param action: does the work; is given the log file's path
    """

    name: str
    inputs: tuple[Path | str, ...]
    action: Callable[[Path], None]


class SystemPackage(NamedTuple):
    """Something pip cannot install.

    :param debian: package on Debian and Ubuntu
    :param purpose: what does not work without it
    :param present: whether this machine has it
    :param required: whether the setup stops without it
    """

    debian: str
    purpose: str
    present: bool
    required: bool = True


def run(log: Path, *command: str | Path, extra_env: Mapping[str, str] | None = None) -> None:
    """Run ``command`` with its output appended to ``log``.

    :raises SetupError: with the output's end when it fails
    """
    # The ROS wheels mark an environment they have set up; inherited from another .venv the mark would be wrong here.
    env = {key: value for key, value in os.environ.items() if key != "_ROS_WHEELS_BOOTSTRAP_COMPLETE"}
    env.update(extra_env or {})
    with log.open("ab") as out:
        start = out.tell()
        result = subprocess.run([str(part) for part in command], cwd=ROOT, env=env, stdin=subprocess.DEVNULL,
                                stdout=out, stderr=subprocess.STDOUT, check=False)
    if result.returncode:
        tail = log.read_bytes()[start:].decode(errors="replace").strip().splitlines()[-15:]
        shown = " ".join(str(part) for part in command[:6])
        raise SetupError("\n".join([*tail, f"'{shown} ...' ended with {result.returncode}"]))


def succeeds(*command: str) -> bool:
    """Whether a quick question to the machine is answered with yes."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def pip_install(log: Path, *arguments: str | Path) -> None:
    """Install into ``.venv`` at the pinned versions."""
    run(log, VENV / "bin/python", "-m", "pip", "install", "--no-input", "--disable-pip-version-check",
        "--constraint", STATE / "constraints.txt", *arguments)


def sourced_ros() -> str:
    """Name of the ROS 2 distribution that is sourced, or an empty string.

    :raises SetupError: when one is sourced that this Python cannot import
    """
    distro = os.environ.get("ROS_DISTRO", "")
    if not distro or not os.environ.get("AMENT_PREFIX_PATH"):
        return ""
    if not succeeds(PYTHON, "-c", "import rclpy"):
        raise SetupError(f"ROS 2 {distro} is sourced, but {PYTHON} (Python {platform.python_version()}) cannot import "
                         "its rclpy; name the Python it was built for: make PYTHON=/usr/bin/python3")
    return distro


def pinned_versions(ros: str) -> str:
    """The constraints for this machine.

    ROS's compiled messages, and a Jetson's own torch, only work with the versions they came with, so those stay.
    """
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    if ros:
        for name in ("numpy", "torch"):
            try:
                version = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
            if name == "numpy" and tuple(map(int, version.split(".")[:2])) < (1, 23):
                version = "1.26.4"  # newest of the same ABI; other packages need 1.23
            lines = [f"{name}=={version}" if line.startswith(f"{name}==") else line for line in lines]
    return "\n".join(lines) + "\n"


def system_packages(ros: str) -> list[SystemPackage]:
    """What the machine itself must have."""
    packages = [
        SystemPackage("libosmesa6", "off-screen pictures of the simulated robot (or EGL: set MUJOCO_GL=egl)",
                      ctypes.util.find_library("OSMesa") is not None, required=False),
        SystemPackage("python3-venv", "virtual environments", importlib.util.find_spec("ensurepip") is not None),
    ]
    packages.append(SystemPackage("g++", "compiling C, and the message definitions", shutil.which("c++") is not None))
    if not ros:
        header = Path(sysconfig.get_path("include")) / "Python.h"
        packages.append(SystemPackage("python3-dev", "compiling the message definitions", header.exists()))
    return packages


def install_system_packages(log: Path, packages: list[SystemPackage]) -> None:
    """Install by apt what is missing, when that is allowed without asking.

    :raises SetupError: when a required one stays missing
    """
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if not shutil.which("apt-get"):
        reason = "apt-get is not on this machine"
    elif root and not (shutil.which("sudo") and succeeds(*root, "true")):
        reason = "only root may install these"
    else:
        apt = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]
        succeeds(*apt, "update")  # without the network the lists already here may do
        failed = []
        for package in packages:  # one by one: a release that lacks an optional one still gets the others
            try:
                run(log, *apt, "install", "-y", "--no-install-recommends", package.debian)
            except SetupError as error:
                failed.append(package)
                reason = str(error)
        if not failed:
            return
        packages = failed
    needs = "".join(f"\n      {package.debian}: {package.purpose}" for package in packages)
    names = " ".join(package.debian for package in packages)
    message = f"{reason}{needs}\n      on Debian or Ubuntu: sudo apt-get install {names}"
    if any(package.required for package in packages):
        raise SetupError(message)
    print(f"going on without: {message}\n     ", end="", flush=True)


def build_definitions(log: Path) -> None:
    """Generate, compile and install the packages in ``interfaces/``."""
    prefix = {"AMENT_PREFIX_PATH": str(VENV), "CMAKE_PREFIX_PATH": str(VENV)}
    for source in sorted(path.parent for path in (ROOT / "interfaces").glob("*/CMakeLists.txt")):
        build = STATE / "build" / source.name
        shutil.rmtree(build, ignore_errors=True)
        run(log, VENV / "bin/cmake", "-G", "Ninja", "-S", source, "-B", build, "-DCMAKE_BUILD_TYPE=Release",
            "-DBUILD_TESTING=OFF", f"-DCMAKE_MAKE_PROGRAM={VENV}/bin/ninja", f"-DCMAKE_INSTALL_PREFIX={VENV}",
            f"-DPython3_EXECUTABLE={VENV}/bin/python", extra_env=prefix)
        run(log, VENV / "bin/cmake", "--build", build, "--target", "install", extra_env=prefix)
    shutil.rmtree(STATE / "build")


def plan(ros: str, constraints: str) -> list[Step]:
    """The steps, in order."""

    def make_environment(log: Path) -> None:
        for stamp in STATE.glob("*.done"):
            stamp.unlink()
        for entry in VENV.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                if entry != STATE:  # it holds the log being written
                    shutil.rmtree(entry)
            else:
                entry.unlink()
        run(log, PYTHON, "-m", "venv", *(["--system-site-packages"] if ros else []), VENV)
        (VENV / "COLCON_IGNORE").touch()

    def install_wheels(log: Path) -> None:
        wheels = [f"ros-jazzy-{name}" for name in (*ROS_WHEELS, *GENERATOR_WHEELS, *LINT_WHEELS)]
        pip_install(log, *wheels, *GENERATOR_TOOLS)

    def install_package(log: Path) -> None:
        pip_install(log, "setuptools")  # the next line builds with the one it finds
        # What only tests want, and only beside a recent torch, must not stand in the way of a ROS machine's own.
        pip_install(log, "--no-build-isolation", "--editable", f"{ROOT}[{'dev' if ros else 'dev,formats'}]")

    # Beside an installed torch a range that it satisfies costs nothing; without one, pip would resolve it last and
    # may have fetched another build's companions by then. Hence first and alone.
    steps = [
        Step("virtual environment", (PYTHON, sys.version, str(ROOT), ros), make_environment),
        Step("torch", (constraints,), lambda log: pip_install(log, "torch")),
    ]
    if not ros:
        definitions = sorted(path for path in (ROOT / "interfaces").rglob("*") if path.is_file())
        steps += [
            Step("ROS 2 wheels", (*ROS_WHEELS, *GENERATOR_WHEELS, *LINT_WHEELS, *GENERATOR_TOOLS), install_wheels),
            Step("message definitions", tuple(definitions), build_definitions),
        ]
    compiled = sorted((ROOT / "sqap_vla_ros").glob("*.c"))
    steps.append(Step("Python packages", (ROOT / "setup.py", ROOT / "setup.cfg", *compiled), install_package))
    return steps


def key_of(step: Step, previous: str) -> str:
    """Hash of what ``step`` and the steps before it depend on."""
    digest = hashlib.sha256(f"{previous}{step.name}".encode())
    for item in step.inputs:
        digest.update(f"{item.relative_to(ROOT)}\0".encode() + item.read_bytes() if isinstance(item, Path)
                      else f"{item}\0".encode())
    return digest.hexdigest()


def perform(label: str, name: str, action: Callable[[Path], None]) -> None:
    """Run one step with a line of progress; leave the log only when it fails."""
    log = STATE / f"{name.replace(' ', '-').lower()}.log"
    log.unlink(missing_ok=True)
    log.touch()
    print(f"[{label}] {name} ... ", end="", flush=True)
    start = time.monotonic()
    try:
        action(log)
    except SetupError as error:
        raise SetupError(f"failed\n{error}\nstep {label}, {name}, failed; the whole log: {log}") from None
    print(f"{time.monotonic() - start:.0f} s", flush=True)


def main() -> None:
    """Bring ``.venv`` up to date."""
    ros = sourced_ros()
    fitting = sys.platform == "linux" and platform.machine() == "x86_64" and (3, 10) <= sys.version_info[:2] <= (3, 13)
    if not ros and not fitting:
        raise SetupError("the ROS 2 wheels exist for Linux on x86_64 and Python 3.10 to 3.13; this is "
                         f"{sys.platform} on {platform.machine()} with Python {platform.python_version()}. Source a "
                         "ROS 2 installation first, or name another Python: make PYTHON=python3.12")
    STATE.mkdir(parents=True, exist_ok=True)
    constraints = pinned_versions(ros)
    steps = plan(ros, constraints)
    total = len(steps) + 1
    missing = [package for package in system_packages(ros) if not package.present]
    if missing:
        perform(f"1/{total}", "system packages", lambda log: install_system_packages(log, missing))
    key = ""
    for number, step in enumerate(steps, start=2):
        key = key_of(step, key)
        stamp = STATE / f"{step.name.replace(' ', '-').lower()}.done"
        if stamp.exists() and stamp.read_text() == key:
            continue
        stamp.unlink(missing_ok=True)
        (STATE / "constraints.txt").write_text(constraints)
        perform(f"{number}/{total}", step.name, step.action)
        stamp.write_text(key)


if __name__ == "__main__":
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two makes in one folder take turns
        try:
            main()
        except SetupError as error:
            sys.exit(f"{error}")
        except KeyboardInterrupt:
            sys.exit("interrupted; run make again to go on from here")
