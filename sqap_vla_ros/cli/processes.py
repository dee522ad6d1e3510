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

"""Node processes of a verb: started with a parameter file and a log, watched, and ended politely."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sqap_vla_ros.errors import SqapError

# Domains above 101 collide with Linux's ephemeral ports.
DOMAINS = range(1, 102)
_PARTICIPANTS = 16
_TAIL_LINES = 12
_PATIENCE_S = 10.0


def choose_domain() -> int:
    """A ROS domain on which nobody on this machine listens.

    :raises SqapError: when all are taken
    """
    domains = list(DOMAINS)
    random.SystemRandom().shuffle(domains)
    for domain in domains:
        if _is_free(domain):
            return domain
    raise SqapError(f"somebody listens on each of the ROS domains {DOMAINS[0]} to {DOMAINS[-1]}; end some nodes")


def _is_free(domain: int) -> bool:
    # Ports of the first participants of a domain: DDS-RTPS 2.5, 9.6.2.3, two for each.
    first = 7400 + 250 * domain + 10
    for port in range(first, first + 2 * _PARTICIPANTS):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                return False
    return True


def isolate_ros(log_folder: Path) -> None:
    """Put this process and its children on a ROS domain of their own on this machine, with their logs in one folder."""
    os.environ["ROS_DOMAIN_ID"] = str(choose_domain())
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ["ROS_LOG_DIR"] = str(log_folder.resolve() / "ros")


class NodeProcess:
    """One node in a process of its own.

    :param name: of the node; parameters and log are named after it
    :param module: what ``python -m`` runs
    :param parameters: by dotted name
    :param folder: where parameter file and log go
    :param label: tells runs of the same node apart
    """

    def __init__(self, name: str, module: str, parameters: Mapping[str, Any], folder: Path, label: str = "") -> None:
        self._name = name
        stem = f"{name}-{label}" if label else name
        self._log = folder / f"{stem}.log"
        file = folder / f"{stem}.yaml"
        file.write_text(yaml.safe_dump({name: {"ros__parameters": dict(parameters)}}, sort_keys=False),
                        encoding="utf-8")
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C reaches this process only, which then ends the nodes in order.
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", "sqap_vla_ros.cli.guarded", str(os.getpid()), module, "--ros-args",
                 "--params-file", str(file)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def check(self) -> None:
        """Raise when the process has ended.

        :raises SqapError: with the end of its log
        """
        code = self._process.poll()
        if code is not None:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise SqapError(f"{self._name} {how}. {self.tell_log()}")

    def freeze(self, stop: bool) -> None:
        """Stop the process where it stands; with false let it go on."""
        self._process.send_signal(signal.SIGSTOP if stop else signal.SIGCONT)

    def memory_bytes(self) -> int:
        """Memory that is resident now.

        :raises SqapError: when the process has ended
        """
        return int(self._read_proc("statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self) -> float:
        """CPU time that all its threads have used.

        :raises SqapError: when the process has ended
        """
        # Behind the name, which may hold blanks: fields 14 and 15 of proc(5).
        fields = self._read_proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _read_proc(self, name: str) -> str:
        self.check()
        return Path(f"/proc/{self._process.pid}/{name}").read_text(encoding="utf-8")

    def tell_log(self) -> str:
        """Where the log is, and its last lines."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        return f"The end of {self._log}:\n" + "\n".join(f"    {line}" for line in lines or ["(empty)"])

    def stop(self) -> None:
        """Ask to end, and insist if that is not heard."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is not None:
                return
            self._process.send_signal(number)
            try:
                self._process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                continue
