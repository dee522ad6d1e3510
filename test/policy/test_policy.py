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

"""The wiring: one observation through preprocess, vision, pruned and quantized decoder, and head."""

import dataclasses

import numpy as np
import pytest
import torch

from sqap_vla_ros.config import build_config
from sqap_vla_ros.data import Observation, RobotFootprint, TokenRule
from sqap_vla_ros.errors import CheckpointError, ConfigError, InferenceError, InputError
from sqap_vla_ros.knobs import InputKnobs
from sqap_vla_ros.models.demo import DemoVla
from sqap_vla_ros.models.own_format import save_model
from sqap_vla_ros.models.pictures import map_picture, prepare_picture
from sqap_vla_ros.models.registry import describe_checkpoint, load_model
from sqap_vla_ros.models.vla import ModelSettings
from sqap_vla_ros.policy import compression
from sqap_vla_ros.policy.compression import compress_checkpoint
from sqap_vla_ros.policy.observations import write_observations
from sqap_vla_ros.policy.policy import build_policy
from sqap_vla_ros.policy.preprocess import unnormalize_actions
from sqap_vla_ros.policy.wiring import check_arm
from sqap_vla_ros.quantization.linear import QuantLinear
from sqap_vla_ros.quantization.recipe import RECIPES, W4A4, MixedWidths
from sqap_vla_ros.quantization.rotation import RotationPlan

STAMP, TEXT = 1_234_567_890_123_456_789, "pick up the red block"
# Tokens of the 8 x 8 grid have 4 px: these discs lie within token (2, 3) and within token (5, 1).
HAND = RobotFootprint(("hand",), np.array([[13.5, 9.5]]), np.array([1.9]))
FINGER = RobotFootprint(("finger",), np.array([[5.5, 21.5]]), np.array([1.9]))


@pytest.fixture
def build(tiny_demo, tmp_path):
    def build(model=None, **knobs):
        save_model(model or tiny_demo(), tmp_path / "checkpoint")
        values = {"model.checkpoint": str(tmp_path / "checkpoint"), "model.recipe": "float", "prune.layer": 0,
                  "prune.pruned_ratio": 0.5}
        return build_policy(build_config({**values, **{key.replace("__", "."): value for key, value in knobs.items()}}))
    return build


def observe(footprint=None, size=32, text=TEXT, seed=0):
    rgb = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Observation(STAMP, (rgb,), text, (footprint,))


def test_without_compression_it_is_the_model_itself(build, tiny_demo):
    policy, model = build(prune__rule="none", control__step_period_s=0.05), tiny_demo()
    inference = policy.infer(observe())
    with torch.inference_mode():
        pixels, _ = prepare_picture(observe().images[0], model.image_spec)
        sequence = model.build_sequence(model.encode_images(pixels), model.tokenize(TEXT))
        actions = model.predict_actions(model.decoder(sequence.embeddings, sequence.positions, tail=1))
        whole = model.predict_actions(model.decoder(sequence.embeddings, sequence.positions))
    torch.testing.assert_close(actions, whole, atol=1e-5, rtol=1e-5)
    assert inference.chunk.stamp_ns == STAMP
    assert inference.chunk.step_period_ns == 50_000_000
    assert inference.chunk.steps.shape == (4, 7)
    np.testing.assert_array_equal(inference.chunk.steps, unnormalize_actions(actions[0].numpy(), model.action_spec))
    (tokens,) = inference.tokens
    assert tokens.grid == (8, 8)
    assert tokens.kept.tolist() == list(range(64))
    assert tokens.count(TokenRule.UNPRUNED) == 64


def test_every_stage_is_timed(build):
    times = build().infer(observe(HAND)).times
    assert list(times.milliseconds) == ["preprocess", "vision", "llm", "head"]
    assert all(0.0 < value < 10_000 for value in times.milliseconds.values())
    assert times.total_ms == pytest.approx(sum(times.milliseconds.values()))


def test_the_robot_in_the_picture_is_kept(build):
    policy = build(prune__pruned_ratio=0.75)
    for footprint, token in ((HAND, 2 * 8 + 3), (FINGER, 5 * 8 + 1)):
        (tokens,) = policy.infer(observe(footprint)).tokens
        assert token in tokens.kept
        assert len(tokens.kept) == len(tokens.rules) == 16
        assert (np.diff(tokens.kept) > 0).all()
        # Attention may have taken the token before the robot's turn came.
        assert tokens.rules[list(tokens.kept).index(token)] in (TokenRule.ROBOT, TokenRule.ATTENTION)
        assert tokens.count(TokenRule.ROBOT) <= 1
        assert tokens.count(TokenRule.UNPRUNED) == 0


