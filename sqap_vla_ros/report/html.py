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

"""One HTML file of a page: everything is inside it, so it opens from a disk, without network.

What comes from data is escaped, and a policy inside the file lets no other script run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.report.page import Page, Plot, Scrubber, Section, Table, Tile

DIGITS = 6
_NUMBER = re.compile(r"[-+\u2212]?[0-9][0-9.,]*(e[-+]?[0-9]+)?([ \u00a0]?(%|[a-zA-Z\u00b5/^0-9]{1,6}))?")
_NOTHING = ("", "-", "\u2013")


def write_page(page: Page, path: Path) -> None:
    """Write a report whole or not at all.

    :param page: what it shows
    :param path: of the HTML file; its folder is there
    :raises ConfigError: when it cannot be written
    """
    content = render_page(page)
    partial = path.with_name(path.name + ".partial")
    try:
        # A name of a file need not be UTF-8.
        partial.write_bytes(content.encode("utf-8", "replace"))
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; take another folder") from error


def render_page(page: Page) -> str:
    """The file's text."""
    scripts = [get_plotlyjs().replace("\r\n", "\n"), _read_asset("report.js")]
    names = _name_sections(page.sections)
    data: dict[str, list[Any]] = {"figures": [], "scrubbers": []}
    sections = "".join(_render_section(section, name, data)
                       for section, name in zip(page.sections, names, strict=True))
    return string.Template(_read_asset("template.html")).substitute(
        policy="; ".join(("default-src 'none'", "style-src 'unsafe-inline'", "img-src data: blob:",
                          "script-src " + " ".join(map(_hash_script, scripts)), "base-uri 'none'",
                          "form-action 'none'")),
        title=escape(page.title), subtitle=escape(page.subtitle), css=_read_asset("report.css"),
        warnings=_render_warnings(page.warnings), tiles=_render_tiles(page.tiles),
        contents=_render_contents(page.sections, names), sections=sections, data=_encode_data(data),
        plotly=scripts[0], script=scripts[1])


def clean_values(value: Any) -> Any:
    """Plain JSON values: numbers of :data:`DIGITS` significant digits, None for what is not finite."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: clean_values(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [clean_values(one) for one in value]
    return value


def _read_asset(name: str) -> str:
    return (resources.files("sqap_vla_ros") / "assets" / "report" / name).read_text(encoding="utf-8")


def _hash_script(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _encode_data(data: Mapping[str, Any]) -> str:
    # Without '<' no text can end the element that holds this.
    return json.dumps(clean_values(data), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _name_sections(sections: Sequence[Section]) -> list[str]:
    return [f"section-{number}" for number in range(1, len(sections) + 1)]


def _render_warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return ('<aside class="warnings" aria-labelledby="warnings"><h2 id="warnings">Take care</h2>'
            f"<ul>{items}</ul></aside>")


def _render_tiles(tiles: Sequence[Tile]) -> str:
    if not tiles:
        return ""
    items = "".join(
        f'<div class="tile"><dt>{escape(tile.name)}</dt><dd class="value">{escape(tile.value)}</dd>'
        + (f'<dd class="note">{escape(tile.note)}</dd>' if tile.note else "") + "</div>" for tile in tiles)
    return f'<dl class="tiles">{items}</dl>'


def _render_contents(sections: Sequence[Section], names: Sequence[str]) -> str:
    if len(sections) < 2:
        return ""
    items = "".join(f'<li><a href="#{name}">{escape(section.title)}</a></li>'
                    for section, name in zip(sections, names, strict=True))
    return f'<nav class="contents" aria-label="Contents"><ul>{items}</ul></nav>'


def _render_section(section: Section, name: str, data: dict[str, list[Any]]) -> str:
    note = f'<p class="note">{escape(section.note)}</p>' if section.note else ""
    return (f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(section.title)}</h2>'
            f'{note}{"".join(_render_parts(section, data))}</section>')


def _render_parts(section: Section, data: dict[str, list[Any]]) -> Iterator[str]:
    parts = [part for part in section.parts if not isinstance(part, Scrubber) or part.frames]
    for tabular, group in groupby(parts, key=lambda part: isinstance(part, Table)):
        # What belongs together stands side by side where there is room: small tables, and pictures with plots.
        run = list(group)
        beside = isinstance(run[0], Scrubber) and len(run) > 1
        inside = "".join(_render_part(part, section.title, data) for part in run)
        yield f'<div class="{"tables" if tabular else "beside"}">{inside}</div>' if tabular or beside else inside


def _render_part(part: Table | Plot | Scrubber, title: str, data: dict[str, list[Any]]) -> str:
    if isinstance(part, Table):
        return _render_table(part, title)
    if isinstance(part, Plot):
        return _render_plot(part, data["figures"])
    return _render_scrubber(part, data["scrubbers"])


def _render_table(table: Table, title: str) -> str:
    numeric = [all(_is_number(row[place]) for row in table.rows) and place > 0
               for place in range(len(table.columns))]
    kinds = [' class="number"' if is_number else "" for is_number in numeric]
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>'
                   for name, kind in zip(table.columns, kinds, strict=True))
    body = "".join("<tr>" + "".join(
        f'<th scope="row">{escape(cell)}</th>' if place == 0 else f"<td{kinds[place]}>{escape(cell)}</td>"
        for place, cell in enumerate(row)) + "</tr>" for row in table.rows)
    caption = f"<h3>{escape(table.caption)}</h3>" if table.caption else ""
    return (f'<div>{caption}<div class="table" role="region" aria-label="{escape(table.caption or title)}">'
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></div>")


def _is_number(cell: str) -> bool:
    return cell in _NOTHING or _NUMBER.fullmatch(cell) is not None


def _render_plot(plot: Plot, figures: list[Any]) -> str:
    figures.append(plot.figure)
    number = len(figures) - 1
    return (f'<figure><div class="legend" role="group" aria-label="Lines shown" data-legend="{number}"></div>'
            f'<div class="plot" data-figure="{number}" role="img" aria-label="{escape(plot.description)}"></div>'
            f"<figcaption>{escape(plot.description)}</figcaption></figure>")


def _render_scrubber(scrubber: Scrubber, scrubbers: list[Any]) -> str:
    frames = [{"jpeg": base64.b64encode(frame.jpeg).decode(), "caption": frame.caption, "at": frame.at_s}
              for frame in scrubber.frames]
    scrubbers.append(frames)
    first, last = frames[0], len(frames) - 1
    return (f'<figure class="scrubber" data-scrubber="{len(scrubbers) - 1}">'
            f'<img src="data:image/jpeg;base64,{first["jpeg"]}" alt="{escape(scrubber.frames[0].caption)}">'
            '<div class="controls"><button type="button" class="play">Play</button>'
            f'<input type="range" min="0" max="{last}" value="0" step="1" aria-label="Picture">'
            f'<output>{scrubber.frames[0].at_s:.2f}\u00a0s</output></div>'
            f"<figcaption>{escape(scrubber.frames[0].caption)}</figcaption></figure>")
