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

"""The page in a real browser, on a phone and on a desk, by day and by night."""

import base64
import copy
import time
from pathlib import Path

import pytest

from sqap_vla_ros.report.figures import Series, plot_bars, plot_curves
from sqap_vla_ros.report.html import write_page
from sqap_vla_ros.report.page import Frame, Page, Scrubber, Section, Table, Tile
from sqap_vla_ros.report.replay_page import PICTURE_PX, build_replay_page

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser: pip install selenium")

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")
DRAWN_S = 20.0
HOSTILE = '<script>window.broken = 1</script><img src=x onerror="window.broken = 1">'


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One session for all tests."""
    if not (CHROMIUM.exists() and DRIVER.exists()):
        pytest.skip(f"{CHROMIUM} or {DRIVER} is not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


def set_screen(browser, width=1440, scheme="light"):
    """As on a screen of this width, px, with a reader who prefers this scheme."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
        {"name": "prefers-color-scheme", "value": scheme}]})


def wait_for(browser, script, *values):
    """What a script returns as soon as that is true."""
    end_s = time.monotonic() + DRAWN_S
    while not (found := browser.execute_script(f"return {script}", *values)):
        assert time.monotonic() < end_s, f"never came true: {script}; {browser.get_log('browser')}"
        time.sleep(0.02)
    return found


def open_page(browser, path):
    """Open a file and wait for its plots."""
    browser.get(path.as_uri())
    wait_for(browser, "document.documentElement.dataset.drawn === 'true'")


