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

"""`sqap infer` from flags to pictures, on the demo policy as it is and compressed, and on a model of two cameras."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sqap_vla_ros.cli import infer_run
from sqap_vla_ros.cli import main as cli
from sqap_vla_ros.config import build_config
from sqap_vla_ros.data import Observation, RobotFootprint, TokenRule
from sqap_vla_ros.models import registry
from sqap_vla_ros.models.dataset_statistics import DatasetStatistics
from sqap_vla_ros.models.demo import DemoConfig, DemoVla
from sqap_vla_ros.models.family import Family
from sqap_vla_ros.policy.compression import compress_checkpoint
from sqap_vla_ros.policy.observations import read_picture
from sqap_vla_ros.policy.overlay import PRUNED_BRIGHTNESS, RULE_COLORS, STRIP_PX
from sqap_vla_ros.policy.policy import build_policy

PICTURE = registry.ASSETS / "demo" / "calibration" / "0000.png"
WORDS = "pick up the red block"
DISC = (112.0, 96.0, 24.0)
RULES = ("attention", "robot", "coverage", "unpruned", "random")


class Duo(DemoVla):
    """The demo policy with a second camera, a state, and actions that two data sets give a meaning."""

    family = "duo"
    cameras = ("main", "wrist")
    state_size = 2

    def choose(self, settings):
        super().choose(settings)
        DatasetStatistics(Path("norms.json"), {"kitchen": {}, "workshop": {}}).choose(settings.dataset or None)

    def encode_images(self, pixels, ids=None):
        return torch.cat([super(Duo, self).encode_images(part) for part in pixels.split(3, dim=1)], dim=1)

    def build_sequence(self, visual, ids, state=None, seed=0):
        return super().build_sequence(visual + state.float().sum(), ids)


@pytest.fixture
def duo(untrained, tmp_path, monkeypatch):
    """A checkpoint of it; the demo's own is as good."""
    monkeypatch.setitem(registry.FAMILIES, "duo", Family(
        DemoConfig.from_json, lambda config, files: Duo(config), settings=("dataset",)))
    folder = tmp_path / "duo"
    folder.mkdir()
    values = json.loads((untrained / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"family": "duo"}))
    (folder / "model.safetensors").write_bytes((untrained / "model.safetensors").read_bytes())
    return folder


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    place = tmp_path_factory.mktemp("compressed") / "demo"
    compress_checkpoint("demo", place, "w4a4-rtn")
    return str(place)


@pytest.fixture
def light(monkeypatch):
    """Reading the weights is not allowed."""

    def refuse(config):
        raise AssertionError("the weights were read")

    monkeypatch.setattr(infer_run, "build_policy", refuse)


def run(capsys, checkpoint, out, *words, image=(PICTURE,)):
    images = [word for path in image for word in ("--image", str(path))]
    code = cli.main(["infer", str(checkpoint), *images, "--instruction", WORDS, "--out", str(out), *words])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    (line,) = captured.out.splitlines()
    return json.loads(line), captured.err


def disc(u, v, radius):
    return RobotFootprint(("hand",), np.array([[u, v]]), np.array([radius]))


def kept_of(told):
    return sorted(index for rule in RULES for index in told.get(rule, []))


def cells_near(u, v, radius, side=14.0, count=16):
    """Tokens whose square is nearer to a pixel than ``radius``."""
    low = np.arange(count) * side - 0.5
    across, down = (np.maximum(np.maximum(low - at, at - low - side), 0.0) for at in (u, v))
    return {row * count + column for row in range(count) for column in range(count)
            if np.hypot(across[column], down[row]) < radius}