def test_a_footprint_is_in_camera_pixels(build):
    # The same place in a picture three times as large.
    policy = build(prune__attention_ratio=0.0)
    large = RobotFootprint(HAND.frames, (HAND.centers_px + 0.5) * 3 - 0.5, HAND.radii_px * 3)
    for footprint, size in ((HAND, 32), (large, 96)):
        (tokens,) = policy.infer(observe(footprint, size)).tokens
        assert tokens.kept[tokens.rules == TokenRule.ROBOT].tolist() == [2 * 8 + 3]


def test_the_image_map_is_that_of_preprocessing(build):
    policy = build()
    for width, height in ((32, 32), (64, 48)):
        used = map_picture(width, height, policy.model.image_spec)
        np.testing.assert_array_equal(policy.image_map(width, height).matrix, used.matrix)


def test_without_footprint_the_other_rules_fill_the_budget(build):
    (tokens,) = build().infer(observe(None)).tokens
    assert len(tokens.kept) == 32
    assert tokens.count(TokenRule.ROBOT) == 0
    assert tokens.count(TokenRule.ATTENTION) + tokens.count(TokenRule.COVERAGE) == 32


def test_pruning_nothing_changes_nothing(build):
    plain = build(prune__rule="none").infer(observe(HAND))
    full = build(prune__pruned_ratio=0.0).infer(observe(HAND))
    np.testing.assert_array_equal(plain.chunk.steps, full.chunk.steps)
    assert full.tokens[0].kept.tolist() == list(range(64))
    half = build(prune__pruned_ratio=0.5).infer(observe(HAND))
    assert np.abs(half.chunk.steps - plain.chunk.steps).max() > 0.0


def test_the_same_observation_gives_the_same_actions(build):
    knobs = {"model__recipe": "w4a4-rtn"}
    first, second = build(**knobs), build(**knobs)
    expected = first.infer(observe(HAND)).chunk.steps
    first.infer(observe(FINGER, seed=1))
    np.testing.assert_array_equal(first.infer(observe(HAND)).chunk.steps, expected)
    np.testing.assert_array_equal(second.infer(observe(HAND)).chunk.steps, expected)
    assert np.abs(first.infer(observe(HAND, text="pick up the blue block")).chunk.steps - expected).max() > 0.0


def test_both_engines_agree_and_stay_near_the_float_model(build):
    plain = build(prune__rule="none").infer(observe()).chunk.steps
    found = {}
    for recipe in ("w4a4-rtn", "w8a8"):
        for engine in ("cpu", "reference"):
            policy = build(prune__rule="none", model__recipe=recipe, model__engine=engine)
            layers = [module for module in policy.model.modules() if isinstance(module, QuantLinear)]
            assert len(layers) == 3 * 7
            assert {layer.engine.name for layer in layers} == {engine}
            found[recipe, engine] = policy.infer(observe()).chunk.steps
    for recipe, decibels in (("w4a4-rtn", 25.0), ("w8a8", 45.0)):
        np.testing.assert_allclose(found[recipe, "cpu"], found[recipe, "reference"], atol=1e-6)
        error = found[recipe, "cpu"] - plain
        assert 10 * np.log10((plain**2).sum() / (error**2).sum()) > decibels


def test_it_tells_what_runs(build):
    linears = 4 * sum(module.weight.numel() for module in build().model.quantizable_linears().values())
    plain = build().describe()
    assert plain == {"family": "demo", "recipe": "float", "engine": "float32", "device": "cpu",
                     "weight_bytes": linears, "float32_bytes": linears, "kept_tokens": 32, "total_tokens": 64}
    small = build(model__recipe="w4a4-rtn", prune__rule="none").describe()
    assert (small["recipe"], small["engine"], small["kept_tokens"]) == ("w4a4-rtn", "cpu", 64)
    assert small["float32_bytes"] == linears
    # Four bits of thirty-two, and one scale per output channel.
    assert linears / 8 < small["weight_bytes"] < linears / 8 + linears / 32


def test_actions_that_are_not_finite_hold_the_robot(build):
    policy = build()
    with torch.no_grad():
        policy.model.head_fc2.bias[9] = torch.nan
    with pytest.raises(InferenceError, match="the predicted action has 1 of 28 values that are not finite"):
        policy.infer(observe(HAND))
    with pytest.raises(InferenceError, match="grey picture"):
        policy.warm_up()


def test_warming_up_finds_a_model_that_answers_otherwise_than_it_says(build):
    policy = build(model__recipe="w4a4-rtn")
    policy.warm_up()
    policy.model.predict_actions = lambda hidden, later: torch.zeros(1, 3, 7)
    with pytest.raises(InferenceError, match=r"shape \(1, 3, 7\); its specification says \(1, 4, 7\)"):
        policy.warm_up()


