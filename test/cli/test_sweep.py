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

"""The sweep as a person runs it: results as they land, failures told, resumed, and refused in sentences."""

import json
import sys

import pytest
import yaml

from sqap_vla_ros.bags.sweep_results import Landed
from sqap_vla_ros.cli import main as cli
from sqap_vla_ros.cli import sweep_run
from sqap_vla_ros.errors import ConfigError, InputError
from sqap_vla_ros.evaluation.summary import write_json
from sqap_vla_ros.models.registry import load_checkpoint


@pytest.fixture
def write(untrained, tmp_path):
    """Writer of a sweep.yaml with two bags."""
    (tmp_path / "bags").mkdir()
    for name in ("good", "bad"):
        (tmp_path / f"bags/{name}.mcap").write_bytes(b"")

    def write(**values):
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({"checkpoint": str(untrained), "methods": ["float", "w4a4-rtn"],
                                        "ratios": [0.4], "bags": ["bags/*.mcap"], **values}))
        return str(path)

    return write


def answer(cell):
    """What a replay would say; a bag without bytes is a broken one."""
    if not cell.bag.stat().st_size:
        raise InputError(f"{cell.bag} holds no messages; record it again")
    label = cell.method.name
    comparison = {"policy": label, "looks": 5, "mse": 0.001, "mae": 0.02, "cosine": {"mean": 0.95, "min": 0.5},
                  "gripper_agreement": 0.8, "dimensions": {}}
    summary = {"kind": "replay", "bag": {"looks": 5}, "compared": [
                   *([{**comparison, "with": cell.against}] if cell.against else []),
                   {**comparison, "with": "recorded", "mse": 0.5}],
               "tokens": {label: {"kept_mean": 38.0, "total": 64, "gripper_kept_mean": 1.0}},
               "timing": {label: {"latency_ms": {"total": {"p50": 1.5, "p95": 2.5}}, "deadline_misses": 0}}}
    write_json(cell.folder / "summary.json", summary)
    return summary