@pytest.mark.parametrize(("form", "recipe"), [("float", "float"), ("compressed", "stored")])
def test_it_tells_what_a_policy_does(form, recipe, compressed, tmp_path, capsys):
    checkpoint = "demo" if form == "float" else compressed
    told, prose = run(capsys, checkpoint, tmp_path, "--tf-pixel", "112,96,24", "--set", "prune.layer=2")
    policy = build_policy(build_config({"model.checkpoint": checkpoint, "model.recipe": recipe, "prune.layer": 2}))
    inference = policy.infer(Observation(0, (read_picture(PICTURE),), WORDS, (disc(*DISC),)))
    np.testing.assert_array_equal(told["action"], inference.chunk.steps)
    assert told["columns"] == ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
    assert told["units"] == ["m", "m", "m", "rad", "rad", "rad", "0 to 1"]
    (tokens,) = inference.tokens
    for rule in (TokenRule.ATTENTION, TokenRule.ROBOT, TokenRule.COVERAGE):
        assert told["tokens"]["main"][rule.name.lower()] == tokens.kept[tokens.rules == rule].tolist()
    assert kept_of(told["tokens"]["main"]) == tokens.kept.tolist() and told["tokens"]["main"]["grid"] == [16, 16]
    assert {name: told[name] for name in policy.describe()} == policy.describe()
    assert (told["recipe"], told["prune"], told["kept_tokens"]) == (recipe, "sqap@0.4", 154)
    stages = told["stages_ms"]
    assert list(stages) == ["preprocess", "vision", "llm", "head", "total"]
    assert stages["total"] == pytest.approx(sum(stages.values()) / 2, abs=0.01)
    assert f"{inference.chunk.steps[1, 2]:.4f}" in prose
    assert any(f"{stages['llm'] + less:.2f}" in prose for less in (-0.0005, 0.0, 0.0005))  # it is rounded twice here
    assert "154 of 256" in prose and "pitch" in prose and "rad" in prose and "1 thread(s)" in prose


