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

"""The folder of one training run: which recipe it follows, what is finished, and the state to go on from.

One process works in it at a time, and one recipe: frames and weights of different ones would mix without a word.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from sqap_vla_ros.errors import ConfigError


class WorkFolder:
    """See the module's docstring.

    :param path: created when missing
    :param recipe: everything that decides what comes out, as plain values
    :raises ConfigError: when the folder cannot be used, is in use, or holds another recipe's work
    """

    def __init__(self, path: Path, recipe: dict[str, Any]) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / "lock").open("w")
        except OSError as error:
            raise ConfigError(f"--work {path} cannot be written: {error.strerror}; take another folder") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another training works in {path}; wait for it or take another --work") from error
        self._hold_to(json.loads(json.dumps(recipe)))

    @property
    def log_path(self) -> Path:
        """``log.jsonl``: a line for every saved step, validation and stage."""
        return self.path / "log.jsonl"

    @property
    def policy(self) -> Path:
        """The policy so far, as a checkpoint."""
        return self.path / "policy"

    def frames(self, scenes: str) -> Path:
        """Where the frames of some scenes are."""
        return self.path / "frames" / scenes

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to the log."""
        with self.log_path.open("a") as file:
            file.write(json.dumps({"time": round(time.time(), 1), **record}) + "\n")

    def is_finished(self, stage: str) -> bool:
        """Whether a stage is over, its validation included."""
        return (self.path / f"{stage}.done").exists()

    def finish(self, stage: str) -> None:
        """Say that a stage is over."""
        (self.path / f"{stage}.done").touch()

    def save(self, stage: str, state: dict[str, Any]) -> None:
        """Keep the state of a stage, whole or not at all."""
        path = self.path / f"{stage}.pt"
        unfinished = path.with_suffix(".part")
        torch.save(state, unfinished)
        os.replace(unfinished, path)

    def load(self, stage: str, device: torch.device) -> dict[str, Any] | None:
        """The state of a stage, or None before its first save."""
        path = self.path / f"{stage}.pt"
        return torch.load(path, weights_only=True, map_location=device) if path.exists() else None

    def _hold_to(self, recipe: dict[str, Any]) -> None:
        path = self.path / "run.json"
        try:
            earlier = json.loads(path.read_text()) if path.exists() else recipe
        except ValueError as error:
            raise ConfigError(f"{path}, which says what {self.path} is for, cannot be read: {error}; remove the folder "
                              "or take another --work") from error
        for name in recipe:
            if earlier.get(name) != recipe[name]:
                raise ConfigError(f"{self.path} holds the work of another recipe, or of another --scale: its {name} "
                                  "differs; remove the folder or take another --work")
        path.write_text(json.dumps(recipe, indent=1))
