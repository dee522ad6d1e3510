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

"""Measured activations as files: every number as JSON, the tables as Markdown, the layers as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sqap_vla_ros.evaluation.activations import FIGURES, SITES, ModelReport, Unevenness, summarize_site
from sqap_vla_ros.evaluation.summary import describe_machine, describe_versions, write_json

JSON_FILE, PICTURE_FILE, TABLE_FILE = "activations.json", "activations.png", "activations.md"
HEADINGS = {
    "kurtosis": "kurtosis", "peak_ratio": "max / median", "token_peak_ratio": "max / median in a token",
    "top_channels_share": "energy in top 1 % of channels", "input_sqnr_db": "int4 SQNR, dB",
    "output_sqnr_db": "int4 SQNR behind linears, dB",
}
MEANINGS = {"trained": "as trained", "rotated": "rotated"}
_COLORS = ("#5b7fa6", "#e08a3c", "#6aa56f", "#a06ab4")
_DRAWN = {"kurtosis": "kurtosis of all values", "peak_ratio": "largest / median magnitude",
          "output_sqnr_db": "int4 SQNR behind linears, dB"}


def write_activations(folder: Path, reports: Sequence[ModelReport], gaussian: Unevenness,
                      settings: dict[str, Any]) -> dict[str, str]:
    """Write all three files.

    :param gaussian: the same figures of Gaussian noise
    :param settings: ``command``, and flags worth keeping
    :return: path of each, by kind
    """
    write_json(folder / JSON_FILE, {
        "models": {report.name: _as_values(report) for report in reports}, "gaussian": asdict(gaussian),
        "settings": settings, "machine": describe_machine(), "versions": describe_versions()})
    (folder / TABLE_FILE).write_text(format_markdown(reports, gaussian, settings["command"]), encoding="utf-8")
    draw_activations(folder / PICTURE_FILE, reports, gaussian)
    return {"json": str(folder / JSON_FILE), "markdown": str(folder / TABLE_FILE),
            "picture": str(folder / PICTURE_FILE)}


def _as_values(report: ModelReport) -> dict[str, Any]:
    return {"inputs": report.inputs, "tokens": report.tokens,
            "sites": {site: summarize_site(report.of_site(site)) for site in SITES},
            "layers": [asdict(entry) for entry in report.sites]}


def format_rows(reports: Sequence[ModelReport], gaussian: Unevenness, over_layers: str) -> list[list[str]]:
    """Rows of a table: model, site, and each figure as trained and, behind an arrow, rotated.

    :param over_layers: 'median' or 'worst'
    """
    rows = []
    for report in reports:
        for site in SITES:
            summary = summarize_site(report.of_site(site))
            cells = [" → ".join(_say(figure, summary[figure][state][over_layers]) for state in MEANINGS)
                     for figure in FIGURES]
            rows.append([report.name, site, *cells])
    return [*rows, ["Gaussian noise", "", *(_say(figure, getattr(gaussian, figure)) for figure in FIGURES)]]


def format_markdown(reports: Sequence[ModelReport], gaussian: Unevenness, command: str) -> str:
    """Both tables with what was measured."""
    shown = "; ".join(f"{report.name}: {report.inputs}, {report.tokens} tokens" for report in reports)
    lines = [f"Measured by `{command}` with torch {describe_versions()['torch']}. {shown}. As trained → rotated."]
    for over_layers, title in (("median", "Median over the layers"), ("worst", "Worst layer")):
        lines += ["", f"{title}:", "", f"| model | site | {' | '.join(HEADINGS[figure] for figure in FIGURES)} |",
                  "|---|---|" + "---:|" * len(FIGURES)]
        lines += [f"| {' | '.join(row)} |" for row in format_rows(reports, gaussian, over_layers)]
    return "\n".join(lines) + "\n"


def draw_activations(path: Path, reports: Sequence[ModelReport], gaussian: Unevenness) -> None:
    """Draw a PNG: a column per site, a row per figure, depth from left to right."""
    figure = Figure(figsize=(13, 8.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(_DRAWN), len(SITES), sharex=True, sharey="row")
    for row, (name, label) in zip(panels, _DRAWN.items(), strict=True):
        for axes, site in zip(row, SITES, strict=True):
            for index, report in enumerate(reports):
                _draw_layers(axes, report, site, name, _COLORS[index % len(_COLORS)])
            axes.axhline(getattr(gaussian, name), color="#555555", linewidth=1, linestyle=":", label="Gaussian noise")
            axes.set_yscale("linear" if name.endswith("_db") else "log")
            axes.grid(axis="y", alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(label)
    for axes, site in zip(panels[0], SITES, strict=True):
        axes.set_title(f"input of {site}")
    for axes in panels[-1]:
        axes.set_xticks([0.0, 0.5, 1.0], ["first", "middle", "last"])
        axes.set_xlabel("layer")
    figure.suptitle("Activations that linears read, and what rounding them to 4 bits leaves")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=120)


def _draw_layers(axes: Axes, report: ModelReport, site: str, figure: str, color: str) -> None:
    entries = report.of_site(site)
    depths = [entry.layer / max(len(entries) - 1, 1) for entry in entries]
    for state, line in (("trained", "-o"), ("rotated", "--x")):
        values = [getattr(getattr(entry, state), figure) for entry in entries]
        axes.plot(depths, values, line, color=color, markersize=4, linewidth=1.5,
                  label=f"{report.name}, {MEANINGS[state]}")


def _say(figure: str, value: float) -> str:
    if figure == "top_channels_share":
        return f"{value:.1%}"
    if figure.endswith("_db"):
        return f"{value:.1f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