@pytest.mark.parametrize(("text", "words"), [
    ("", "empty"), ("  ", "empty"), ("pick up the green block", "'green'"), ("pick " * 60, "300 characters; 256")])
def test_instructions_that_cannot_be_followed(build, text, words):
    policy = build()
    with pytest.raises(InputError, match=words):
        policy.check_instruction(text)
    with pytest.raises(InputError, match=words):
        policy.infer(observe(text=text))
    policy.check_instruction(TEXT)


def test_observations_that_cannot_be_used(build):
    policy, good = build(), observe(HAND)
    for change, words in (({"images": good.images * 2}, "2 pictures, and the model sees 1; .*: main"),
                          ({"footprints": ()}, "1 pictures came with 0 footprints"),
                          ({"images": (good.images[0].astype(np.float32),)}, "uint8 array"),
                          ({"state": np.zeros(7)}, "the model reads none")):
        with pytest.raises(InputError, match=words):
            policy.infer(dataclasses.replace(good, **change))


@pytest.mark.parametrize(("name", "value", "words"), [
    ("prune__layer", 3, "prune.layer is 3 and the decoder has 3 layers"),
    ("model__device", "nonsense", "no torch device"), ("model__device", "meta", "allowed are cpu and cuda"),
    ("model__device", "cuda:99", "torch sees")])
def test_knobs_that_do_not_fit(build, name, value, words):
    with pytest.raises(ConfigError, match=words):
        build(**{name: value})


def test_any_layer_goes_when_nothing_is_pruned(build):
    assert build(prune__rule="none", prune__layer=200).infer(observe()).chunk.steps.shape == (4, 7)


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        build_policy(build_config({"model.checkpoint": str(tmp_path / "nowhere")}))


def test_actions_of_any_number_are_inferred_and_one_arm_moved_by_seven(build, tiny_demo):
    other = tiny_demo()
    action = dataclasses.replace(other.action_spec, low=(0.0,) * 14, high=(1.0,) * 14, mask=(True,) * 14)
    other = type(other)(dataclasses.replace(other.config, action=action))
    policy = build(model=other)
    policy.warm_up()
    assert policy.infer(observe(HAND)).chunk.steps.shape == (4, 14)
    with pytest.raises(CheckpointError, match="14 dimensions; to move one arm 7 are needed: x, y, z"):
        check_arm(policy.model, InputKnobs())
    check_arm(build().model, InputKnobs())


def test_answers_of_one_step_each_cannot_be_blended(build, tiny_demo):
    ensemble = {"control__ensemble_horizon": 2, "control__execute_steps": 1}
    with pytest.raises(ConfigError, match="decides one step at a time, so no two of its answers are for the same"):
        build(model=tiny_demo(chunk_steps=1), **ensemble)
    build(model=tiny_demo(chunk_steps=2), **ensemble)


@pytest.mark.parametrize(("strategy", "preset", "words"), [
    ("fold", "none", "strategy of pictures must be one of resize-naive, .* got 'fold'"),
    ("resize-naive", "droid", "picture preset must be one of none, .* got 'droid'")])
def test_pictures_that_nobody_knows_to_prepare(build, tiny_demo, monkeypatch, strategy, preset, words):
    model = tiny_demo()
    model.image_spec = dataclasses.replace(model.image_spec, strategy=strategy)
    model.choose(ModelSettings(pictures=preset))
    described = describe_checkpoint
    monkeypatch.setattr("sqap_vla_ros.policy.policy.describe_checkpoint",
                        lambda folder, **how: dataclasses.replace(described(folder, **how), model=model))
    with pytest.raises(ConfigError, match=words):
        build()


def compress(tiny_demo, tmp_path, recipe="w4a4-rtn", **more):
    """A compressed checkpoint, and knobs that run it."""
    save_model(tiny_demo(), tmp_path / "float")
    compress_checkpoint(tmp_path / "float", tmp_path / recipe, recipe, **more)
    return {"model__checkpoint": str(tmp_path / recipe), "model__recipe": "stored"}


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_compressed_checkpoint_does_what_compressing_at_start_does(build, tiny_demo, tmp_path, engine):
    stored = build(**compress(tiny_demo, tmp_path), model__engine=engine)
    fresh = build(model__recipe="w4a4-rtn", model__engine=engine)
    for observation in (observe(HAND), observe(FINGER, seed=1)):
        ours, theirs = (policy.infer(observation) for policy in (stored, fresh))
        np.testing.assert_array_equal(ours.chunk.steps, theirs.chunk.steps)
        np.testing.assert_array_equal(ours.tokens[0].kept, theirs.tokens[0].kept)
    assert stored.describe() == fresh.describe() | {"recipe": "stored", "stored_recipe": "w4a4-rtn"}
    assert {module.engine.name for module in stored.model.modules() if isinstance(module, QuantLinear)} == {engine}


