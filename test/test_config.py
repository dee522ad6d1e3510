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

"""Every knob, and what it refuses."""

import dataclasses
import re

import pytest
import torch

from sqap_vla_ros.config import Config, build_config, iterate_knobs
from sqap_vla_ros.errors import ConfigError, SqapError
from sqap_vla_ros.knobs import Knob
from sqap_vla_ros.models import oft_presets, pictures
from sqap_vla_ros.models.vla import ModelSettings
from sqap_vla_ros.policy.compression import DTYPES
from sqap_vla_ros.policy.wiring import choose_settings, find_dtype
from sqap_vla_ros.quantization.recipe import RECIPES


def test_every_knob_is_described_once_with_its_unit_and_a_default_that_it_allows():
    seen = {}
    for name, knob, value in iterate_knobs(Config()):
        assert name not in seen
        seen[name] = value
        assert re.fullmatch(r"[A-Z].*\.", knob.description), name
        assert build_config({name: list(value) if isinstance(value, tuple) else value}) == Config()
        for suffix, unit in (("_hz", "Hz"), ("_m_s", "m/s"), ("_rad_s", "rad/s"), ("_s", " s"), ("_m", " m"),
                             ("_n", " N")):
            if name.endswith(suffix):
                assert unit in knob.description, name
                break
    assert len(seen) >= 20
    assert seen["model.recipe"] == "w4a4" and seen["control.execute_steps"] == 2


def value_of(config, name):
    return next(value for known, _, value in iterate_knobs(config) if known == name)


def test_every_knob_holds_its_own_limits():
    base = build_config({"control.execute_steps": 1})
    for name, knob, default in iterate_knobs(Config()):
        count = len(default) if isinstance(default, tuple) else None
        kind = type(default[0] if count else default)
        for limit, step in ((knob.minimum, -1), (knob.maximum, 1)):
            if limit is None:
                continue
            at, beyond = kind(limit), kind(limit + step)
            config = build_config({name: [at] * count if count else at}, base)
            assert value_of(config, name) == ((at,) * count if count else at)
            with pytest.raises(ConfigError, match=f"{name} is .*(smallest|largest) allowed is"):
                build_config({name: [beyond] * count if count else beyond}, base)


def test_only_the_named_knobs_change():
    base = build_config({"control.control_hz": 5.0})
    changes = {"prune.pruned_ratio": 0.7, "footprint.frames": ["a", "b"], "footprint.radii_m": [0.1, 0]}
    config = build_config(changes, base)
    assert config.prune.pruned_ratio == 0.7
    assert config.control.control_hz == 5.0
    assert config.footprint.frames == ("a", "b")
    assert config.footprint.radii_m == (0.1, 0.0)
    assert config.model == Config().model
    assert build_config({}) == Config()


@pytest.mark.parametrize(("count", "quaternion", "words"), [
    (1, (0.0, 0.0, 0.0, 1.0), "footprint.extrinsics has 7 values; there must be 14, seven for each of input.cameras"),
    (2, (0.0, 0.0, 0.0, 0.5), "footprint.extrinsics has a quaternion of length 0.5 for camera 'wrist'; it must be 1"),
    (2, (0.0, 0.0, 0.0, 0.0), "a quaternion of length 0 for camera 'wrist'")])
def test_given_camera_poses_are_checked_when_they_are_used(count, quaternion, words):
    knobs = {"input.cameras": ["front", "wrist"], "footprint.camera_frames": ["", ""],
             "footprint.extrinsics": [0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 1.0, 2.0, 3.0, *quaternion][:7 * count]}
    build_config(knobs)
    with pytest.raises(ConfigError, match=re.escape(words)):
        build_config(knobs | {"footprint.extrinsics_frame": "base"})


