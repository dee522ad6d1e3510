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

"""`sqap compress` and `sqap info CHECKPOINT` from flags to files, and what they say."""

import hashlib
import json
import signal

import numpy as np
import pytest

from sqap_vla_ros.cli import compress
from sqap_vla_ros.cli import main as cli
from sqap_vla_ros.config import Config, iterate_knobs
from sqap_vla_ros.models.registry import load_checkpoint
from sqap_vla_ros.policy.observations import write_observations
from sqap_vla_ros.quantization.quantize import RECIPES


def last_line(capsys):
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    return json.loads(captured.out), captured.err


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    write_observations(tmp_path / "pictures", [
        (rng.integers(0, 256, (224, 224, 3), dtype=np.uint8), f"pick up the {color} block")
        for color in ("red", "green", "blue")])
    return tmp_path / "pictures"


@pytest.mark.parametrize("recipe", ["w4a4", "qvla-4bit"])
def test_checkpoint_is_compressed_and_told_of(untrained, pictures, tmp_path, capsys, monkeypatch, recipe):
    monkeypatch.setenv("COLUMNS", "120")
    out = tmp_path / "out"
    words = ["compress", str(untrained), str(out), "--recipe", recipe, "--calibration", str(pictures), "--seed", "4"]
    assert cli.main(words) == 0
    line, told = last_line(capsys)
    loaded = load_checkpoint(out)
    assert (line["checkpoint"], line["recipe"], line["weight_bytes"]) == (str(out), recipe, loaded.report.weight_bytes)
    assert line["ratio"] == pytest.approx(loaded.report.weight_bytes / loaded.report.float32_bytes, abs=1e-6)
    assert 0.1 < line["ratio"] < 0.2 and line["seconds"] > 0.0
    assert line["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert "21/21 linears rounded" in told and "decoder.layers.2" in told and "What it saved" in told
    assert ("output channels by bits" in told) == (recipe == "qvla-4bit")
    assert loaded.artifact.recipe.seed == 4
    assert cli.main(words) == 1
    assert f"sqap compress: '{out}' exists already; name another folder" in capsys.readouterr().err
    assert cli.main([*words, "--replace", "--dtype", "bfloat16"]) == 0
    replaced, _ = last_line(capsys)
    assert replaced["ratio"] == line["ratio"] and replaced["bytes"] < line["bytes"]


def test_info_tells_what_a_compressed_checkpoint_is(untrained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    out = tmp_path / "out"
    assert cli.main(["compress", str(untrained), str(out), "--recipe", "w4a8-rtn"]) == 0
    written, _ = last_line(capsys)
    assert cli.main(["info", str(out)]) == 0
    line, told = last_line(capsys)
    assert (line["family"], line["compressed"], line["recipe"]) == ("demo", True, "w4a8-rtn")
    assert (line["bytes"], line["weight_bytes"], line["ratio"]) == (
        written["bytes"], written["weight_bytes"], written["ratio"])
    source = hashlib.sha256((untrained / "model.safetensors").read_bytes()).hexdigest()
    assert line["origin"]["sha256"]["model.safetensors"] == source and source in told
    assert line["sha256"]["config.json"] == hashlib.sha256((out / "config.json").read_bytes()).hexdigest()
    block = line["parts"]["decoder.layers.1"]
    assert block["width"] == "W4A8" and 4.0 < block["bits_per_weight"] < 5.0
    assert line["parts"]["vision"]["width"] == "F32"
    # All that is stored, but for the header and the shapes, which are there for other readers.
    parts = sum(part["bytes"] for part in line["parts"].values())
    assert 0 < (out / "model.safetensors").stat().st_size - parts < 100_000
    for words in ("seed 0: stream, heads, down", "prune.rule=sqap", "runs once per image", "made from", str(untrained)):
        assert words in told
    assert cli.main(["info", str(out), "--linears"]) == 0
    line, told = last_line(capsys)
    rows = [name for name in line["parts"] if name.endswith("_proj")]
    assert len(rows) == 21 and all(line["parts"][name]["width"] == "W4A8" for name in rows)
    assert "decoder.layers.2.mlp.down_proj" in told


def test_info_tells_what_a_float_checkpoint_is(untrained, capsys):
    assert cli.main(["info", str(untrained)]) == 0
    line, told = last_line(capsys)
    assert (line["family"], line["compressed"], line["recipe"]) == ("demo", False, None)
    assert {part["width"] for part in line["parts"].values()} == {"F32"}
    assert all(part["bits_per_weight"] == 32.0 for part in line["parts"].values())
    assert "none, it is a float checkpoint" in told
    assert cli.main(["info", "nowhere"]) == 1
    assert "sqap info: no checkpoint folder at 'nowhere'" in capsys.readouterr().err


def test_missing_observations_are_told_with_the_way_to_some(untrained, tmp_path, capsys):
    assert cli.main(["compress", str(untrained), str(tmp_path / "out"), "--recipe", "w4a4"]) == 1
    told = capsys.readouterr().err
    assert "must see observations" in told and "give --calibration a folder with observations.jsonl" in told
    assert not (tmp_path / "out").exists()


def test_evaluation_plays_a_compressed_checkpoint(sqap, untrained, tmp_path):
    assert cli.main(["compress", str(untrained), str(tmp_path / "small"), "--recipe", "w4a4-rtn"]) == 0
    process = sqap("evaluate", "--checkpoint", tmp_path / "small", "--methods", "stored,stored+sqap@0.4", "--episodes",
                   1, "--workers", 1, "--execute-steps", 4, "--out", tmp_path / "out")
    output, errors = process.communicate(timeout=110)
    assert process.returncode == 0, errors
    assert list(json.loads(output.splitlines()[-1])["methods"]) == ["stored", "stored+sqap@0.4"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_ended_compression_leaves_nothing_at_its_place(sqap, untrained, pictures, tmp_path, number):
    place = tmp_path / "here" / "out"
    process = sqap("compress", untrained, place, "--recipe", "qvla-4bit", "--calibration", pictures)
    assert any("1/54 passes to find the bits" in line for line in process.stderr)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert output == "" and "linears rounded" not in errors and not place.exists()
    if number != signal.SIGKILL:
        assert process.returncode == 130 and errors.endswith("sqap compress: ended by Ctrl-C\n"), errors
    assert cli.main(["compress", str(untrained), str(place), "--recipe", "w4a4-rtn"]) == 0
    assert [path.name for path in place.parent.iterdir()] == ["out"]


@pytest.mark.parametrize(("words", "sentence"), [
    (["a", "b"], "the following arguments are required: --recipe"), (["a", "--recipe", "w4a4-rtn"], "required: OUT"),
    (["a", "b", "--recipe", "float"], "invalid choice: 'float'"), (["a", "b", "--recipe", "w3a3"], "invalid choice"),
    (["a", "b", "--recipe", "w4a4-rtn", "--dtype", "int8"], "invalid choice: 'int8'"),
    (["a", "b", "--recipe", "w4a4-rtn", "--seed", "-1"], "argument --seed: -1 is not allowed"),
    (["a", "b", "--recipe", "w4a4-rtn", "--engine", "gpu"], "invalid choice: 'gpu'")])
def test_wrong_use_exits_with_2_and_a_sentence(words, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["compress", *words])
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and captured.out == ""


@pytest.mark.parametrize("verb", ["compress", "info"])
def test_help_teaches(verb, capsys):
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    text = capsys.readouterr().out
    parts = {"compress": ("examples:", "observations.jsonl", "model.recipe:=stored", "Exit codes: 0 done", *RECIPES),
             "info": ("examples:", "--knobs", "--linears", "sqap info demo", "Exit codes:")}
    for part in parts[verb]:
        assert part in text


def test_recipes_are_known_without_torch():
    assert tuple(RECIPES) == compress._RECIPES
    choices = {name: knob.choices for name, knob, _ in iterate_knobs(Config())}
    assert choices["model.recipe"] == ("float", "stored", *RECIPES)
