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

"""Which instructions a scene allows, and how training writes them down: as four small numbers, and as tokens."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.models.demo import ACT, DemoVla
from sqap_vla_ros.simulation.scene import Scene
from sqap_vla_ros.simulation.tasks import COLORS, KINDS, SIDES, TWO_BLOCK_KINDS, Task

CODE_SHAPE = (len(KINDS), len(COLORS), 1 + len(SIDES), 1 + len(COLORS))


def draw_task(scene: Scene, kinds: Mapping[str, float], rng: np.random.Generator) -> Task:
    """A task that ``scene`` allows.

    :param kinds: weight of each kind
    """
    kind = str(rng.choice(list(kinds), p=np.array(list(kinds.values())) / sum(kinds.values())))
    block = scene.blocks[int(rng.integers(len(scene.blocks)))]
    side = str(rng.choice(SIDES)) if block.color in scene.twins else ""
    others = [color for color in scene.singles if color != block.color]
    if kind in TWO_BLOCK_KINDS and not others:
        kind = "place"
    return Task(kind, block.color, side, str(rng.choice(others)) if kind in TWO_BLOCK_KINDS else "")


def encode_task(task: Task) -> tuple[int, int, int, int]:
    """Indices of kind, color, side and other color; 0 is 'none' in the last two."""
    return (KINDS.index(task.kind), COLORS.index(task.color), ("", *SIDES).index(task.side),
            ("", *COLORS).index(task.other))


class InstructionTokens:
    """Tokens of every instruction there is, padded to one length.

    :param model: whose words they are
    """

    def __init__(self, model: DemoVla) -> None:
        entries = {}
        for code in itertools.product(*map(range, CODE_SHAPE)):
            try:
                task = Task(KINDS[code[0]], COLORS[code[1]], ("", *SIDES)[code[2]], ("", *COLORS)[code[3]])
            except ConfigError:
                continue
            words = model.tokenize(task.instruction)
            at = [words.index(model.tokenize(color)[0]) for color in task.colors]
            entries[code] = ([*words, ACT], at if len(at) == 2 else at * 2)
        self.longest = max(len(words) for words, _ in entries.values())
        self._words = torch.full((*CODE_SHAPE, self.longest), ACT)
        self._act = torch.zeros(CODE_SHAPE, dtype=torch.long)
        self._colors = torch.zeros((*CODE_SHAPE, 2), dtype=torch.long)
        for code, (words, at) in entries.items():
            self._words[code][:len(words)] = torch.tensor(words)
            self._act[code], self._colors[code] = len(words) - 1, torch.tensor(at)

    def look_up(self, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What stands for some instructions; one that names one color gives its place twice.

        :param codes: (..., 4) int64, on the CPU
        :return: tokens (..., L), index of the ACT token (...), and of the color words (..., 2)
        """
        code = codes.unbind(-1)
        return self._words[code], self._act[code], self._colors[code]
