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

"""Episodes on all cores: processes that know nothing of each other, one policy and one thread in each."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection, wait

from sqap_vla_ros.errors import SqapError
from sqap_vla_ros.evaluation.closed_loop import Player
from sqap_vla_ros.evaluation.plan import Job, Setup
from sqap_vla_ros.evaluation.results import EpisodeRecord

_PATIENCE_S = 5.0


def play_jobs(jobs: Sequence[Job], setup: Setup, workers: int) -> Generator[EpisodeRecord, None, None]:
    """Play every job once, in processes that end with this generator, or with this process however that ends.

    Call from the main thread, which alone hears Ctrl-C.

    :param workers: processes at most
    :return: results as they come; in no order
    :raises SqapError: what a worker raised, or that it died
    """
    waiting = deque(jobs)
    crew: dict[Connection, _Worker] = {}
    try:
        for _ in range(min(workers, len(waiting))):
            worker = _Worker(setup)
            crew[worker.connection] = worker
            worker.send(waiting.popleft())
        busy = set(crew)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                record = crew[connection].receive()
                if waiting:
                    crew[connection].send(waiting.popleft())
                else:
                    busy.remove(connection)
                yield record
    finally:
        for worker in crew.values():
            worker.stop()


class _Worker:
    def __init__(self, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, setup), daemon=True)
        # A terminal sends Ctrl-C to the workers too; they inherit that it is blocked, and are ended by this process.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # Held by the worker alone, so that its end is noticed.
        theirs.close()

    def send(self, job: Job) -> None:
        try:
            self.connection.send(job)
        except BrokenPipeError as error:
            raise self._explain_end() from error

    def receive(self) -> EpisodeRecord:
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._explain_end() from error
        if isinstance(answer, SqapError):
            raise answer
        assert isinstance(answer, EpisodeRecord)
        return answer

    def stop(self) -> None:
        self._process.terminate()
        self._process.join(_PATIENCE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.connection.close()

    def _explain_end(self) -> SqapError:
        self._process.join()
        code = self._process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return SqapError(f"a worker {how}; what it said stands above. What was finished is kept: run the same again to "
                         "go on, with fewer --workers if memory ran out")


def _serve(connection: Connection, setup: Setup) -> None:
    # The software renderer would otherwise start as many threads as there are cores in each worker.
    os.environ["LP_NUM_THREADS"] = "1"
    player = Player(setup)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            answer: EpisodeRecord | SqapError = player.play(job)
        except SqapError as error:
            answer = error
        try:
            connection.send(answer)
        except BrokenPipeError:
            return