def test_compressed_checkpoint_runs_without_the_float_one(build, tiny_demo, tmp_path):
    knobs = compress(tiny_demo, tmp_path)
    (tmp_path / "float/model.safetensors").unlink()
    policy = build(**knobs)
    policy.warm_up()
    assert policy.infer(observe(HAND)).chunk.steps.shape == (4, 7)


@pytest.mark.parametrize("recipe", ["float", "w4a4-rtn", "w8a8"])
def test_compressed_checkpoint_takes_no_other_recipe(build, tiny_demo, tmp_path, recipe):
    knobs = compress(tiny_demo, tmp_path)
    with pytest.raises(ConfigError, match=rf"compressed with the recipe 'w4a4-rtn', and model\.recipe is '{recipe}'; "
                                          r"set model\.recipe to 'stored' .* made from, '.*float'"):
        build(**{**knobs, "model__recipe": recipe})


def test_float_checkpoint_is_not_stored_compressed(build):
    with pytest.raises(ConfigError, match=r"is a float one; set model\.recipe to 'float' .* or to one of w4a4, "):
        build(model__recipe="stored")


@pytest.mark.parametrize("recipe", ["w4a4", "w4a8", "smoothquant-w8a8", "qvla-4bit"])
def test_recipes_that_must_see_observations_name_the_way(build, recipe):
    with pytest.raises(ConfigError, match=rf"'{recipe}' must see observations, .*: `sqap compress .*checkpoint OUT "
                                          rf"--recipe {recipe} --calibration DIR`, then set model\.checkpoint to OUT"):
        build(model__recipe=recipe)


def test_packaged_checkpoint_may_bring_its_observations(build, tiny_demo, tmp_path, monkeypatch):
    for module in ("registry.ASSETS", "registry.PACKAGED"):
        monkeypatch.setattr(f"sqap_vla_ros.models.{module}", tmp_path if "ASSETS" in module else ("small",))
    monkeypatch.setattr(compression, "PACKAGED", ("small",))
    save_model(tiny_demo(), tmp_path / "small")
    with pytest.raises(ConfigError, match="'small' comes without"):
        build(model__checkpoint="small", model__recipe="w4a4")
    write_observations(tmp_path / "small/calibration", [(observe(seed=index).images[0], TEXT) for index in range(3)])
    policy = build(model__checkpoint="small", model__recipe="w4a4")
    compress_checkpoint("small", tmp_path / "out", "w4a4")
    stored = build(model__checkpoint=str(tmp_path / "out"), model__recipe="stored")
    np.testing.assert_array_equal(policy.infer(observe(HAND)).chunk.steps, stored.infer(observe(HAND)).chunk.steps)
    nearest = build(model__checkpoint="small", model__recipe="w4a4-rtn").infer(observe(HAND)).chunk.steps
    assert np.abs(policy.infer(observe(HAND)).chunk.steps - nearest).max() > 0.0
    assert torch.equal(load_model(tmp_path / "out").head_fc2.weight, tiny_demo().head_fc2.weight)


@pytest.mark.parametrize(("knobs", "words"), [
    ({"model__recipe": "stored"}, "which runs a compressed checkpoint"),
    ({"model__recipe": "w4a4"}, "must see observations"),
    ({"model__dtype": "bfloat16", "model__recipe": "w8a8"}, "model.dtype is 'bfloat16'"),
    ({"prune__layer": 3}, "prune.layer is 3"), ({"model__device": "abacus"}, "no torch device"),
    ({"model__robot": "aloha"}, "model.robot is 'aloha'"),
    ({"model__dataset": "kitchen"}, "model.dataset is 'kitchen'")])
def test_refusals_come_before_the_weights_are_read(build, monkeypatch, knobs, words):
    monkeypatch.setattr("sqap_vla_ros.policy.policy.load_checkpoint", None)
    with pytest.raises(ConfigError, match=words):
        build(**knobs)


def test_a_recipe_that_does_not_fit_is_refused_before_the_weights_are_read(build, monkeypatch):
    monkeypatch.setattr("sqap_vla_ros.policy.policy.load_checkpoint", None)
    for recipe, words in ((W4A4(group_size=48), "group_size"),
                          (W4A4(rotation=RotationPlan(stream_block=24)), "blocks of 24"),
                          (MixedWidths(act_bits=4), "writes actions as words")):
        monkeypatch.setitem(RECIPES, "w4a4-rtn", recipe)
        monkeypatch.setattr(DemoVla, "has_smooth_actions", recipe.mean_bits is None)
        with pytest.raises(ConfigError, match=words):
            build(model__recipe="w4a4-rtn")


def test_threads_are_set_once(build):
    build(model__threads=2)
    assert torch.get_num_threads() == 2
