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

"""`sqap report` as a person runs it: a page of one run or of several, and a sentence where that cannot be."""

import json
from dataclasses import asdict

import pytest

from sqap_vla_ros.bags.looks import Answer, LookRecord
from sqap_vla_ros.cli import main as cli
from sqap_vla_ros.evaluation.results import EpisodeRecord, summarize_methods

SETTINGS = {"episodes": 10, "first_seed": 5, "suite": "base", "scene": [], "language": "scene", "blind": "",
            "trials_sha256": "c0ffee", "checkpoint": "demo"}


@pytest.fixture
def evaluation(tmp_path):
    """Writer of a finished evaluation: ``evaluation(name, successes, kind=True)``, the folder."""

    def write(name, successes, *, kind=True):
        records = [EpisodeRecord("float", 5 + index, "reach", "reach", "red", "reach the red block", index < successes,
                                 10, 2.0, 0.5, "red", "red") for index in range(10)]
        folder = tmp_path / name
        folder.mkdir()
        summary = {**({"kind": "evaluation"} if kind else {}), **summarize_methods(records, ["float"]),
                   "complete": True, "settings": {**SETTINGS, "methods": ["float"]}}
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "episodes.jsonl").write_text("".join(json.dumps(asdict(record)) + "\n" for record in records))
        return folder

    return write


@pytest.fixture
def replay(tmp_path):
    """Writer of a finished replay: ``replay(name, label, error)``, the folder."""

    def write(name, label, error):
        folder = tmp_path / name
        (folder / "overlays").mkdir(parents=True)
        looks = [LookRecord(index, index * 10**8, index * 10**8, "reach", "exact", recorded=[0.0] * 7, answers={
            label: Answer([[error] * 7], {"llm": 5.0}, 64, 64, {"unpruned": 64})}) for index in range(80)]
        (folder / "looks.jsonl").write_text("".join(f"{look.to_line()}\n" for look in looks))
        row = {"policy": label, "with": "recorded", "looks": 80, "mse": error**2, "mae": error, "cosine": None,
               "gripper_agreement": 1.0, "dimensions": {}}
        (folder / "summary.json").write_text(json.dumps({
            "kind": "replay", "bag": {"name": "bag", "topics": {}, "duration_s": 8.0, "looks": 80, "complaints": []},
            "policies": {label: {"recipe": label}}, "compared": [row], "motion": {label: {"jerk_m_s3": 1.0,
                                                                                         "path_m": 1.0}},
            "tokens": {label: {"kept_mean": 64.0, "total": 64}}, "settings": {}, "timing": {label: {
                "latency_ms": {"total": {"p50": 5.0, "p95": 5.0, "p99": 5.0, "max": 5.0}}, "deadline_ms": 100.0,
                "deadline_misses": 0}}}))
        return folder

    return write


def test_page_of_one_run_is_written_beside_it(sqap, evaluation):
    folder = evaluation("run", 7, kind=False)
    process = sqap("report", folder)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert json.loads(output) == {"report": str(folder / "report.html")}
    page = (folder / "report.html").read_text()
    assert "Closed loop: base suite" in page and "70.0%" in page and "success of float: 70.0%" in errors


def test_page_of_a_replay_is_its_own(replay, capsys):
    folder = replay("run", "float", 0.001)
    assert cli.main(["report", str(folder)]) == 0
    assert "Replay of bag" in (folder / "report.html").read_text()
    assert json.loads(capsys.readouterr().out)["report"] == str(folder / "report.html")


def test_evaluations_are_compared(evaluation, tmp_path, capsys):
    out = tmp_path / "pages/both.html"
    assert cli.main(["report", str(evaluation("a", 9)), str(evaluation("b", 2)), "--out", str(out)]) == 0
    told = capsys.readouterr()
    line = json.loads(told.out)
    assert line["report"] == str(out) and line["episodes"][0]["change"]["difference"] == -0.7
    assert "float of b against float of a: -70.0 points" in told.err and "2 runs compared" in out.read_text()


