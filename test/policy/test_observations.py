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

"""Observations there and back, every way in which a folder can be unusable, and what a calibration runs."""

import hashlib
import json
import re

import cv2
import numpy as np
import pytest
import torch

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.models.pictures import prepare_picture
from sqap_vla_ros.policy.observations import (
    INDEX,
    StoredObservation,
    calibrate,
    hash_observations,
    read_observations,
    write_observations,
)
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
        np.testing.assert_array_equal(observation.images, [rgb])
        assert observation.state is None
    assert sorted(path.name for path in folder.iterdir()) == ["0000.png", "0001.png", INDEX]
    assert read[1].source == f"'{folder / INDEX}', line 2"


def test_several_pictures_and_a_state_are_read_in_order(folder):
    lines = [{"images": ["0001.png", "0000.png"], "instruction": "a", "state": state} for state in ([0.5, 2], [0.5, 3])]
    lines.append({"images": ["0000.png", "0001.png"], "instruction": "a", "state": [0.5, 2]})
    lines.append({"images": ["0001.png", "0000.png"], "instruction": "a"})
    (folder / INDEX).write_text("\n".join(map(json.dumps, lines)))
    read, drawn = read_observations(folder), [rgb for rgb, _ in draw()]
    np.testing.assert_array_equal(read[0].images, drawn[::-1])
    np.testing.assert_array_equal(read[2].images, drawn)
    assert read[0].state.dtype == np.float64 and read[0].state.tolist() == [0.5, 2.0]
    assert read[3].state is None
    assert len({hash_observations([observation]) for observation in read}) == 4


def test_hash_of_single_pictures_does_not_change_between_versions():
    rgb = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    plain = hashlib.sha256(b"(2, 4, 3)4push" + rgb.tobytes()).hexdigest()
    assert hash_observations([StoredObservation((rgb,), "push", "")]) == plain


def test_pictures_of_any_png_kind_are_rgb(folder):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    cv2.imwrite(str(folder / "0000.png"), grey)
    cv2.imwrite(str(folder / "0001.png"), np.dstack([grey, grey, grey, grey // 2]))
    for observation in read_observations(folder):
        np.testing.assert_array_equal(observation.images[0], np.dstack([grey] * 3))


def test_hash_changes_with_every_pixel_and_word(folder):
    first = read_observations(folder)
    assert hash_observations(first) == hash_observations(read_observations(folder))
    hashes = {hash_observations(first), hash_observations(first[::-1]), hash_observations(first[:1])}
    first[0].images[0][3, 4, 1] ^= 1
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
    ('{"image": "0000.png", "images": ["0000.png"], "instruction": "a"}', "holds image, images, instruction; it must"),
    ('{"images": [], "instruction": "a"}', "line 1 has the images []; it must be a list of files"),
    ('{"images": "0000.png", "instruction": "a"}', "line 1 has the images '0000.png'"),
    ('{"images": ["0000.png", 4], "instruction": "a"}', "line 1 names the image 4"),
    ('{"image": "0000.png", "instruction": "a", "state": "x"}', "line 1 has the state 'x'; it must be a list"),
    ('{"image": "0000.png", "instruction": "a", "state": [1, true]}', "line 1 has the state [1, True]"),
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
        pixels, _ = prepare_picture(rgb, model.image_spec)
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
