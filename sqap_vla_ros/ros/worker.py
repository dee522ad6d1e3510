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

"""One thread that works on the newest item only; whatever is offered meanwhile replaces what still waits.

It holds the package's only lock, and knows nothing of ROS.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one item.

    :param item: what was offered
    :param result: what the work gave; None when it failed
    :param error: what went wrong; None when nothing did
    """

    item: Item
    result: Result | None
    error: Exception | None


class LatestWorker(Generic[Item, Result]):
    """A thread for work that takes long.

    :param work: called in the thread, one item at a time
    :param notify: called in the thread after each outcome; must be quick and thread-safe
    :param name: name of the thread
    """

    def __init__(self, work: Callable[[Item], Result], notify: Callable[[], None], name: str) -> None:
        self._work, self._notify = work, notify
        self._changed = threading.Condition()
        self._waiting: list[Item] = []
        self._outcomes: list[Outcome[Item, Result]] = []
        self._working, self._stopping = False, False
        # A daemon, so that work that hangs cannot keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether an item waits, is being worked on, or has an outcome that nobody has collected yet."""
        with self._changed:
            return self._working or bool(self._waiting or self._outcomes)

    def offer(self, item: Item) -> bool:
        """Hand over an item.

        :return: whether it replaced one that nobody had begun
        """
        with self._changed:
            replaced = bool(self._waiting)
            self._waiting = [item]
            self._changed.notify()
            return replaced

    def collect(self) -> list[Outcome[Item, Result]]:
        """Take the outcomes that nobody has taken yet, oldest first."""
        with self._changed:
            outcomes, self._outcomes = self._outcomes, []
            return outcomes

    def stop(self, timeout_s: float) -> bool:
        """End the thread after the item at hand; what waits is dropped.

        :return: whether it ended in time
        """
        with self._changed:
            self._stopping = True
            self._waiting = []
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if self._stopping:
                    return
                item = self._waiting.pop()
                self._working = True
            outcome = self._attempt(item)
            with self._changed:
                self._outcomes.append(outcome)
                self._working = False
                if self._stopping:
                    return
            self._notify()

    def _attempt(self, item: Item) -> Outcome[Item, Result]:
        try:
            return Outcome(item, self._work(item), None)
        except Exception as error:  # noqa: BLE001
            # The thread's border: handed over whole, the other side logs it and holds the robot.
            return Outcome(item, None, error)
