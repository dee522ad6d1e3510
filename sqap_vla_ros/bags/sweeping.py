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

"""The cells of a sweep on Ray, which decides what runs where and runs again what a dead worker has left.

A cell that is run again looks into its folder first: what was finished there is never run twice.
"""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_task_oom_retries", "3")
import ray  # reads both when imported
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

import sqap_vla_ros
from sqap_vla_ros.bags.sweep_folder import begin_cell, hold_cell, read_finished
from sqap_vla_ros.bags.sweep_plan import Cell
from sqap_vla_ros.bags.sweep_results import Landed
from sqap_vla_ros.errors import ConfigError, SqapError

Work = Callable[[Cell], dict[str, Any]]
# How often a cell is begun again whose worker has died.
RETRIES = 3
# Only short summaries travel; the smallest that Ray takes is 75 MiB.
_STORE_BYTES = 100 * 2**20
# Names of sockets hold 107 bytes, and Ray appends about 70 to its folder.
_LONGEST_FOLDER = 35
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}


@dataclass(frozen=True)
class Crew:
    """Where cells run.

    :param workers: cells at a time on this machine
    :param threads: CPU threads of one cell
    :param gpu: whether each cell takes a GPU
    :param address: of an existing cluster, which then decides how many run at a time; empty for this machine
    :param log: where Ray's own words go, and whatever is printed while it runs
    """

    workers: int = 1
    threads: int = 1
    gpu: bool = False
    address: str = ""
    log: Path = Path(os.devnull)

    @property
    def alone(self) -> bool:
        """Whether one cell runs at a time."""
        return self.workers == 1 and not self.address


def run_cells(cells: Sequence[Cell], work: Work, crew: Crew,
              on_slots: Callable[[int], None] = lambda slots: None) -> Generator[Landed, None, None]:
    """Run every cell that is not finished, in processes that end with this generator.

    Call from the main thread, which alone hears Ctrl-C.

    :param work: makes the summary of a cell, and writes it as ``summary.json`` into its folder as its last deed; what
        it is must be importable in the workers, or be picklable
    :param on_slots: told how many cells run at a time, once that is known
    :return: cells as they end, in no order
    :raises ConfigError: when there is no cluster at the address, or no place in it for a cell
    """
    if not cells:
        return
    with _join_ray(crew):
        on_slots(_count_slots(crew))
        remote = ray.remote(num_cpus=crew.threads, num_gpus=int(crew.gpu), max_retries=RETRIES)(_run_cell)
        pending = {remote.remote(cell, work, crew.alone): cell for cell in cells}
        while pending:
            (done,), _ = ray.wait(list(pending))
            yield _receive(done, pending.pop(done))


def replay_cell(cell: Cell) -> dict[str, Any]:
    """The work of a real sweep: replay the cell's bag into its folder."""
    # Only the workers need what a policy needs.
    from sqap_vla_ros.bags.replaying import ReplayRequest, replay

    return replay(ReplayRequest(bag=cell.bag, out=cell.folder, policies=cell.policies, knobs=cell.knobs,
                                instruction=cell.instruction, limit=cell.limit, namespace=cell.namespace,
                                remap=cell.remap, overlays=False), lambda stage, done, total: None)


def _run_cell(cell: Cell, work: Work, alone: bool) -> Landed:
    with hold_cell(cell):
        finished = read_finished(cell)
        if finished is not None:
            return finished
        begun = begin_cell(cell, alone=alone)
        try:
            return replace(begun, summary=work(cell))
        except SqapError as error:
            return replace(begun, failure=str(error))


def _receive(done: ray.ObjectRef, cell: Cell) -> Landed:
    try:
        landed: Landed = ray.get(done)
    except (WorkerCrashedError, OutOfMemoryError):
        return Landed(cell, None, f"its worker died {RETRIES + 1} times; if memory ran out, take fewer --workers")
    except RayTaskError as error:
        return Landed(cell, None, f"it ended with a defect, {type(error.cause).__name__}: {error.cause}")
    except RayError as error:
        return Landed(cell, None, f"Ray lost it: {' '.join(str(error).split())}")
    return landed


@contextmanager
def _join_ray(crew: Crew) -> Generator[None, None, None]:
    # Ray puts its own in place of what this process does when it is politely killed.
    polite = signal.getsignal(signal.SIGTERM)
    with ExitStack() as ends:
        # Ray tells on stdout what became of its workers.
        ends.enter_context(redirect_stdout(ends.enter_context(crew.log.open("a", encoding="utf-8"))))
        try:
            _join_cluster(crew.address, ends) if crew.address else _start_local(crew, ends)
        finally:
            signal.signal(signal.SIGTERM, polite)
        yield


def _join_cluster(address: str, ends: ExitStack) -> None:
    ends.callback(ray.shutdown)
    # On a machine with the same files, workers import the package from where this process has it.
    root = str(Path(sqap_vla_ros.__file__).parents[1])
    try:
        ray.init(address=address, runtime_env={"env_vars": {"PYTHONPATH": root}}, **_QUIET)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise ConfigError(f"--address {address} is no Ray cluster that can be joined: "
                          f"{' '.join(str(error).split())}; see that it runs, is of the same version, and that "
                          "RAY_AUTH_MODE and the token are its own") from error


def _start_local(crew: Crew, ends: ExitStack) -> None:
    # Nobody else shall hand work to these processes, and no token is to be left in the home folder.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    short = None if len(tempfile.gettempdir()) <= _LONGEST_FOLDER else "/tmp"
    folder = ends.enter_context(tempfile.TemporaryDirectory(prefix="sqap-", dir=short, ignore_cleanup_errors=True))
    ends.callback(ray.shutdown, wait_for_processes=True)
    ray.init(address="local", num_cpus=crew.workers * crew.threads, include_dashboard=False,
             object_store_memory=_STORE_BYTES, _temp_dir=folder, _node_ip_address="127.0.0.1", **_QUIET)


def _count_slots(crew: Crew) -> int:
    there = ray.cluster_resources()
    slots = int(there.get("CPU", 0)) // crew.threads
    if crew.gpu:
        slots = min(slots, int(there.get("GPU", 0)))
    if not slots:
        raise ConfigError(f"a cell takes {crew.threads} CPU threads{' and a GPU' if crew.gpu else ''}, and Ray has "
                          f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g} GPUs; set model.threads and "
                          "model.device to what is there")
    return slots
