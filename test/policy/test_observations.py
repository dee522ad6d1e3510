"""Observations there and back, every way in which a folder can be unusable, and what a calibration runs."""

import json
import re

import cv2
import numpy as np
import pytest
import torch

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.policy.observations import (
    INDEX,
    calibrate,
    hash_observations,
    read_observations,
    write_observations,
)
from sqap_vla_ros.policy.preprocess import prepare_image
from sqap_vla_ros.quantization.quantize import RECIPES, quantize_

TEXTS = ("pick up the red block", "pick up the blue block")


def draw(count=2, shape=(48, 64, 3)):
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, shape, dtype=np.uint8), TEXTS[index % 2]) for index in range(count)]


@pytest.fixture
def folder(tmp_path):
    assert write_observations(tmp_path / "some", draw()) == 2
    return tmp_path / "some"


def test_round_trip_is_exact(folder):
    read = read_observations(folder)
    assert [observation.instruction for observation in read] == list(TEXTS)
    for observation, (rgb, _) in zip(read, draw(), strict=True):
        np.testing.assert_array_equal(observation.rgb, rgb)
    assert sorted(path.name for path in folder.iterdir()) == ["0000.png", "0001.png", INDEX]
    assert read[1].source == f"'{folder / INDEX}', line 2"


def test_pictures_of_any_png_kind_are_rgb(folder):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    cv2.imwrite(str(folder / "0000.png"), grey)
    cv2.imwrite(str(folder / "0001.png"), np.dstack([grey, grey, grey, grey // 2]))
    for observation in read_observations(folder):
        np.testing.assert_array_equal(observation.rgb, np.dstack([grey] * 3))


def test_hash_changes_with_every_pixel_and_word(folder):
    first = read_observations(folder)
    assert hash_observations(first) == hash_observations(read_observations(folder))
    hashes = {hash_observations(first), hash_observations(first[::-1]), hash_observations(first[:1])}
    first[0].rgb[3, 4, 1] ^= 1
    hashes.add(hash_observations(first))
    assert len(hashes) == 4


@pytest.mark.parametrize(("text", "words"), [
    ("", "observations.jsonl' is empty; it needs a line such as"), ("\n", "line 1 is not readable as JSON"),
    ("{}\n", "line 1 holds nothing; it must be an object with image and instruction"),
    ("[]\n", "line 1 holds list"), ('{"image": "0000.png"}', "line 1 holds image; it must"),
    ('{"image": "0000.png", "instruction": "a", "x": 1}', "line 1 holds image, instruction, x; it must"),
    ('{"image": "0000.png", "instruction": " "}', "line 1 has the instruction ' '; it must be some words"),
    ('{"image": "0000.png", "instruction": 3}', "line 1 has the instruction 3"),
    ('{"image": 4, "instruction": "a"}', "line 1 names the image 4"),
    ('{"image": "", "instruction": "a"}', "line 1 names the image ''"),
    ('{"image": "../some/0000.png", "instruction": "a"}', "names the image '../some/0000.png'; it must be the name of"),
    ('{"image": "/etc/passwd", "instruction": "a"}', "names the image '/etc/passwd'"),
    ('{"image": "..", "instruction": "a"}', "line 1: the image '..' cannot be read"),
    ('{"image": "a\\u0000b", "instruction": "a"}', "line 1: the image 'a\\x00b' cannot be read"),
    ('{"image": "0002.png", "instruction": "a"}', "line 1: the image '0002.png' cannot be read"),
    ('{"image": "0000.png", "instruction": "a"}\n{"image"', "line 2 is not readable as JSON"),
    ('{"image": "0000.png", "instruction": "a"}\n\n', "line 2 is not readable as JSON"),
    ('{"image": "observations.jsonl", "instruction": "a"}', "is no picture, or a damaged one"),
])
def test_unusable_index_is_named_with_its_line(folder, text, words):
    (folder / INDEX).write_text(text)
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        read_observations(folder)
    assert INDEX in str(caught.value)


def test_missing_and_binary_index(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere/observations\.jsonl' is missing; a folder of observations has one"):
        read_observations(tmp_path / "nowhere")
    (folder / INDEX).write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not readable as UTF-8"):
        read_observations(folder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_damaged_picture_is_named(folder, share):
    whole = (folder / "0001.png").read_bytes()
    (folder / "0001.png").write_bytes(whole[:int(share * len(whole))])
    with pytest.raises(ConfigError, match=r"line 2: .*0001\.png' is no picture, or a damaged one"):
        read_observations(folder)


@pytest.mark.parametrize(("observations", "words"), [
    ([], "there are no observations"), ([(np.zeros((4, 4), np.uint8), "a")], r"observation 0 .* uint8 \(4, 4\)"),
    ([(np.zeros((4, 4, 3), np.float32), "a")], "float32"), ([(np.zeros((4, 4, 3), np.uint8), " ")], "instruction ' '")])
def test_what_cannot_be_observed_is_not_written(tmp_path, observations, words):
    with pytest.raises(ConfigError, match=words):
        write_observations(tmp_path / "out", observations)
    assert not (tmp_path / "out" / INDEX).exists()


def test_observations_are_not_overwritten(folder, tmp_path):
    with pytest.raises(ConfigError, match="holds observations already"):
        write_observations(folder, draw())
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_observations(tmp_path / "file", draw())


def test_calibration_runs_the_whole_sequence_as_a_policy_does(folder, tiny_demo):
    model = tiny_demo()
    lengths = []
    model.decoder.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    runs = calibrate(model, read_observations(folder))
    actions = [run() for run in runs]
    # BOS, 64 visual tokens, five words, ACT.
    assert lengths == [71, 71]
    for (rgb, text), found in zip(draw(), actions, strict=True):
        pixels, _ = prepare_image(rgb, model.image_spec)
        sequence = model.build_sequence(model.encode_images(pixels), model.tokenize(text))
        expected = model.predict_actions(model.decoder(sequence.embeddings, sequence.positions))
        assert found.shape == (1, 4, 7) and torch.equal(found, expected)
    actions[0].sum().backward()
    assert model.decoder.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_calibration_follows_the_model_and_serves_every_recipe(folder, tiny_demo):
    for name in ("w4a4", "smoothquant-w8a8", "qvla-w4a4"):
        model = tiny_demo()
        before = model.head_fc1.weight.clone()
        quantize_(model, RECIPES[name], calibration=calibrate(model, read_observations(folder)))
        assert (not torch.equal(model.head_fc1.weight, before)) == (RECIPES[name].rotation is not None)


def test_instruction_that_the_model_does_not_know_is_named(folder, tiny_demo):
    lines = (folder / INDEX).read_text().splitlines()
    (folder / INDEX).write_text("\n".join([lines[0], json.dumps({"image": "0001.png", "instruction": "dance"})]))
    with pytest.raises(ConfigError, match=r"observations\.jsonl', line 2: the demo policy does not know 'dance'"):
        calibrate(tiny_demo(), read_observations(folder))
