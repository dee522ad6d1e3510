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

"""What the robot can be told to do on the tabletop, in words and as a goal."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.simulation.layout import COLORS as COLOR_VALUES

COLORS = tuple(COLOR_VALUES)
SIDES = ("left", "right")
BASE_KINDS = ("reach", "pick", "place")
_PHRASES = {
    "reach": "reach the {block} block", "pick": "pick up the {block} block",
    "place": "put the {block} block in the tray", "stack": "put the {block} block on the {other} block",
    "pick-place": "pick up the {block} block, then put it in the tray",
    "place-reach": "put the {block} block in the tray, then reach the {other} block",
}
KINDS = tuple(_PHRASES)
TWO_BLOCK_KINDS = ("stack", "place-reach")
_MAX_STEPS = {"place-reach": 90}
VOCABULARY = tuple(sorted({word for phrase in _PHRASES.values() for word in re.findall("[a-z]+", phrase)}
                          - {"other"} | set(COLORS) | set(SIDES)))


@dataclass(frozen=True)
class Task:
    """One instruction.

    :param kind: one of ``KINDS``
    :param color: which block
    :param side: which of two blocks of that colour, as the picture shows them: 'left' or 'right'; '' for an only one
    :param other: colour of the second block of 'stack' (underneath) and 'place-reach' (reached at the end); else ''
    :raises ConfigError: for a kind, colour or side that does not exist, or a second block too many or missing
    """

    kind: str
    color: str
    side: str = ""
    other: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"task '{self.kind}' does not exist; allowed are {', '.join(KINDS)}")
        for color in self.colors:
            if color not in COLORS:
                raise ConfigError(f"block colour '{color}' does not exist; allowed are {', '.join(COLORS)}")
        if self.side not in ("", *SIDES):
            raise ConfigError(f"side '{self.side}' does not exist; allowed are {', '.join(SIDES)}, or empty where one "
                              "block has the colour")
        if (self.other != "") != (self.kind in TWO_BLOCK_KINDS) or self.other == self.color:
            raise ConfigError(f"task '{self.kind}' of the {self.color} block came with '{self.other}' as the other "
                              f"colour; {' and '.join(TWO_BLOCK_KINDS)} take one other than the first, the rest none")

    @property
    def colors(self) -> tuple[str, ...]:
        """The colours it names, in the order named."""
        return (self.color, self.other) if self.other else (self.color,)

    @property
    def instruction(self) -> str:
        """The task in words."""
        block = f"{self.side} {self.color}" if self.side else self.color
        return _PHRASES[self.kind].format(block=block, other=self.other)

    @property
    def max_steps(self) -> int:
        """Control steps after which it counts as failed."""
        return _MAX_STEPS.get(self.kind, 60)
