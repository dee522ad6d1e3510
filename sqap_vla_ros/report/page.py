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

"""What a report shows, as plain values: tiles, tables, plots, pictures; :mod:`.html` makes one file of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Tile:
    """One figure that is seen at once.

    :param name: what it is
    :param value: with its unit
    :param note: a few words below; may be empty
    """

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text under a line of headings; the first column names the row.

    :param columns: headings
    :param rows: as many cells each as there are headings
    :param caption: what the table is about, where its section has several; may be empty
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Plot:
    """A plot.

    :param figure: ``data`` and ``layout`` as plotly has them, without colours of page or text, which the page's theme
        gives
    :param description: what it shows, in a sentence, for those who do not see it
    """

    figure: Mapping[str, Any]
    description: str


@dataclass(frozen=True)
class Frame:
    """One picture of a scrubber.

    :param jpeg: the picture
    :param caption: one line
    :param at_s: time since the beginning, s
    """

    jpeg: bytes
    caption: str
    at_s: float


@dataclass(frozen=True)
class Scrubber:
    """Pictures with a slider; keys left and right move it.

    :param frames: in their order
    """

    frames: Sequence[Frame]


@dataclass(frozen=True)
class Section:
    """One part of the page.

    :param title: its heading
    :param note: what to look at, in a sentence or two; may be empty
    :param parts: what it shows, one below the other
    """

    title: str
    note: str
    parts: Sequence[Table | Plot | Scrubber] = field(default_factory=tuple)


@dataclass(frozen=True)
class Page:
    """A whole report.

    :param title: of the page
    :param subtitle: what was run on what, in one line
    :param tiles: the figures that decide
    :param sections: the rest, in order
    :param warnings: sentences that stand at the top, as of a bag that is damaged
    """

    title: str
    subtitle: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    warnings: Sequence[str] = ()
