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

"""The evaluation as a person runs it: interrupted, resumed, and refused in sentences."""

import json
import os
import signal
import time
from pathlib import Path

import cv2
import pytest

from sqap_vla_ros.cli import evaluate_run
from sqap_vla_ros.cli import main as cli
from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.evaluation.compressed import find_source
from sqap_vla_ros.models.registry import load_checkpoint
from sqap_vla_ros.policy.compression import compress_checkpoint
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.suite import SEED_RANGES, SUITES, VARIATIONS, choose_trials


def finish(process, timeout_s=110):
    output, errors = process.communicate(timeout=timeout_s)
    return process.returncode, output.splitlines(), errors


def wait_for_episode(process, out):
    """Until one episode is on disk; the worker processes by then."""
    path = out / "episodes.jsonl"
    while not (path.exists() and path.read_text().count("\n")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_packaged_policy_is_measured(sqap, tmp_path):
    code, output, errors = finish(sqap("evaluate", "--episodes", 3, "--workers", 1, "--seeds", "validation",
                                       "--out", tmp_path))
    assert code == 0, errors
    line = json.loads(output[-1])
    row = line["methods"]["float"]
    assert (line["complete"], len(output), row["episodes"]) == (True, 1, 3)
    assert row["successes"] >= 2, errors
    assert row["success"] == pytest.approx(row["successes"] / 3, abs=1e-4)
    assert list(row["tasks"]) == ["reach", "pick", "place"]
    assert all(part["episodes"] == 1 and part["interval"][0] < part["interval"][1] for part in row["tasks"].values())
    records = [json.loads(text) for text in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert [record["seed"] for record in records] == list(SEED_RANGES["validation"][:3])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["methods"]["float"]["successes"] == sum(record["success"] for record in records)
    assert (summary["kind"], summary["settings"]["first_seed"]) == ("evaluation", SEED_RANGES["validation"].start)
    page = (tmp_path / "report.html").read_text()
    assert "Closed loop: base suite" in page and f"{row['success']:.1%}" in page
    assert cv2.imread(str(tmp_path / "chart.png")).shape[0] > 400
    assert not (tmp_path / "kept_tokens.png").exists() and not (tmp_path / "compressed").exists()
    assert all(0.05 < record["path_m"] < 2.0 for record in records)
    assert "3/3  float:" in errors and "95 % interval" in errors and "Traceback" not in errors


def test_hard_groups_are_resumed_where_they_were_cut(sqap, untrained, tmp_path):
    small = "w4a4-rtn+sqap@0.4"
    words = ("evaluate", "--suite", "hard", "--scene", "moved-camera", "--methods", f"float,{small}", "--episodes", 2,
             "--execute-steps", 4, "--checkpoint", untrained, "--fidelity", 2, "--out", tmp_path, "--workers")
    code, output, errors = finish(sqap(*words, 2))
    assert code == 0, errors
    whole = json.loads(output[-1])
    assert list(whole["methods"][small]["tasks"]) == ["small", "crowded"]
    assert whole["compared"][small]["episodes"] == whole["compared"][small]["jerk"]["episodes"] == 2
    assert "w4a4-rtn: linears rounded" in errors and "2/2 methods compared with float on 2 pictures" in errors
    rows = json.loads((tmp_path / "summary.json").read_text())["methods"]
    assert [rows[name]["fidelity"]["observations"] for name in rows] == [2, 2]
    assert rows["float"]["fidelity"]["action_mse"] < 1e-12 < 1e-6 < rows[small]["fidelity"]["action_mse"] < 0.1
    assert rows["float"]["fidelity"]["action_cosine"] > 0.999999 > rows[small]["fidelity"]["action_cosine"] > 0.9
    table = (tmp_path / "table.md").read_text()
    assert table.startswith("# hard suite, moved-camera: 2 episodes per method") and f"| {small} | 0/2  0.0% |" in table
    assert cv2.imread(str(tmp_path / "kept_tokens.png")).shape[0] > 400
    assert load_checkpoint(tmp_path / "compressed/w4a4-rtn").artifact.recipe_name == "w4a4-rtn"
    path = tmp_path / "episodes.jsonl"
    text = path.read_text()
    assert len(text.splitlines()) == 4
    path.write_text(text[:len(text) // 2])
    kept = path.read_text().rpartition("\n")[0].splitlines()
    code, output, errors = finish(sqap(*words, 1))
    assert code == 0, errors
    assert f"{len(kept)} are finished already" in errors
    # Nothing is compressed or measured twice.
    assert "linears rounded" not in errors and "compared with float" not in errors
    assert json.loads((tmp_path / "summary.json").read_text())["methods"] == rows
    lines = path.read_text().splitlines()
    # What was there stayed, and what was played again came out the same.
    assert lines[:len(kept)] == kept and sorted(lines) == sorted(text.splitlines())
    assert json.loads(output[-1]) == whole


def test_ctrl_c_ends_the_workers_and_keeps_what_was_finished(sqap, untrained, tmp_path, capsys):
    words = ("evaluate", "--episodes", 1000, "--workers", 2, "--checkpoint", untrained, "--out", tmp_path)
    process = sqap(*words)
    workers = wait_for_episode(process, tmp_path)
    assert len(workers) == 2
    process.send_signal(signal.SIGINT)
    code, output, errors = finish(process)
    assert code == 130, errors
    assert "run the same again to go on" in errors and "Traceback" not in errors
    assert not any(map(is_running, workers))
    row = json.loads(output[-1])["methods"]["float"]
    assert 1 <= row["episodes"] < 1000 and json.loads(output[-1])["complete"] is False
    assert json.loads((tmp_path / "summary.json").read_text())["run"]["interrupted"] is True
    before = (tmp_path / "episodes.jsonl").read_text()
    assert cli.main([str(word) for word in (*words, "--blind", "target")]) == 1
    assert 'holds episodes with blind "", not "target"; start anew with --fresh' in capsys.readouterr().err
    assert (tmp_path / "episodes.jsonl").read_text() == before


def test_death_of_a_worker_is_told_and_the_others_end(sqap, untrained, tmp_path):
    process = sqap("evaluate", "--episodes", 1000, "--workers", 2, "--checkpoint", untrained, "--out", tmp_path)
    workers = wait_for_episode(process, tmp_path)
    os.kill(workers[0], signal.SIGKILL)
    code, output, errors = finish(process)
    assert code == 1
    assert "sqap evaluate: a worker was killed by SIGKILL" in errors and "Traceback" not in errors
    assert not any(map(is_running, workers))
    assert json.loads(output[-1])["methods"]["float"]["episodes"] >= 1


@pytest.mark.parametrize(("words", "sentence"), [
    (["--seeds", "5:9", "--episodes", "10"], "5:9 holds 4 scenes for 10 episodes; take a larger range"),
    (["--seeds", "train"], "'train' is no range of scenes; take test, validation, or A:B"),
    (["--seeds", "9:5"], "'9:5' is no range of scenes"), (["--seeds", "-1:5"], "argument --seeds"),
    (["--scene", "rain"], "'rain' is no variation of scenes; allowed are moved-camera, dim-light"),
    (["--scene", "dim-light,dim-light"], "names a variation twice"), (["--suite", "soft"], "invalid choice: 'soft'"),
    (["--blind", "robot"], "invalid choice: 'robot'"), (["--language", "french"], "invalid choice: 'french'"),
    (["--methods", "w3a3"], "argument --methods"), (["--episodes", "0"], "0 is not allowed; take a whole number"),
    (["--workers", "0"], "argument --workers"), (["--fidelity", "-1"], "argument --fidelity"),
    (["--execute-steps", "many"], "argument --execute-steps"),
    (["--set", "prune.depth=1"], "'prune.depth=1' sets no knob; write NAME=VALUE, with a name of prune.layer"),
    (["--set", "prune.layer"], "sets no knob"), (["--set", "prune.rule=fastv"], "sets no knob"),
    (["--set", "prune.layer=[1"], "is no value of prune.layer")])
def test_wrong_use_exits_with_2_and_a_sentence(words, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", *words])
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and captured.out == ""


def test_knob_that_cannot_be_so_is_refused_before_anything_is_written(untrained, tmp_path, capsys):
    words = ["evaluate", "--checkpoint", str(untrained), "--out", str(tmp_path / "out"), "--set", "prune.layer=many"]
    assert cli.main(words) == 1
    assert "prune.layer must be int, got str 'many'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_recipe_without_observations_is_refused_before_anything_is_written(untrained, tmp_path, capsys):
    words = ["evaluate", "--checkpoint", str(untrained), "--out", str(tmp_path / "out"), "--methods"]
    assert cli.main([*words, "float,w4a4+sqap@0.4"]) == 1
    told = capsys.readouterr()
    assert "the recipe 'w4a4' (rounding 'gptq') must see observations" in told.err and told.out == ""
    assert "give --calibration a folder with observations.jsonl" in told.err
    assert not (tmp_path / "out").exists()


def test_other_scenes_under_the_name_of_a_suite_are_other_settings(untrained):
    args = cli.build_parser("evaluate").parse_args(["evaluate", "--checkpoint", str(untrained), "--suite", "hard"])
    source = find_source(args.checkpoint, args.methods)
    first, again, other = (evaluate_run.describe_settings(args, source, choose_trials("hard", 6, 7, layout=layout))
                           for layout in (Layout(), Layout(), Layout(camera_fovy_deg=31.0)))
    assert first == again
    assert {name for name, value in first.items() if other[name] != value} == {"trials_sha256"}


def test_fresh_run_that_ends_early_leaves_nothing_of_the_one_before(untrained, tmp_path, capsys, monkeypatch):
    compress_checkpoint(untrained, tmp_path / "compressed/w4a4-rtn", "w4a4-rtn")
    (tmp_path / "fidelity.json").write_text("{}")

    def compress(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_run, "compress_missing", compress)
    words = ["evaluate", "--checkpoint", str(untrained), "--out", str(tmp_path), "--methods", "w4a4-rtn,float"]
    assert cli.main(words) == 130 and (tmp_path / "compressed/w4a4-rtn").exists()
    assert cli.main([*words, "--fresh"]) == 130 and "ended by Ctrl-C" in capsys.readouterr().err
    assert not (tmp_path / "compressed/w4a4-rtn").exists() and not (tmp_path / "fidelity.json").exists()


@pytest.mark.parametrize(("end", "code", "sentence"), [
    (KeyboardInterrupt(), 130, "ended by Ctrl-C after 0 of 2 episodes; run the same again to go on"),
    (CheckpointError("the disk is full"), 1, "sqap evaluate: the disk is full")])
def test_end_before_the_first_episode_is_told(untrained, tmp_path, capsys, monkeypatch, end, code, sentence):
    def compress(*_, **__):
        raise end

    monkeypatch.setattr(evaluate_run, "compress_missing", compress)
    assert cli.main(["evaluate", "--checkpoint", str(untrained), "--out", str(tmp_path), "--episodes", "1", "--methods",
                     "float,w4a4-rtn"]) == code
    told = capsys.readouterr()
    assert sentence in told.err and "Traceback" not in told.err
    line = json.loads(told.out)
    assert line["complete"] is False and line["methods"]["w4a4-rtn"]["episodes"] == 0
    assert line["compared"]["w4a4-rtn"]["interval"] == [-1.0, 1.0] and line["compared"]["w4a4-rtn"]["jerk"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episodes.jsonl", "run.json", "summary.json"]


def test_fidelity_of_a_compressed_checkpoint_is_refused(untrained, tmp_path, capsys):
    compress_checkpoint(untrained, tmp_path / "small", "w4a4-rtn")
    assert cli.main(["evaluate", "--checkpoint", str(tmp_path / "small"), "--out", str(tmp_path / "out"), "--methods",
                     "stored", "--fidelity", "2"]) == 1
    assert "--fidelity compares with the float model, and" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    text = capsys.readouterr().out
    for part in ("examples:", "--suite hard", "--calibration", "--fidelity 32", "table.md",
                 "kept_tokens.png", "DIR/compressed/RECIPE", "Exit codes: 0 all was played", *SEED_RANGES, *SUITES,
                 *VARIATIONS, *(group for groups in SUITES.values() for group in groups)):
        assert part in text