@pytest.mark.parametrize(("name", "value", "words"), [
    ("prune.ratio", 0.1, "unknown knob 'prune.ratio'; known are model.checkpoint"),
    ("prune", 0.1, "unknown knob"), ("", 0.1, "unknown knob"),
    ("model.recipe", "w2a2", "model.recipe is 'w2a2'; allowed are float, stored, w4a4"),
    ("model.robot", "cook", "model.robot is 'cook'; allowed are '', libero, aloha, bridge"),
    ("model.recipe", 4, "must be str, got int 4"), ("model.threads", 2.0, "must be int, got float"),
    ("model.threads", True, "must be int, got bool"), ("control.control_hz", "10", "must be float, got str"),
    ("control.control_hz", float("nan"), "must be finite"), ("control.control_hz", float("inf"), "must be finite"),
    ("control.control_hz", True, "must be float, got bool"), ("control.control_hz", None, "must be float"),
    ("footprint.frames", "hand", "must be a list"), ("footprint.frames", 3, "must be a list"),
    ("footprint.frames", [1, 2, 3], "must be str, got int"), ("footprint.radii_m", ["x"], "must be float"),
    ("footprint.radii_m", [0.1], "1 values for 3 footprint.frames; give one radius per frame")])
def test_wrong_values_are_refused_by_name(name, value, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        build_config({name: value})


def test_an_ensemble_and_several_steps_per_look_exclude_each_other():
    sentence = ("control.ensemble_horizon is 4 and control.execute_steps is 2, and an ensemble looks again after each "
                "step; set control.execute_steps to 1, or control.ensemble_horizon to 1 to blend nothing")
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        build_config({"control.ensemble_horizon": 4})
    control = build_config({"control.ensemble_horizon": 4, "control.execute_steps": 1}).control
    assert (control.ensemble_horizon, control.execute_steps, control.ensemble_alpha) == (4, 1, 0.1)
    assert build_config({"control.execute_steps": 8}).control.ensemble_horizon == 1


def test_choices_are_those_of_the_tables_they_come_from():
    choices = {name: knob.choices for name, knob, _ in iterate_knobs(Config())}
    assert choices["model.pictures"] == tuple(pictures.PRESETS)
    assert choices["model.robot"] == ("", *oft_presets.PRESETS)
    assert set(choices["model.dtype"]) < set(DTYPES)
    assert Knob("", choices=("", "a")).choices_text == "'', a"


def test_knobs_become_what_a_model_is_asked_for():
    assert choose_settings(Config().model) == ModelSettings()
    knobs = build_config({"model.dataset": "kitchen", "model.pictures": "bridge", "model.robot": "aloha",
                          "model.sampler_steps": 5, "model.guidance": 2}).model
    assert choose_settings(knobs) == ModelSettings("kitchen", "bridge", "aloha", 5, 2.0)


def test_only_what_is_not_quantized_anew_computes_in_another_type():
    for recipe in ("float", "stored", *RECIPES):
        knobs = [build_config({"model.recipe": recipe, "model.dtype": dtype}).model
                 for dtype in ("float32", "bfloat16")]
        assert find_dtype(knobs[0]) is torch.float32
        if recipe not in RECIPES:
            assert find_dtype(knobs[1]) is torch.bfloat16
            continue
        with pytest.raises(ConfigError, match=f"model.dtype is 'bfloat16', and model.recipe '{recipe}' quantizes a "
                                              "float32 model; set model.dtype to 'float32', or compress"):
            find_dtype(knobs[1])


def test_frames_and_radii_may_be_empty_together():
    config = build_config({"footprint.frames": [], "footprint.radii_m": []})
    assert config.footprint.frames == ()
    again = build_config({"footprint.frames": ["hand"], "footprint.radii_m": [0.1]}, config)
    assert (again.footprint.frames, again.footprint.radii_m) == (("hand",), (0.1,))


def test_whole_numbers_pass_for_floats():
    value = build_config({"control.command_hz": 30}).control.command_hz
    assert value == 30.0 and isinstance(value, float)


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().prune.layer = 3


def test_every_error_is_one_of_ours():
    assert issubclass(ConfigError, SqapError)
