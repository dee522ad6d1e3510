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

"""Cells on a local Ray whose workers, or whose driver, are killed: each lands once, and no process is left."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("sweep_driver.py")


class Driver:
    """The driver's process and what it writes."""

    def __init__(self, out, scratch, *words):
        self.out = out
        # A session of its own, which all that Ray starts belongs to.
        self.process = subprocess.Popen(
            [sys.executable, DRIVER, out, *map(str, words)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)})

    def wait_for(self, name, count):
        """Until a file has so many lines; those."""
        path = self.out / name
        while len(lines := path.read_text().splitlines() if path.exists() else []) < count:
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.01)
        return lines

    def finish(self):
        """Its end, which must be a good one."""
        told, errors = self.process.communicate(timeout=100)
        assert self.process.returncode == 0, errors
        # Ray's words about dead workers are in its own file.
        assert told == "" and errors == ""

    def list_processes(self):
        """Command lines of what runs in its session, by process id."""
        running = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.process.pid and state != "Z":
                    running[int(stat.parent.name)] = (stat.parent / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
        return running


@pytest.fixture
def scratch():
    """A folder with a short name, as Ray's sockets need one."""
    folder = Path(tempfile.mkdtemp(prefix="sw", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start(tmp_path, scratch):
    """Starter of the driver; what still runs in its session at the end is killed."""
    started = []

    def begin(*words):
        started.append(Driver(tmp_path / "out", scratch, *words))
        return started[-1]

    yield begin
    for driver in started:
        for pid in driver.list_processes():
            os.kill(pid, signal.SIGKILL)
        driver.process.communicate()


def read_rows(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def count_begun(out):
    return Counter(line.split()[0] for line in (out / "begun.txt").read_text().splitlines())


def test_24_cells_land_once_although_a_worker_is_killed(start, tmp_path, scratch):
    driver = start("one,two,three,four", 0.5)
    # The moment it is begun, so that it cannot have ended.
    killed, pid = driver.wait_for("begun.txt", 12)[11].split()
    os.kill(int(pid), signal.SIGKILL)
    driver.finish()
    rows = read_rows(tmp_path / "out")
    assert len(rows) == len({row["cell"] for row in rows}) == 24
    assert {row["state"] for row in rows} == {"finished"}
    begun = count_begun(tmp_path / "out")
    assert len(begun) == 24 and {name for name, count in begun.items() if count != 1} == {killed}
    assert begun[killed] == 2
    assert {row["cell"]: row["begun"] for row in rows} == dict(begun)
    assert f"PID: {pid}" in (tmp_path / "out/ray.log").read_text()
    assert driver.list_processes() == {} and list(scratch.iterdir()) == []
    print(f"24 cells, worker {pid} killed in {killed}: {len(rows)} lines, {len({row['cell'] for row in rows})} cells, "
          f"begun {dict(Counter(begun.values()))}")


def test_failures_are_told_and_what_a_dead_worker_had_finished_is_taken(start, tmp_path):
    start("broken,deadly,defect", 0.0).finish()
    rows = {row["cell"]: row for row in read_rows(tmp_path / "out")}
    assert len(rows) == 18 and set(count_begun(tmp_path / "out").values()) == {1}
    failures = Counter(row.get("failure") for row in rows.values())
    assert failures == {None: 6, "the bag is empty; record it again": 6,
                        "it ended with a defect, RuntimeError: no such sum": 6}
    assert all((row["state"] == "finished") == (row["bag"] == "deadly.mcap") for row in rows.values())


def test_sweep_goes_on_after_its_own_death(start, tmp_path):
    driver = start("one,two", 0.4)
    driver.wait_for("results.jsonl", 4)
    driver.process.kill()
    driver.process.wait()
    deadline_s = time.monotonic() + 20
    # Two of Ray's agents look for their parent for about a minute; nothing that works may outlive the driver.
    while any("Agent" not in line for line in driver.list_processes().values()):
        assert time.monotonic() < deadline_s, driver.list_processes()
        time.sleep(0.05)
    landed = {row["cell"] for row in read_rows(tmp_path / "out")}
    assert 4 <= len(landed) < 12
    start("one,two", 0.4, "resume").finish()
    rows = read_rows(tmp_path / "out")
    assert len(rows) == len({row["cell"] for row in rows}) == 12 and landed <= {row["cell"] for row in rows}
    begun = count_begun(tmp_path / "out")
    assert len(begun) == 12 and all(begun[name] == 1 for name in landed)
    # Only what was running when all was killed.
    assert sum(begun.values()) <= 14


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_keeps_what_was_finished(start, tmp_path, scratch):
    driver = start("one,two", 0.4)
    driver.wait_for("results.jsonl", 4)
    # To all processes of the group, as a terminal sends it.
    os.killpg(driver.process.pid, signal.SIGINT)
    _, errors = driver.process.communicate(timeout=60)
    assert errors.rstrip().endswith("KeyboardInterrupt") and driver.process.returncode != 0
    assert driver.list_processes() == {} and list(scratch.iterdir()) == []
    landed = {row["cell"] for row in read_rows(tmp_path / "out")}
    start("one,two", 0.4, "resume").finish()
    assert len({row["cell"] for row in read_rows(tmp_path / "out")}) == 12
    assert all(count_begun(tmp_path / "out")[name] == 1 for name in landed)