def test_replays_are_compared_where_the_page_goes_by_itself(replay, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", str(replay("a", "float", 0.001)), str(replay("b", "w4a4", 0.002))]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (tmp_path / line["report"]).name == "report.html" and (tmp_path / "out/report.html").exists()
    first = line["looks"][0]
    assert [first[name] for name in ("yardstick", "first", "other")] == ["recorded", "float", "w4a4"]
    assert first["result"]["looks"] == 80
    assert first["result"]["interval"] == pytest.approx([3e-6, 3e-6])


def test_runs_of_other_trials_are_told(evaluation, tmp_path, capsys):
    first, other = evaluation("a", 9), evaluation("b", 2)
    path = other / "summary.json"
    path.write_text(path.read_text().replace('"base"', '"hard"'))
    assert cli.main(["report", str(first), str(other), "--out", str(tmp_path / "page.html")]) == 0
    told = capsys.readouterr()
    assert "take care: b is not paired with a: it played other trials (suite hard against base)" in told.err
    assert json.loads(told.out)["episodes"] == [] and "it played other trials" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(("content", "sentence"), [
    (None, "holds no summary.json; give folders of `sqap replay` or `sqap evaluate`, which write one when they end"),
    ('{"kind": "repl', "summary.json cannot be read: "), ("[]", "holds no results but list"),
    ('{"kind": "soak"}', 'is of the kind "soak", not known here; give folders of `sqap replay`'),
    ('{"kind": [1]}', "is of the kind [1], not known here"),
    ('{"worked": true, "legs": []}', "does not say what wrote it; give folders"),
    ('{"worked": true, "scenes": [], "settings": {}}', "is of `sqap demo`, which has its own files"),
    ('{"kind": "replay", "bag": {}}', "lacks 'policies', or has it in another form than `sqap replay` writes"),
    ('{"methods": {}, "compared": {}, "complete": true, "settings": {"suite": "base", "scene": [], "blind": "", '
     '"language": "scene", "checkpoint": "demo"}}', "summary.json lack episodes, first_seed; run `sqap evaluate`"),
    ('{"methods": [], "complete": true}', "lacks 'methods', or has it in another form than `sqap evaluate` writes")])
def test_folder_that_cannot_be_used_is_a_sentence(tmp_path, capsys, content, sentence):
    folder = tmp_path / "run"
    folder.mkdir()
    if content is not None:
        (folder / "summary.json").write_text(content)
    assert cli.main(["report", str(folder)]) == 1
    told = capsys.readouterr()
    assert told.err.startswith("sqap report: ") and sentence in told.err and str(folder) in told.err
    assert told.out == "" and told.err.count("\n") == 1 and not (folder / "report.html").exists()


def test_folder_of_folders_and_no_folder_are_told_the_way_out(evaluation, tmp_path, capsys):
    evaluation("run", 3)
    assert cli.main(["report", str(tmp_path)]) == 1
    assert f"give the folders in it that do, {tmp_path}/*/" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path / "nowhere")]) == 1
    assert "nowhere is no folder; give folders of" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "sentence"), [
    ("folder", "is a folder; name a file in it"), ("file/page.html", "cannot be written")])
def test_page_that_cannot_be_written_is_a_sentence(evaluation, tmp_path, capsys, name, sentence):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    assert cli.main(["report", str(evaluation("run", 3)), "--out", str(tmp_path / name)]) == 1
    assert sentence in capsys.readouterr().err


def test_wrong_use_exits_with_2_and_a_sentence(evaluation, tmp_path, capsys):
    folder = evaluation("run", 3)
    for words, sentence in (([], "the following arguments are required: DIR"),
                            ([folder, tmp_path / "." / "run"], "is given twice; a run differs from itself in nothing")):
        with pytest.raises(SystemExit) as end:
            cli.main(["report", *map(str, words)])
        assert end.value.code == 2 and sentence in capsys.readouterr().err
