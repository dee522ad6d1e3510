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

"""The demo's course: every method plays the same scenes, and what is finished is kept whatever happens next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from sqap_vla_ros.data import Episode, EpisodeResult
from sqap_vla_ros.evaluation.methods import Method
from sqap_vla_ros.evaluation.video import compress_picture


class Player(Protocol):
    """A policy that is ready to play."""

    description: dict[str, str]

    def play(self, episode: Episode, on_picture: Callable[[np.ndarray], None] | None) -> EpisodeResult:
        """Play one episode to its end; ``on_picture`` receives each (H, W, 3) uint8 overlay."""


class Listener(Protocol):
    """Whoever wants to know how it goes."""

    def on_method(self, method: Method, episodes: int) -> None:
        """A policy is being started."""

    def on_episode(self, episode: Episode) -> None:
        """An instruction is given."""

    def on_result(self, result: EpisodeResult) -> None:
        """An episode ended."""


@dataclass
class MethodRun:
    """One method's part of the demo so far.

    :param method: what ran
    :param description: what the node says of its model: family, engine, bytes
    :param results: finished episodes, in the order of the demo's
    :param pictures: JPEGs of the overlay, one list per finished episode
    """

    method: Method
    description: dict[str, str] = field(default_factory=dict)
    results: list[EpisodeResult] = field(default_factory=list)
    pictures: list[list[bytes]] = field(default_factory=list)


def run_demo(runs: list[MethodRun], methods: Sequence[Method], episodes: Sequence[Episode],
             open_player: Callable[[Method], AbstractContextManager[Player]], listener: Listener, *,
             record: bool) -> None:
    """Play all episodes with each method.

    :param runs: filled as episodes finish, so that an interrupted demo keeps them
    :param open_player: starts a policy and ends it
    :param record: whether overlays are kept
    """
    for method in methods:
        listener.on_method(method, len(episodes))
        run = MethodRun(method)
        runs.append(run)
        with open_player(method) as player:
            run.description = dict(player.description)
            for episode in episodes:
                listener.on_episode(episode)
                pictures: list[bytes] = []
                keep = (lambda picture, into=pictures: into.append(compress_picture(picture))) if record else None
                result = player.play(episode, keep)
                run.results.append(result)
                run.pictures.append(pictures)
                listener.on_result(result)