def fits(browser):
    """Whether the page need not be scrolled sideways."""
    return browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def press(browser, key):
    """Press a key wherever the focus is."""
    code = {"Tab": 9, "ArrowLeft": 37, "ArrowRight": 39}[key]
    for kind in ("keyDown", "keyUp"):
        browser.execute_cdp_cmd("Input.dispatchKeyEvent", {
            "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code})


@pytest.fixture
def desk(browser, replay_report):
    """The report on a wide screen by day; opened once for all tests that leave it as they found it."""
    set_screen(browser)
    if browser.current_url != replay_report.as_uri():
        open_page(browser, replay_report)
    yield browser
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_whole(browser, replay_report, tmp_path, width, scheme):
    set_screen(browser, width, scheme)
    open_page(browser, replay_report)
    assert browser.get_log("browser") == []
    # Of actions, deviation, tokens by rule, gripper tokens, latency.
    traces = browser.execute_script("""return [...document.querySelectorAll(".js-plotly-plot")].map((plot) =>
        [...plot.querySelectorAll("svg .trace")].filter((trace) => trace.querySelector("path[d]")).length)""")
    assert traces == [21, 18, 3, 2, 10]
    assert fits(browser)
    assert browser.execute_script("return performance.getEntriesByType('resource')"
                                  ".every((entry) => /^(data|blob):/.test(entry.name))")
    ground, plots = browser.execute_script("""return [getComputedStyle(document.body).backgroundColor,
        [...document.querySelectorAll(".js-plotly-plot .main-svg:first-child")].map((svg) => svg.style.background)]""")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 21, 26)"}[scheme]
    assert set(plots) == {ground}
    shot = tmp_path / f"{width}-{scheme}.png"
    shot.write_bytes(base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", {})["data"]))
    assert shot.stat().st_size > 20_000


def test_scrubber_moves(desk):
    def read():
        return desk.execute_script("""const box = document.querySelector(".scrubber");
            return [box.querySelector("img").src, box.querySelector("figcaption").textContent,
                    box.querySelector("output").textContent.replace("\\u00a0", " ")]""")

    first = read()
    desk.execute_script("""const slider = document.querySelector(".scrubber input");
        slider.value = 10; slider.dispatchEvent(new Event("input", {bubbles: true}))""")
    # The moment is marked in every plot over time.
    wait_for(desk, "[...document.querySelectorAll('.js-plotly-plot')].slice(0, 4)"
                   ".every((plot) => plot.layout.shapes?.[0].x0 === 4)")
    tenth = read()
    assert tenth[0] != first[0] and tenth[1].startswith("look 40 ") and tenth[2] == "4.00 s"
    # With the focus nowhere, and on the slider, which would otherwise move by itself as well.
    press(desk, "ArrowRight")
    eleventh = read()
    assert eleventh[0] != tenth[0] and eleventh[1].startswith("look 44 ")
    desk.execute_script("document.querySelector('.scrubber input').focus()")
    press(desk, "ArrowRight")
    assert read()[1].startswith("look 48 ")
    press(desk, "ArrowLeft")
    assert read()[1] == eleventh[1]
    assert wait_for(desk, "document.querySelector('.scrubber img').naturalWidth") == PICTURE_PX
    # A click into a plot goes to the nearest picture.
    desk.execute_script("document.querySelector('.js-plotly-plot').emit('plotly_click', {points: [{x: 12.1}]})")
    assert read()[1].startswith("look 120 ")


def test_scrubber_plays(desk):
    play = desk.find_element("css selector", ".play")
    desk.execute_script("arguments[0].click()", play)
    assert play.text == "Pause"
    place = desk.execute_script("return Number(document.querySelector('.scrubber input').value)")
    wait_for(desk, f"Number(document.querySelector('.scrubber input').value) > {place}")
    desk.execute_script("arguments[0].click()", play)
    assert play.text == "Play"


def test_zoom_in_time_is_shared(desk):
    ranges = "[...document.querySelectorAll('.js-plotly-plot')].slice(0, 4).map((plot) => plot.layout.xaxis.range)"
    shown = "[...document.querySelectorAll('.tools button:first-child')].map((button) => !button.hidden)"
    assert desk.execute_script(f"return {shown}") == [False] * 5
    desk.execute_script("Plotly.relayout(document.querySelector('.js-plotly-plot'), {'xaxis.range': [2, 5]})")
    wait_for(desk, f"{ranges}.every((range) => range[0] === 2 && range[1] === 5)")
    wait_for(desk, f"{shown}.join() === 'true,true,true,true,false'")
    # It outlives a redraw.
    set_screen(desk, scheme="dark")
    wait_for(desk, "document.querySelector('.js-plotly-plot').layout.paper_bgcolor === '#12151a'")
    assert desk.execute_script(f"return {ranges}") == [[2, 5]] * 4
    desk.execute_script("document.querySelectorAll('.tools button:first-child')[1].click()")
    wait_for(desk, f"{ranges}.every((range) => range[0] < 1 && range[1] > 15)")
    wait_for(desk, f"!{shown}.includes(true)")


def test_legend_switches_lines(desk):
    button = desk.find_elements("css selector", ".legend button")[1]
    lines = "document.querySelector('.js-plotly-plot').querySelectorAll('.trace').length"
    assert button.text == "w4a4+sqap@0.4" and button.get_attribute("aria-pressed") == "true"
    desk.execute_script("arguments[0].click()", button)
    assert wait_for(desk, f"{lines} === 14") and button.get_attribute("aria-pressed") == "false"
    desk.execute_script("arguments[0].click()", button)
    assert wait_for(desk, f"{lines} === 21") and button.get_attribute("aria-pressed") == "true"


def test_plot_can_be_saved(desk):
    desk.set_script_timeout(DRAWN_S)
    image = desk.execute_async_script("""Plotly.toImage(document.querySelector('.js-plotly-plot'), {format: 'png'})
        .then(arguments[0], (error) => arguments[0](String(error)))""")
    assert base64.b64decode(image.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")


def test_plots_follow_scheme_and_width(desk):
    color = "document.querySelector('.js-plotly-plot').data[1].line.color"
    wait_for(desk, f"{color} === '#0b62c1'")
    set_screen(desk, 390, "dark")
    wait_for(desk, f"{color} === '#7ab8ff'")
    wait_for(desk, "[...document.querySelectorAll('.js-plotly-plot')].every((plot) => plot.layout.width <= 350)")
    assert fits(desk)
    # A table that is wider than the phone scrolls in its box, by keyboard too.
    assert desk.execute_script("""return [...document.querySelectorAll(".table")].every((box) =>
        (box.scrollWidth > box.clientWidth) === (box.tabIndex === 0))""")
    assert desk.execute_script("return document.querySelector('.table').tabIndex") == 0


def test_focus_is_seen(desk):
    desk.execute_script("document.activeElement.blur(); document.querySelector('.skip').focus()")
    for wanted in ("skip", "", "", "", "", "", "", "", "play"):
        name, outline = desk.execute_script("""const style = getComputedStyle(document.activeElement);
            return [document.activeElement.className, style.outlineStyle + " " + style.outlineWidth]""")
        assert (name, outline) == (wanted, "solid 3px")
        press(desk, "Tab")


def test_text_of_the_data_does_not_run(browser, summary, looks, replay_folder, tmp_path):
    set_screen(browser, 390)
    summary["bag"]["topics"] = {HOSTILE: {"type": HOSTILE, "count": 1}}
    summary["bag"]["complaints"] = [HOSTILE]
    for part in ("policies", "tokens", "timing", "motion"):
        summary[part][HOSTILE] = copy.deepcopy(summary[part]["float"])
    for look in looks:
        look["instruction"] = HOSTILE
        look["answers"][HOSTILE] = look["answers"]["float"]
    write_page(build_replay_page(summary, looks, replay_folder), tmp_path / "report.html")
    open_page(browser, tmp_path / "report.html")
    browser.execute_script("document.querySelector('.scrubber input').focus()")
    press(browser, "ArrowRight")
    assert HOSTILE in browser.find_element("css selector", ".scrubber figcaption").text
    assert HOSTILE in browser.find_element("css selector", ".warnings").text
    assert browser.find_elements("css selector", ".legend button")[3].text == HOSTILE
    assert browser.execute_script("return window.broken") is None
    assert browser.get_log("browser") == [] and fits(browser)
    # Nor would a script that had come in.
    browser.execute_script("""const script = document.createElement("script");
        script.textContent = "window.broken = 1"; document.body.append(script)""")
    assert browser.execute_script("return window.broken") is None
    assert "Content Security Policy" in browser.get_log("browser")[0]["message"]


def test_bars_curves_and_a_lone_picture(browser, replay_folder, tmp_path):
    set_screen(browser, 390)
    jpeg = (replay_folder / "overlays" / "000000.jpg").read_bytes()
    methods = [Series(name, [0.5, 0.75], tone, intervals=[[0.4, 0.6], [0.6, 0.9]])
               for name, tone in (("float", 1), ("w4a4", 2))]
    write_page(Page("Little", "", [Tile("one", "1")], [Section("one", "", [
        plot_bars(["lift the block", "stack"], methods, "Bars.", y_title="success", share=True),
        plot_curves({"float": [64, 256], "w4a4": [64, 256]}, methods, "Curves.", x_title="kept", y_title="success"),
        Scrubber([Frame(jpeg, "alone", 0.0)]), Table(("a",), [("x" * 200,)])])]), tmp_path / "report.html")
    open_page(browser, tmp_path / "report.html")
    drawn = browser.execute_script("""return [...document.querySelectorAll(".js-plotly-plot")].map((plot) =>
        [".bars .point", ".scatterlayer .point", ".yerror"].map((name) => plot.querySelectorAll(name).length))""")
    assert drawn == [[4, 0, 4], [0, 4, 4]]
    browser.execute_script("document.querySelector('.play').click()")
    assert browser.find_element("css selector", ".play").text == "Play"
    assert browser.get_log("browser") == [] and fits(browser)