def test_the_overlay_shows_the_protected_tokens(tmp_path, capsys):
    told, _ = run(capsys, "demo", tmp_path / "new" / "out", "--tf-pixel", "112,96,24")
    near, tokens = cells_near(*DISC), told["tokens"]["main"]
    assert len(near) > 10 and near <= set(kept_of(tokens))
    assert set(tokens["robot"]) == near - set(tokens["attention"])
    assert told["overlays"] == {"main": str(tmp_path / "new" / "out" / "overlay_main.png")}
    overlay = read_picture(told["overlays"]["main"])
    assert overlay.shape == (512 + 2 * STRIP_PX, 512, 3)
    whole = cv2.resize(read_picture(PICTURE), (512, 512), interpolation=cv2.INTER_CUBIC)
    dropped = set(range(256)) - set(kept_of(tokens))
    assert len(dropped) == 102
    robot = np.array(RULE_COLORS[TokenRule.ROBOT])
    for index in tokens["robot"]:
        row, column = divmod(index, 16)
        cell = overlay[STRIP_PX + row * 32:STRIP_PX + row * 32 + 32, column * 32:column * 32 + 32].astype(int)
        assert (np.abs(cell - robot).max(axis=-1) < 40).sum() > 40
    # A column from the right edge lies far from rings and frames of others.
    for index in dropped & {row * 16 + 12 for row in range(16)}:
        middle = overlay[STRIP_PX + index // 16 * 32 + 16, 12 * 32 + 16]
        np.testing.assert_array_equal(middle, (whole[index // 16 * 32 + 16, 12 * 32 + 16] * PRUNED_BRIGHTNESS).astype(
            np.uint8))


def test_discs_are_not_joined_and_none_protects_nothing(tmp_path, capsys):
    flags = ("--set", "prune.attention_ratio=0", "--set", "prune.robot_ratio=1")
    told, _ = run(capsys, "demo", tmp_path, "--tf-pixel", "30,30,10", "--tf-pixel", "180,180,12", *flags)
    assert set(told["tokens"]["main"]["robot"]) == cells_near(30, 30, 10) | cells_near(180, 180, 12)
    told, _ = run(capsys, "demo", tmp_path, "--tf-pixel=-3,100,9", *flags)
    assert set(told["tokens"]["main"]["robot"]) == cells_near(-3, 100, 9) != set()
    told, _ = run(capsys, "demo", tmp_path, *flags)
    assert list(told["tokens"]["main"]) == ["grid", "coverage"]


def test_recipe_rule_and_knobs_are_the_policys(untrained, tmp_path, capsys):
    flags = ("--recipe", "w4a8-rtn", "--engine", "reference", "--prune", "fastv@0.5", "--pictures", "libero-uncropped")
    told, _ = run(capsys, untrained, tmp_path, *flags)
    policy = build_policy(build_config({
        "model.checkpoint": str(untrained), "model.recipe": "w4a8-rtn", "model.engine": "reference",
        "model.pictures": "libero-uncropped", "prune.rule": "fastv", "prune.pruned_ratio": 0.5}))
    inference = policy.infer(Observation(0, (read_picture(PICTURE),), WORDS, (None,)))
    np.testing.assert_array_equal(told["action"], inference.chunk.steps)
    assert (told["engine"], told["prune"], told["kept_tokens"]) == ("reference", "fastv@0.5", 32)
    assert len(told["tokens"]["main"]["attention"]) == 32
    plain, _ = run(capsys, untrained, tmp_path, "--prune", "none")
    assert plain["tokens"]["main"] == {"grid": [8, 8], "unpruned": list(range(64))} and plain["prune"] == "none"


@pytest.mark.parametrize("form", ["float", "compressed"])
def test_in_bfloat16_it_acts_nearly_the_same(form, compressed, tmp_path, capsys):
    checkpoint = "demo" if form == "float" else compressed
    exact, _ = run(capsys, checkpoint, tmp_path, "--prune", "none")
    rounded, _ = run(capsys, checkpoint, tmp_path, "--prune", "none", "--dtype", "bfloat16")
    apart = np.abs(np.subtract(exact["action"], rounded["action"]))[:, :3]
    assert 0.0 < apart.max() < 0.01
    if form == "float":
        assert rounded["engine"] == "bfloat16" and rounded["weight_bytes"] * 2 == exact["weight_bytes"]
    else:
        assert rounded["engine"] == "cpu" and rounded["weight_bytes"] == exact["weight_bytes"]


def test_each_camera_has_its_picture_discs_and_overlay(duo, tmp_path, capsys):
    wide = tmp_path / "wide.png"
    wide.write_bytes(cv2.imencode(".png", np.full((60, 120, 3), 200, np.uint8))[1].tobytes())
    told, prose = run(capsys, duo, tmp_path / "out", "--state=-0.1,0.2", "--dataset", "kitchen",
                      "--tf-pixel", "wrist:100,45,3", image=(PICTURE, wide))
    policy = build_policy(build_config({"model.checkpoint": str(duo), "model.recipe": "float",
                                        "model.dataset": "kitchen"}))
    inference = policy.infer(Observation(0, (read_picture(PICTURE), read_picture(wide)), WORDS,
                                         (None, disc(100.0, 45.0, 3.0)), state=np.array([-0.1, 0.2])))
    np.testing.assert_array_equal(told["action"], inference.chunk.steps)
    for camera, tokens in zip(("main", "wrist"), inference.tokens, strict=True):
        assert kept_of(told["tokens"][camera]) == tokens.kept.tolist()
    # A token shows 15 x 7.5 px of it.
    assert 6 * 8 + 6 in told["tokens"]["wrist"]["robot"] and "robot" not in told["tokens"]["main"]
    assert [read_picture(path).shape for path in told["overlays"].values()] == [
        (512 + 2 * STRIP_PX, 512, 3), (256 + 2 * STRIP_PX, 512, 3)]
    assert list(told["overlays"]) == ["main", "wrist"] and "wrist" in prose


def test_other_actions_than_one_arms_are_numbered():
    (first, second) = infer_run._build_action_tables(np.zeros((25, 14)))
    assert [column.header for column in second.columns] == ["", *map(str, range(8, 15))]
    assert len(first.columns) == 8 and second.row_count == 25
    assert infer_run._name_columns(7)[3] == ("roll", "rad")


@pytest.mark.parametrize(("flags", "sentence"), [
    (["demo", "--image", "gone.png"], "the image 'gone.png' cannot be read: [Errno 2] No such file"),
    (["demo", "--image", __file__], "is no picture, or a damaged one; it must be a PNG or JPEG file"),
    (["demo", "--image", str(PICTURE), "--image", str(PICTURE)],
     "came with 2 pictures, and the model sees 1; give one of each camera, in this order: main"),
    (["nowhere", "--image", str(PICTURE)], "no checkpoint folder at 'nowhere'"),
    (["demo", "--image", str(PICTURE), "--instruction", " "], "the instruction is empty; say what to do"),
    (["demo", "--image", str(PICTURE), "--instruction", "dance"], "does not know 'dance'; its words are"),
    (["demo", "--image", str(PICTURE), "--instruction", "block " * 50], "has 300 characters; 256 are allowed"),
    (["demo", "--image", str(PICTURE), "--state", "1,2"], "came with a robot state, and the model reads none"),
    (["demo", "--image", str(PICTURE), "--tf-pixel", "300,20,70"],
     "--tf-pixel 300,20,70 lies outside of the camera's picture of 224 x 224 px"),
    (["demo", "--image", str(PICTURE), "--tf-pixel", "wrist:30,20,70"],
     "--tf-pixel wrist:30,20,70 names the camera 'wrist', and the model sees main"),
    (["demo", "--image", str(PICTURE), "--recipe", "stored"], "which runs a compressed checkpoint"),
    (["demo", "--image", str(PICTURE), "--recipe", "w4a4", "--dtype", "bfloat16"],
     "model.dtype is 'bfloat16', and model.recipe 'w4a4' quantizes a float32 model"),
    (["demo", "--image", str(PICTURE), "--set", "prune.layer=9"], "prune.layer is 9 and the decoder has 6 layers"),
    (["demo", "--image", str(PICTURE), "--set", "prune.layer=deep"], "prune.layer must be int, got str 'deep'"),
    (["demo", "--image", str(PICTURE), "--robot", "aloha"],
     "holds a model of the family 'demo', which has no use for it; leave model.robot empty"),
    (["demo", "--image", str(PICTURE), "--device", "abacus"], "model.device is 'abacus', which is no torch device"),
    (["demo", "--image", str(PICTURE), "--out", str(PICTURE)], "cannot be written: File exists; take another folder")])
def test_what_cannot_be_used_is_told_before_the_weights_are_read(flags, sentence, light, tmp_path, capsys):
    assert cli.main(["infer", "--instruction", WORDS, "--out", str(tmp_path / "out"), *flags]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("sqap infer: ") and sentence in captured.err and captured.out == ""
    assert captured.err.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("images", "flags", "sentence"), [
    (1, ["--state", "1,2"], "came with 1 pictures, and the model sees 2; .*: main, wrist"),
    (2, [], "without a robot state, and the model reads one of 2 numbers"),
    (2, ["--state", "1,2,3"], r"must be 2 numbers in a row, got shape \(3,\)"),
    (2, ["--state", "1,2", "--dataset", "ship"], "no data set 'ship' .* 'norms.json' knows kitchen, workshop"),
    (2, ["--state", "1,2", "--dataset", ""], "no data set is named .* knows kitchen, workshop; name one of them "
     "as model.dataset, on the command line --dataset$"),
    (2, ["--state", "1,2", "--tf-pixel", "30,20,9"], "30,20,9 names no camera, and the model sees main, wrist; write"),
    (2, ["--state", "1,2", "--tf-pixel", "left:30,20,9"], "names the camera 'left', and the model sees main, wrist")])
def test_what_two_cameras_a_state_and_two_data_sets_ask_for(images, flags, sentence, duo, light, tmp_path, capsys):
    words = ["infer", str(duo), *["--image", str(PICTURE)] * images, "--instruction", WORDS, "--dataset", "kitchen"]
    assert cli.main([*words, "--out", str(tmp_path / "out"), *flags]) == 1
    assert re.search(sentence, capsys.readouterr().err)


def test_a_compressed_checkpoint_is_not_quantized_again(compressed, light, capsys):
    words = ["infer", compressed, "--image", str(PICTURE), "--instruction", WORDS, "--recipe", "w4a4-rtn"]
    assert cli.main(words) == 1
    assert "is compressed with the recipe 'w4a4-rtn'" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--tf-pixel", "1,2"], "'1,2' is no disc; write U,V,RADIUS in px"), (["--tf-pixel", "1,2,0"], "is no disc"),
    (["--tf-pixel", "1,2,nan"], "is no disc"), (["--tf-pixel", ":1,2,3"], "is no disc"),
    (["--tf-pixel", "a,b,c"], "is no disc"), (["--state", "1,x"], "'1,x' is no state; write finite numbers"),
    (["--state", "1,inf"], "is no state"), (["--recipe", "w3a3"], "invalid choice: 'w3a3'"),
    (["--prune", "sqap"], "'sqap' cannot be pruned by"), (["--set", "model.device=cpu"], "sets no knob"),
    (["--dtype", "int8"], "invalid choice: 'int8'"), (["--robot", "cook"], "invalid choice: 'cook'"),
    (["--pictures", "blurred"], "invalid choice: 'blurred'"), (["--steps", "-1"], "-1 is not allowed"),
    (["--guidance", "0.5"], "0.5 is not allowed; take a number from 1 to 10")])
def test_wrong_use_exits_with_2_and_a_sentence(flags, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["infer", "demo", "--image", str(PICTURE), "--instruction", WORDS, *flags])
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and captured.out == ""


@pytest.mark.parametrize("missing", ["--image", "--instruction"])
def test_picture_and_words_are_needed(missing, capsys):
    words = {"--image": str(PICTURE), "--instruction": WORDS}
    words.pop(missing)
    with pytest.raises(SystemExit) as end:
        cli.main(["infer", "demo", *(word for pair in words.items() for word in pair)])
    assert end.value.code == 2 and f"required: {missing}" in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        cli.main(["infer", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in ("examples: sqap infer demo", "--tf-pixel 112,96,24", "--state=-", "overlay_CAMERA.png", "Exit codes:",
                 "(default: sqap@0.4)", "CPU threads of one inference (default: 1)", "'', libero, aloha, bridge"):
        assert part in text
