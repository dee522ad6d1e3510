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

"""`sqap bench` from flags to files."""

import json
import signal

import numpy as np
import pytest

from sqap_vla_ros.cli import bench
from sqap_vla_ros.cli import main as cli
from sqap_vla_ros.policy.observations import write_observations


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    write_observations(tmp_path / "pictures", [
        (rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), f"reach the {color} block") for color in ("red", "green")])
    return tmp_path / "pictures"


def words(checkpoint, pictures, out, *more):
    return ["bench", str(checkpoint), "--observations", str(pictures), "--recipe", "w4a4-rtn", "--out", str(out),
            *more]


def test_engines_are_measured_and_told_of(untrained, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert cli.main(words(untrained, pictures, tmp_path / "out", "--rounds", "4", "--prune", "sqap@0.75",
                          "--set", "prune.layer=1")) == 0
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    told = json.loads(line)
    assert list(told["engines"]) == ["float32", "bfloat16", "cpu"]
    for row in told["engines"].values():
        assert list(row["stages_ms"]) == ["preprocess", "vision", "llm", "head", "total"]
        assert all(low <= row["stages_ms"][stage] <= high for stage, (low, high) in row["spread_ms"].items())
    assert set(told["ratios"]["cpu"]) == {f"{stage}_vs_{base}" for stage in ("llm", "total")
                                          for base in ("float32", "bfloat16")}
    assert 0.1 < told["llm_weight_ratio"] < 0.16
    assert (told["rounds"], told["complete"]) == (4, True)
    written = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert {key: written[key] for key in ("engines", "ratios", "intervals")} == {
        key: told[key] for key in ("engines", "ratios", "intervals")}
    rounds = written["milliseconds"]
    assert told["engines"]["cpu"]["stages_ms"]["llm"] == pytest.approx(
        np.median([row["cpu"]["llm"] for row in rounds]), abs=1e-3)
    assert told["ratios"]["cpu"]["llm_vs_bfloat16"] == pytest.approx(
        np.median([row["bfloat16"]["llm"] / row["cpu"]["llm"] for row in rounds]), abs=1e-3)
    settings = written["settings"]
    assert settings["method"] == "w4a4-rtn+sqap@0.75" and settings["engines"]["cpu"]["prune_layer"] == 1
    assert settings["engines"]["cpu"]["kept_tokens"] == 16 and settings["engines"]["float32"]["kept_tokens"] == 64
    assert {"processor", "cores", "instructions"} <= set(written["machine"]) and "torch" in written["versions"]
    assert (tmp_path / "out" / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert "16 of 64" in captured.err and "times faster than float32" in captured.err


@pytest.mark.parametrize(("flags", "message"), [
    (["--engines", "float32,fast"], "'fast' is no engine; allowed are float32, bfloat16, cpu, reference"),
    (["--engines", "cpu,cpu"], "names an engine twice"),
    (["--prune", "sqap"], "cannot be pruned by"),
    (["--prune", "best@0.4"], "allowed are none, sqap"),
    (["--recipe", "float"], "invalid choice: 'float'"),
    (["--rounds", "0"], "from 1 to 100000"),
])
def test_wrong_flags_are_answered_with_right_ones(flags, message, capsys):
    with pytest.raises(SystemExit) as failure:
        cli.main(["bench", *flags])
    assert failure.value.code == 2 and message in capsys.readouterr().err


def test_what_does_not_fit_is_refused_before_anything_runs(untrained, pictures, tmp_path, capsys):
    assert cli.main(words(untrained, pictures, tmp_path / "out", "--set", "prune.layer=3")) == 1
    assert "prune.layer is 3 and the decoder has 3 layers" in capsys.readouterr().err
    assert cli.main(["bench", str(untrained), "--out", str(tmp_path / "out")]) == 1
    assert "give --observations a folder" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))
    (tmp_path / "file").write_text("")
    assert cli.main(words(untrained, pictures, tmp_path / "file")) == 1
    assert "file cannot be written: File exists; take another folder" in capsys.readouterr().err


def test_interruption_keeps_what_was_measured(untrained, pictures, tmp_path, capsys, monkeypatch):
    from sqap_vla_ros.cli import bench_run

    measure = bench_run.run_rounds

    def interrupt(policies, observations, count, rounds, on_round):
        measure(policies, observations, 2, rounds, on_round)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(bench_run, "run_rounds", interrupt)
    assert cli.main(words(untrained, pictures, tmp_path / "out", "--engines", "float32,cpu")) == cli.INTERRUPTED
    told = json.loads(capsys.readouterr().out)
    assert (told["rounds"], told["complete"]) == (2, False)
    assert len(json.loads((tmp_path / "out" / "bench.json").read_text())["milliseconds"]) == 2


def test_help_names_every_engine(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    told = capsys.readouterr().out
    assert all(name in told and engine.purpose in told for name, engine in bench.BENCH_ENGINES.items())