def read_rows(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_broken_bag_fails_alone_and_is_run_again_once_it_is_whole(write, tmp_path, capsys, monkeypatch):
    from ray import cloudpickle

    monkeypatch.setattr(sweep_run, "replay_cell", answer)
    # Workers cannot import a test by its name.
    monkeypatch.syspath_prepend(tmp_path)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    (tmp_path / "bags/good.mcap").write_bytes(b"x")
    out = tmp_path / "out"
    words = ["sweep", write(), "--out", str(out), "--workers", "1"]
    small = "w4a4-rtn+sqap@0.4"
    try:
        assert cli.main(words) == 1
        told = capsys.readouterr()
        line = json.loads(told.out)
        assert line == {"cells": 4, "finished": 2, "complete": False, "summary": str(out / "summary.json"),
                        "table": str(out / "table.md"),
                        "failed": ["float__bad.mcap__seed0", f"{small}__bad.mcap__seed0"]}
        assert "carried out w4a4-rtn" in told.err and "4/4" in told.err and "Traceback" not in told.err
        assert "failed: " in told.err and "holds no messages; record it again" in told.err
        assert sorted(row["state"] for row in read_rows(out)) == ["failed", "failed", "finished", "finished"]
        assert load_checkpoint(out / "compressed/w4a4-rtn").artifact.recipe_name == "w4a4-rtn"
        table = (out / "table.md").read_text()
        assert f"| {small} | good.mcap | 0 | 5 | float | 1.00e-03 | 2.00e-02 | 0.9500 / 0.5000 | 80.0% |" in table
        assert "| float | good.mcap | 0 | 5 | recorded | 5.00e-01 |" in table and "one cell at a time" in table

        (tmp_path / "bags/bad.mcap").write_bytes(b"x")
        assert cli.main([*words, "--resume"]) == 0
        told = capsys.readouterr()
        assert "2 are finished already" in told.err and "carried out" not in told.err
        assert json.loads(told.out)["complete"] is True
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    rows = read_rows(out)
    assert len(rows) == len({row["cell"] for row in rows}) == 4 and {row["begun"] for row in rows} == {1}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["complete"] and [row["cell"] for row in summary["cells"]] == [
        "float__bad.mcap__seed0", f"{small}__bad.mcap__seed0", "float__good.mcap__seed0", f"{small}__good.mcap__seed0"]

    # Nothing is left to run, and nothing is started for it.
    assert cli.main([*words, "--resume"]) == 0 and cli.main(words) == 1
    assert "holds results of this sweep; say --resume" in capsys.readouterr().err
    assert read_rows(out) == summary["cells"]


@pytest.mark.parametrize(("end", "code", "sentence"), [
    (KeyboardInterrupt(), 130, "ended by Ctrl-C after 1 of 4 cells; say --resume to go on"),
    (ConfigError("Ray has 0 GPUs"), 1, "sqap sweep: Ray has 0 GPUs")])
def test_early_end_keeps_what_was_finished(write, tmp_path, capsys, monkeypatch, end, code, sentence):
    (tmp_path / "bags/bad.mcap").write_bytes(b"x")

    def run_cells(cells, work, crew, on_slots):
        on_slots(crew.workers)
        cells[0].folder.mkdir(parents=True)
        yield Landed(cells[0], answer(cells[0]), begun=1)
        raise end

    monkeypatch.setattr(sweep_run, "run_cells", run_cells)
    out = tmp_path / "out"
    assert cli.main(["sweep", write(), "--out", str(out)]) == code
    told = capsys.readouterr()
    assert sentence in told.err and "Traceback" not in told.err
    assert json.loads(told.out)["finished"] == len(read_rows(out)) == 1
    run = json.loads((out / "summary.json").read_text())["run"]
    assert (run["interrupted"], run["failure"]) == ((True, None) if code == 130 else (False, str(end)))


@pytest.mark.parametrize(("words", "sentence"), [
    ([], "the following arguments are required: SWEEP.YAML"), (["a.yaml", "--workers", "0"], "argument --workers"),
    (["a.yaml", "--address", "auto", "--workers", "2"], "a cluster decides itself how many cells run at a time")])
def test_wrong_use_exits_with_2_and_a_sentence(words, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["sweep", *words])
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and captured.out == ""


def test_what_cannot_be_run_is_refused_before_anything_is_written(write, tmp_path, capsys):
    out = tmp_path / "out"
    for values, sentence in (({"ratio": [0.4]}, "unknown key 'ratio'"),
                             ({"methods": ["w4a4"]}, "must see observations"),
                             ({"methods": ["stored"]}, "write 'float' instead of 'stored'"),
                             ({"checkpoint": "nowhere"}, "nowhere")):
        assert cli.main(["sweep", write(**values), "--out", str(out)]) == 1
        told = capsys.readouterr()
        assert sentence in told.err and told.out == "" and not out.exists()


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        cli.main(["sweep", "--help"])
    text = capsys.readouterr().out
    for part in ("examples:", "--resume", "--workers 1", "is not comparable", "record-demo", "methods: [float, w4a4]",
                 "results.jsonl", "RAY_AUTH_MODE", "Exit codes: 0 all cells are finished"):
        assert part in text


def test_a_real_bag_is_replayed_in_each_cell(sqap, simulated_bag, untrained, tmp_path):
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({
        "checkpoint": str(untrained), "methods": ["float", "w4a4-rtn"], "ratios": [0, 0.5],
        "bags": [str(simulated_bag)], "knobs": {"prune.layer": 0}}))
    process = sqap("sweep", tmp_path / "sweep.yaml", "--out", tmp_path / "out", "--workers", 1)
    _, errors = process.communicate(timeout=110)
    assert process.returncode == 0, errors
    rows = {row["cell"]: row for row in read_rows(tmp_path / "out")}
    kept = {name.partition("__")[0]: row["kept_mean"] for name, row in rows.items()}
    assert kept == {"float": 64.0, "w4a4-rtn": 64.0, "w4a4-rtn+sqap@0.5": 32.0}
    assert rows["w4a4-rtn__expert__seed0"]["against"]["mae"] > 0.0
