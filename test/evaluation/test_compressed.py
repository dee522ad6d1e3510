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

"""Recipes are carried out once, and again only when something that matters has changed."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.evaluation.compressed import (
    compress_missing,
    describe_recipes,
    find_source,
    forget_compressed,
    is_current,
    list_folders,
    list_recipes,
)
from sqap_vla_ros.evaluation.methods import parse_methods
from sqap_vla_ros.models.own_format import save_model
from sqap_vla_ros.models.registry import load_checkpoint, load_model
from sqap_vla_ros.policy.observations import write_observations
from sqap_vla_ros.quantization.recipe import RECIPES

METHODS = parse_methods("float,w4a4,w4a4-rtn+sqap@0.4,w4a4+sqap@0.4,float+fastv@0.6")


def take_pictures(folder, seed=0):
    rng = np.random.default_rng(seed)
    write_observations(folder, [(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), f"pick up the {color} block")
                                for color in ("red", "blue")])
    return folder


def ignore(stage, done, total):
    pass


@pytest.fixture(scope="module")
def once(tiny_demo, tmp_path_factory):
    """A folder with a checkpoint, pictures and what recipes made of them; what was told, and the recipes."""
    folder, told = tmp_path_factory.mktemp("once"), []
    save_model(tiny_demo(), folder / "float")
    source = find_source(str(folder / "float"), METHODS, take_pictures(folder / "pictures"))
    made = compress_missing(source, list_folders(folder, METHODS), lambda *step: told.append(step))
    return folder, told, made


@pytest.fixture
def place(once, tmp_path):
    """A copy of it."""
    return shutil.copytree(once[0], tmp_path / "copy")


def find_in(place, methods=METHODS, pictures="pictures"):
    return find_source(str(place / "float"), methods, None if pictures is None else place / pictures)


def list_stale(place, source):
    return [name for name, folder in list_folders(place, METHODS).items() if not is_current(folder, name, source)]


def test_each_recipe_is_carried_out_once(once, place):
    _, told, made = once
    source, folders = find_in(place), list_folders(place, METHODS)
    assert made == list(folders) == list_recipes(METHODS) == ["w4a4", "w4a4-rtn"]
    assert list(dict.fromkeys(stage.split(":")[0] for stage, _, _ in told)) == made
    for recipe, folder in folders.items():
        artifact = load_checkpoint(folder).artifact
        assert (artifact.recipe_name, artifact.origin.sha256) == (recipe, source.sha256)
    assert compress_missing(source, folders, ignore) == []
    forget_compressed({"w4a4-rtn": folders["w4a4-rtn"], "w8a8": str(place / "compressed/w8a8")})
    assert compress_missing(source, folders, ignore) == ["w4a4-rtn"]


def test_other_checkpoint_pictures_or_recipe_make_it_anew(place, monkeypatch):
    assert list_stale(place, find_in(place)) == []
    take_pictures(place / "others", 1)
    assert list_stale(place, find_in(place, pictures="others")) == ["w4a4"]
    before = describe_recipes(METHODS)
    monkeypatch.setitem(RECIPES, "w4a4-rtn", replace(RECIPES["w4a4-rtn"], act_clip_ratio=0.8))
    assert [name for name, digest in describe_recipes(METHODS).items() if digest != before[name]] == ["w4a4-rtn"]
    assert list_stale(place, find_in(place)) == ["w4a4-rtn"]
    model = load_model(place / "float")
    with torch.no_grad():
        model.decoder.layers[0].mlp.down_proj.weight *= 1.5
    save_model(model, place / "float")
    assert list_stale(place, find_in(place)) == ["w4a4", "w4a4-rtn"]


def test_damaged_result_is_made_again_and_a_foreign_folder_left_alone(place):
    source, folders = find_in(place), list_folders(place, METHODS)
    tensors = place / "compressed/w4a4-rtn/model.safetensors"
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert compress_missing(source, folders, ignore) == ["w4a4-rtn"]
    assert tensors.read_bytes() == content
    (tensors.parent / "notes.txt").write_text("mine")
    tensors.unlink()
    with pytest.raises(CheckpointError, match="holds other files as well, and is not replaced"):
        compress_missing(source, folders, ignore)
    with pytest.raises(CheckpointError, match="holds other files as well"):
        forget_compressed(folders)
    assert (tensors.parent / "notes.txt").exists()


def test_methods_that_cannot_be_made_are_refused_before_anything_is(place):
    with pytest.raises(ConfigError, match=r"the recipe 'w4a4' \(rounding 'gptq'\) must see observations"):
        find_in(place, pictures=None)
    with pytest.raises(ConfigError, match=r"--calibration .* none of float, w4a4-rtn must; leave it out"):
        find_in(place, parse_methods("float,w4a4-rtn"))
    with pytest.raises(ConfigError, match=r"'stored\+sqap@0.4' plays a compressed checkpoint as it is"):
        find_in(place, parse_methods("float,stored+sqap@0.4"), pictures=None)
    small = str(place / "compressed/w4a4-rtn")
    with pytest.raises(ConfigError, match="is compressed with the recipe 'w4a4-rtn', and the method 'float' needs"):
        find_source(small, parse_methods("stored,float"))
    assert find_source(small, parse_methods("stored,stored+sqap@0.4")).observations_sha256 is None
