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

"""What a page becomes: one file that opens anywhere, says what the data say and runs nothing of theirs."""

import json
import re
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise

import pytest

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.report.figures import (
    BINS,
    MAX_POINTS,
    Series,
    plot_bars,
    plot_curves,
    plot_histograms,
    plot_over_time,
)
from sqap_vla_ros.report.html import clean_values, render_page, write_page
from sqap_vla_ros.report.numbers import DASH, format_number, format_share
from sqap_vla_ros.report.page import Frame, Page, Plot, Scrubber, Section, Table, Tile

SCRIPT = "<script>window.broken = 1</script>"


class Reader(HTMLParser):
    """Elements with their attributes, texts, and the content of scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.scripts = [], [], []
        self.inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        else:
            self.texts.append(data)

    def find(self, tag, **wanted):
        return [attributes for name, attributes in self.elements if name == tag
                and all(attributes.get(key) == value for key, value in wanted.items())]

    def read_data(self):
        return json.loads(self.scripts[0], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def make_page(text="plain", number=1.0):
    """A page with one of everything, and this text wherever text can be."""
    plot = plot_over_time([0.0, 1.0], {text: [Series(text, [number, 2.0], 1)]}, text)
    return Page(text, text, [Tile(text, text, text)], [Section(text, text, [
        Scrubber([Frame(b"\xff\xd8", text, 0.5)]), plot,
        Table((text, "count"), [(text, "1,604"), (text, DASH)], text)])], [text])


def test_one_file_refers_to_nothing_outside():
    reader = Reader(render_page(make_page()))
    references = [value for _, attributes in reader.elements for key, value in attributes.items()
                  if key in ("src", "href", "srcset", "action", "data", "poster")]
    assert references and all(value.startswith(("#", "data:")) for value in references)
    assert not reader.find("link", rel="stylesheet")
    policy, = reader.find("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in policy["content"] and "unsafe-inline' 'sha" not in policy["content"]


def test_the_library_is_inside_once():
    text = render_page(make_page())
    assert text.count("* plotly.js v") == 1
    assert len(text) < 6_000_000


def test_text_of_the_data_is_text():
    """A topic may be called anything."""
    reader = Reader(render_page(make_page(f'"{SCRIPT}\'&amp;')))
    # The data, the library, ours.
    assert len(reader.find("script")) == len(reader.scripts) == 3
    assert "<" not in reader.scripts[0]
    # Title twice, subtitle, warning, 3 of the tile, heading, note, 4 of the table, captions of picture and plot.
    assert "".join(reader.texts).count(SCRIPT) == 15
    figure, = reader.read_data()["figures"]
    assert figure["data"][0]["meta"]["name"] == f'"{SCRIPT}\'&amp;'
    # Plotly takes tags for markup.
    assert "<" not in figure["data"][0]["name"] and "<" not in figure["layout"]["meta"]["cells"][0]


def test_what_is_not_finite_is_valid_json():
    reader = Reader(render_page(make_page(number=float("nan"))))
    assert reader.read_data()["figures"][0]["data"][0]["y"] == [None, 2.0]
    assert clean_values({"a": [1 / 3, float("inf"), 7, "x", None, True]}) == {"a": [0.333333, None, 7, "x", None, True]}


def test_page_can_be_read_without_seeing_it():
    reader = Reader(render_page(make_page()))
    levels = [int(tag[1]) for tag, _ in reader.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(attributes.get("alt") for attributes in reader.find("img"))
    assert reader.find("html", lang="en") and reader.find("input", type="range")[0]["aria-label"]
    assert reader.find("div", role="img")[0]["aria-label"] == "plain"
    identities = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(identities) == len(set(identities))
    pointed = {attributes["aria-labelledby"] for _, attributes in reader.elements if "aria-labelledby" in attributes}
    assert pointed <= set(identities)


def test_only_columns_of_numbers_stand_to_the_right():
    table = Table(("name", "a", "b", "c"), [("x", "1.5e-06", "98.1\u00a0%", "cpu"), ("y", DASH, "1,604", "1")])
    text = render_page(Page("t", "", [], [Section("s", "", [table])]))
    assert re.findall(r'<th scope="col"( class="number")?>(\w+)', text) == [
        ("", "name"), (' class="number"', "a"), (' class="number"', "b"), ("", "c")]


def test_empty_page_is_a_page():
    reader = Reader(render_page(Page("nothing", "", [], [Section("empty", "why", [Scrubber([])])])))
    assert reader.read_data() == {"figures": [], "scrubbers": []}
    assert not reader.find("nav") and not reader.find("dl") and not reader.find("aside") and not reader.find("figure")


def test_file_that_cannot_be_written_is_named(tmp_path):
    write_page(make_page(), tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(ConfigError, match=r"nowhere/report\.html cannot be written"):
        write_page(make_page(), tmp_path / "nowhere" / "report.html")


def read_colors(scheme):
    """Colours of the style sheet by name, of one scheme; the dark one changes what the light one says."""
    text = (resources.files("sqap_vla_ros") / "assets" / "report" / "report.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    assert len(blocks) == 2
    return dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", "".join(blocks[:1 if scheme == "light" else 2])))


def luminance(color):
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(color[place:place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055)**2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, two):
    """Ratio of two colours as WCAG 2 defines it."""
    bright, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colors_can_be_told_from_their_ground(scheme):
    colors = read_colors(scheme)
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    for text in ("--text", "--muted", "--accent"):
        assert contrast(colors[text], colors["--page"]) >= 4.5
        assert contrast(colors[text], colors["--raised"]) >= 4.5
    assert contrast(colors["--warning"], colors["--warning-page"]) >= 4.5
    tones = [colors[f"--tone-{number}"] for number in range(8)]
    assert all(contrast(tone, colors["--page"]) >= 4.5 for tone in tones) and len(set(tones)) == 8


def test_long_run_is_thinned_and_says_so():
    count = 2 * MAX_POINTS + 1
    plot = plot_over_time(range(count), {"x": [Series("one", range(count), 1)]}, "Lines.")
    assert plot.figure["data"][0]["x"] == list(range(0, count, 3)) == plot.figure["data"][0]["y"]
    assert plot.description == "Lines. Every 3rd look is drawn."


def test_lone_value_is_a_point():
    plot = plot_over_time([0, 1, 2], {"x": [Series("one", [None, 4, None], 1), Series("two", [1, 2, 3], 2)]}, "")
    assert [trace["mode"] for trace in plot.figure["data"]] == ["markers", "lines"]


def test_histogram_counts_all_and_gathers_a_long_tail():
    samples = [float(number % 10) for number in range(1000)] + [500.0, None, float("nan")]
    trace, = plot_histograms({"llm": [Series("one", samples, 1)]}, "", unit="ms").figure["data"]
    assert len(trace["x"]) == BINS and sum(trace["y"]) == pytest.approx(1)
    assert trace["y"][-1] == pytest.approx(1 / 1001) and trace["hovertext"][-1].endswith("ms and more")
    assert max(trace["x"]) < 25


@pytest.mark.parametrize("samples", [[], [3.0], [0.0, 0.0], [None]])
def test_histogram_of_next_to_nothing(samples):
    trace, = plot_histograms({"llm": [Series("one", samples, 1)]}, "", unit="ms").figure["data"]
    assert sum(trace["y"]) == (1 if len(samples) and samples[0] is not None else 0) and trace["width"] > 0


def test_bars_and_curves_have_their_intervals():
    series = Series("a<b", [0.5, None, 0.25], 1, intervals=[[0.25, 1.0], None, None])
    bar, = plot_bars(["<x>", "y", "z"], [series], "", y_title="success", share=True).figure["data"]
    assert bar["x"] == ["&lt;x&gt;", "y", "z"] and bar["y"] == [0.5, None, 0.25]
    assert bar["error_y"]["array"] == [0.5, 0, 0] and bar["error_y"]["arrayminus"] == [0.25, 0, 0]
    curve, = plot_curves({"a<b": [64, 128, 256]}, [series], "", x_title="kept tokens", y_title="y").figure["data"]
    assert curve["x"] == [64, 128, 256] and curve["error_y"]["array"] == [0.5, 0, 0]
    assert plot_bars(["x"], [Series("a", [1.0], 1)], "", y_title="").figure["data"][0]["error_y"] == {"visible": False}


def test_figures_are_plotly_s_own():
    """Plotly's validator knows each name and value."""
    graph_objects = pytest.importorskip("plotly.graph_objects")
    series = Series("one", [0.5, 0.7], 1, intervals=[[0.4, 0.6], [0.6, 0.8]])
    plots = [plot_over_time([0, 1], {"x": [series], "y": [series]}, "", stacked=stacked) for stacked in (False, True)]
    plots += [plot_histograms({"x": [series], "y": [series]}, "", unit="ms"),
              plot_bars(["a", "b"], [series], "", y_title="y", share=True),
              plot_curves({"one": [1, 2]}, [series], "", x_title="x", y_title="y")]
    assert all(isinstance(plot, Plot) and graph_objects.Figure(plot.figure).data for plot in plots)


@pytest.mark.parametrize(("value", "unit", "digits", "text"), [
    (None, "ms", 3, DASH), (float("nan"), "", 3, DASH), (160, "", 3, "160"), (1604, "", 3, "1,604"),
    (31.8421, "ms", 3, "31.8\u00a0ms"), (0.99127, "", 4, "0.9913"), (3.911e-6, "", 3, "3.91e-06"),
    (12345.6, "", 3, "12,346"), (999.9, "", 3, "1,000"), (0.0, "", 3, "0"), (-0.5, "", 3, "-0.5"),
])
def test_numbers(value, unit, digits, text):
    assert format_number(value, unit, digits=digits) == text


@pytest.mark.parametrize(("value", "text"), [
    (None, DASH), (1.0, "100\u00a0%"), (0.0, "0\u00a0%"), (0.98125, "98.1\u00a0%"),
    (0.9999, "> 99.9\u00a0%")])
def test_shares(value, text):
    assert format_share(value) == text
