"""Which tasks to try in which scenes: kinds in turn, and colours as evenly as the scenes allow."""

from __future__ import annotations

from collections import Counter

from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.parameters import build_tabletop
from sqap_vla_ros.simulation.tasks import COLORS, KINDS, Task


def choose_tasks(count: int, first_seed: int, layout: Layout | None = None) -> tuple[tuple[int, Task], ...]:
    """``count`` scenes from ``first_seed`` on, each with a task on a block that is there.

    :return: (seed, task) pairs; the same arguments give the same pairs
    """
    tabletop = build_tabletop(layout or Layout())
    used: Counter[str] = Counter()
    chosen = []
    for index in range(count):
        colors = tabletop.reset(first_seed + index).colors
        color = min(colors, key=lambda name: (used[name], COLORS.index(name)))
        used[color] += 1
        chosen.append((first_seed + index, Task(KINDS[index % len(KINDS)], color)))
    return tuple(chosen)
