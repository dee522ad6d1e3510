"""What the robot can be told to do on the tabletop, in words and as a goal."""

from __future__ import annotations

from dataclasses import dataclass

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.simulation.layout import COLORS as COLOR_VALUES

KINDS = ("reach", "pick", "place")
COLORS = tuple(COLOR_VALUES)
MAX_STEPS = 60
_PHRASES = {"reach": "reach the {} block", "pick": "pick up the {} block", "place": "put the {} block in the tray"}
VOCABULARY = tuple(sorted({word for phrase in _PHRASES.values() for word in phrase.replace("{}", "").split()}
                          | set(COLORS)))


@dataclass(frozen=True)
class Task:
    """One instruction.

    :param kind: 'reach', 'pick' or 'place'
    :param color: which block
    :raises ConfigError: for a kind or colour that does not exist
    """

    kind: str
    color: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"task '{self.kind}' does not exist; allowed are {', '.join(KINDS)}")
        if self.color not in COLORS:
            raise ConfigError(f"block colour '{self.color}' does not exist; allowed are {', '.join(COLORS)}")

    @property
    def instruction(self) -> str:
        """The task in words."""
        return _PHRASES[self.kind].format(self.color)
