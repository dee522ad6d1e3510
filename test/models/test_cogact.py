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

"""CogACT from a folder to metres: the original's actions, and what compression and pruning may change."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sqap_vla_ros.config import build_config
from sqap_vla_ros.data import Observation
from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.models.cogact import CogActConfig
from sqap_vla_ros.models.diffusion import ActionModel
from sqap_vla_ros.models.dit import Dit, DitConfig
from sqap_vla_ros.models.llama_tokenizer import EMPTY_ID, EOS_ID
from sqap_vla_ros.models.pictures import prepare_picture
from sqap_vla_ros.models.random_tokenizer import write_tokenizer
from sqap_vla_ros.models.registry import describe_checkpoint, hash_checkpoint, load_checkpoint, load_model
from sqap_vla_ros.models.vla import Later, ModelSettings, VlaModel
from sqap_vla_ros.policy.compression import compress_checkpoint
from sqap_vla_ros.policy.policy import Policy, build_policy, token_grids
from sqap_vla_ros.pruning.pruner import Pruner, draw_seed
from sqap_vla_ros.quantization.quantize import RECIPES, quantize_
from sqap_vla_ros.quantization.rotation import rotate_

DIT = DitConfig(2, 24, 3, chunk_steps=4, action_size=7, cognition_size=32)
UNCONDITION = "net.z_embedder.uncondition"
TEXT = "pick up the red block"
LOW, HIGH = [-0.1, -0.2, -0.3, -0.4, -0.5, -0.6, 0.0], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0]
STATISTICS = {"action": {"q01": LOW, "q99": HIGH, "mask": [True] * 6 + [False], "mean": [0.0] * 7}}
COARSE = {"action": {"q01": [-1.0] * 7, "q99": [1.0] * 7}}


def head_tensors(config=DIT, seed=0):
    """An action model's tensors by CogACT's names, large enough that each counts."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tensors = {f"net.{name}": 0.2 * torch.randn_like(tensor) for name, tensor in Dit(config).state_dict().items()}
        return {**tensors, UNCONDITION: torch.randn(1, config.cognition_size),
                "net.history_embedder.linear.weight": torch.zeros(config.hidden_size, 7),
                "net.history_embedder.linear.bias": torch.zeros(config.hidden_size)}


@pytest.fixture(scope="module")
def published(tmp_path_factory, tiny_vlm, native_run):
    """A run with random weights and random gains of norms; no test changes it."""
    folder = tmp_path_factory.mktemp("cogact") / "run"
    vlm = tiny_vlm(replace(tiny_vlm().config, vocabulary_size=32064))
    for name, parameter in vlm.named_parameters():
        if name.startswith("decoder.") and "norm" in name:
            parameter.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(len(name)))
    native_run(folder, vlm, head_tensors())
    write_tokenizer(folder)
    edit(folder, "config.json", action_model_type="DiT-B", future_action_window_size=3, past_action_window_size=0,
         action_dim=7, use_ema=False)
    edit(folder, "architecture.json", dit={"heads": 3})
    (folder / "dataset_statistics.json").write_text(json.dumps({"own": STATISTICS}))
    return folder


@pytest.fixture
def unclipped(monkeypatch):
    """Samples of weights that were never trained are large, and clipping would hide what becomes of them."""
    monkeypatch.setattr("sqap_vla_ros.models.cogact.clip_actions", lambda samples: samples)


@pytest.fixture
def folder(published, tmp_path):
    """A copy of it to change."""
    return shutil.copytree(published, tmp_path / "run")


def edit(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_head(folder, change):
    path, = (folder / "checkpoints").iterdir()
    parts = torch.load(path, weights_only=True)
    change(parts["model"])
    torch.save(parts, path)


def draw_picture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def observe(seed=0, text=TEXT):
    return Observation(5, (draw_picture(seed),), text, (None,))


def make_policy(model, **knobs):
    config = build_config({"prune.layer": 0, **{f"prune.{name}": value for name, value in knobs.items()}})
    pruner = None if config.prune.rule == "none" else Pruner(config.prune, token_grids(model))
    return Policy(model, config, pruner, None, torch.device("cpu"))


def act(model, observation=None, **knobs):
    """(T, D) metres and radians, of a policy that keeps every token unless knobs say otherwise."""
    return make_policy(model, **(knobs or {"rule": "none"})).infer(observation or observe()).chunk.steps


def sample(model, seed=3):
    """(1, T, D) normalised, in the type of the model's weights."""
    dtype = model.projector.last.weight.dtype
    pixels, ids = prepare_picture(draw_picture(), model.image_spec)[0].to(dtype), model.tokenize(TEXT)
    sequence = model.build_sequence(model.encode_images(pixels, ids), ids)
    with torch.no_grad():
        hidden = model.decoder(sequence.embeddings, sequence.positions, tail=model.action_tokens)
        return model.predict_actions(hidden, Later(sequence, None, None, seed, lambda stage: None))


def cosine(a, b):
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def test_actions_are_the_originals(oracles, monkeypatch):
    run, expected = oracles / "cogact" / "run", load_file(oracles / "cogact" / "reference_float32.safetensors")
    model = load_checkpoint(run, settings=ModelSettings("bridge_orig")).model
    draws, seen = [], []

    def draw_noise(self, schedule, generator, batch=1):
        draws.append((schedule.draws, batch, generator.device.type))
        return expected["noise"][None]

    monkeypatch.setattr(ActionModel, "draw_noise", draw_noise)
    model.decoder.register_forward_hook(lambda module, args, hidden: seen.append(hidden))
    rgb = np.asarray(Image.open(oracles / "cogact" / "image.png").convert("RGB"))
    steps = act(model, Observation(5, (rgb,), "Move sponge near apple", (None,)))
    assert draws == [(1, 1, "cpu")] and seen[0].shape == (1, 1, 64)
    torch.testing.assert_close(seen[0][:, 0], expected["cognition"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(steps, expected["ddim10_cfg15_actions"].numpy(), atol=1e-5, rtol=0)


def test_a_run_becomes_a_model_of_the_protocol(published):
    model = load_model(published)
    assert isinstance(model, VlaModel) and not model.training and model.lm_head is None
    assert (model.family, model.cameras, model.state_size, model.grid) == ("cogact", ("main",), 0, (4, 4))
    assert model.tokenize(TEXT)[-2:] == [EMPTY_ID, EOS_ID]
    assert model.action_spec.mask == (True,) * 6 + (False,) and model.action_spec.chunk_steps == 4
    assert {*model.float_reasons(), "decoder"} == {name for name, _ in model.named_children()}
    assert len(model.quantizable_linears()) == 14 and model.config.dit == DIT
    for name, tensor in head_tensors().items():
        if name != UNCONDITION and "history" not in name:
            assert torch.equal(model.action_model.get_parameter(name), tensor)
    make_policy(model).warm_up()


def test_un_normalisation_is_by_the_chosen_data_set(folder):
    (folder / "dataset_statistics.json").write_text(json.dumps({"own": STATISTICS, "other": COARSE}))
    own, other = (act(load_checkpoint(folder, settings=ModelSettings(name)).model) for name in ("own", "other"))
    np.testing.assert_allclose(own[:, :6], other[:, :6] * HIGH[:6], atol=1e-12)
    assert set(own[:, 6]) <= {0.0, 1.0} and np.abs(other[:, :6]).max() <= 1.0


def test_noise_is_the_pictures_own(published):
    model = load_model(published)
    first, again, other = (act(model, observe(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and np.abs(first - other).max() > 0.01
    assert (sample(model, 3) - sample(model, 4)).abs().max() > 0.01


@pytest.mark.parametrize(("settings", "draws"), [
    ({"sampler_steps": 0}, 100), ({"sampler_steps": 5}, 1), ({"guidance": 1.0}, 1)])
def test_the_sampler_is_chosen(published, unclipped, monkeypatch, settings, draws):
    noises, denoise = [], ActionModel.sample
    monkeypatch.setattr(ActionModel, "sample", lambda self, cognition, noise, *args, **kwargs: noises.append(noise)
                        or denoise(self, cognition, noise, *args, **kwargs))
    usual, chosen = (act(load_checkpoint(published, settings=ModelSettings(**each)).model) for each in ({}, settings))
    assert [noise.shape for noise in noises] == [(1, 1, 4, 7), (draws, 1, 4, 7)]
    drawn = torch.randn(1, 1, 4, 7, generator=torch.Generator().manual_seed(draw_seed((draw_picture(),), 0)))
    assert torch.equal(noises[0], drawn) and np.abs(usual - chosen).max() > 1e-3


def test_the_action_model_computes_in_float32(published):
    model = load_checkpoint(published, dtype=torch.bfloat16).model
    dtypes = {name.split(".")[0]: tensor.dtype for name, tensor in model.state_dict().items()}
    assert dtypes.pop("action_model") == torch.float32 and set(dtypes.values()) == {torch.bfloat16}
    actions = sample(model)
    assert actions.dtype == torch.float32 and cosine(actions.numpy(), sample(load_model(published)).numpy()) > 0.9


def test_averaged_weights_are_left_where_they_are(folder):
    before = sample(load_model(folder))
    change_head(folder, lambda parts: parts.update(ema_diffusion={"net.odd": torch.full((2,), torch.nan)}))
    assert torch.equal(sample(load_model(folder)), before)
    assert not any("ema" in name for name in describe_checkpoint(folder).tensors)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_a_rotated_model_acts_the_same(published, unclipped, guidance):
    model = load_checkpoint(published, settings=ModelSettings(guidance=guidance)).model.double()
    before, linear = sample(model), model.action_model.net.z_embedder.linear
    weight = linear.weight.clone()
    assert before.dtype == torch.float64 and before.abs().max() > 1.0
    rotate_(model.rotation_sites(), 3)
    assert (linear.weight - weight).abs().max() > 0.1
    torch.testing.assert_close(sample(model), before, atol=1e-9, rtol=0)


def test_without_its_sites_in_the_head_it_would_not(published, unclipped):
    model = load_model(published).double()
    before, sites = sample(model), model.rotation_sites()
    *readers, last = sites.readers
    assert last.linears == (model.action_model.net.z_embedder.linear,)
    rotate_(replace(sites, readers=(*readers, replace(last, linears=()))), 3)
    assert (sample(model) - before).abs().max() > 1e-2


def test_a_compressed_run_acts_the_same_without_the_original(folder, tmp_path, unclipped):
    model, plain = load_model(folder), act(load_model(folder))
    quantize_(model, RECIPES["w4a4-rtn"])
    expected, config = act(model), model.config.to_json()
    compress_checkpoint(folder, tmp_path / "out", "w4a4-rtn")
    shutil.rmtree(folder)
    found = load_checkpoint(tmp_path / "out")
    assert np.array_equal(act(found.model), expected) and np.abs(expected - plain).max() > 1e-3
    assert json.loads(json.dumps(found.model.config.to_json())) == json.loads(json.dumps(config))
    assert found.model.config == replace(model.config, statistics=found.model.config.statistics)
    assert sorted(found.artifact.files) == ["tokenizer.json"]
    assert "action_model" in found.artifact.float_reasons and len(found.artifact.structure.linears) == 14
    half = load_checkpoint(tmp_path / "out", dtype=torch.bfloat16).model
    assert half.embed_tokens.weight.dtype == torch.bfloat16
    for name, tensor in half.action_model.state_dict().items():
        assert torch.equal(tensor, found.model.action_model.state_dict()[name]), name
    assert cosine(sample(half).numpy(), sample(found.model).numpy()) > 0.99


def test_half_of_the_tokens_do(published, unclipped, monkeypatch):
    model = load_model(published)
    noise = torch.randn(1, 1, 4, 7, generator=torch.Generator().manual_seed(3))
    # One noise for all, of which actions of untrained weights are mostly made: what is left is what was seen.
    monkeypatch.setattr(ActionModel, "draw_noise", lambda self, schedule, generator, batch=1: noise)
    whole, other = (act(model, observe(seed)) for seed in (0, 1))
    inference = make_policy(model, pruned_ratio=0.5).infer(observe())
    model.decoder.register_forward_hook(lambda module, args, hidden: torch.zeros_like(hidden))
    blind = act(model)
    near, far = (cosine(steps - blind, whole - blind) for steps in (inference.chunk.steps, other))
    print(f"cosine to the actions of all tokens: {near:.4f}; of another picture: {far:.4f}")
    assert len(inference.tokens[0].kept) == 8 and np.isfinite(inference.chunk.steps).all()
    assert 0.0 < 1.0 - near < 0.5 * (1.0 - far) and near > 0.98
    assert list(inference.times.milliseconds) == ["preprocess", "vision", "llm", "head"]


def test_keeping_every_token_is_not_pruning(published, unclipped):
    model = load_model(published)
    assert np.array_equal(act(model, pruned_ratio=0.0), act(model))


def test_a_policy_is_built_of_a_folder(published):
    policy = build_policy(build_config({"model.checkpoint": str(published), "model.recipe": "w4a4-rtn",
                                        "prune.layer": 1}))
    assert policy.infer(observe()).chunk.steps.shape == (4, 7)
    assert (policy.describe()["family"], policy.describe()["total_tokens"]) == ("cogact", 16)


def test_a_run_is_described_and_hashed_without_its_weights(folder, monkeypatch):
    monkeypatch.setattr("sqap_vla_ros.models.shards.TensorFiles.read", None)
    facts = describe_checkpoint(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in facts.model.state_dict().items()}
    assert {name: shape for name, (_, shape) in facts.tensors.items()} == shapes
    assert {kind for kind, _ in facts.tensors.values()} == {"F32"}
    assert {parameter.device.type for parameter in facts.model.parameters()} == {"meta"}
    assert facts.companions == {"tokenizer.json": folder / "tokenizer.json"}
    names = {"config.json", "architecture.json", "dataset_statistics.json", "tokenizer.json", "checkpoints/step-1.pt"}
    hashes = hash_checkpoint(folder)
    assert facts.file_bytes.keys() == hashes.keys() == names
    edit(folder, "dataset_statistics.json", other=COARSE)
    assert [name for name, value in hash_checkpoint(folder).items() if value != hashes[name]] == [
        "dataset_statistics.json"]


def test_a_tokenizer_may_lie_beside_a_run(folder):
    (folder.parent / "tokenizer").mkdir()
    (folder / "tokenizer.json").rename(folder.parent / "tokenizer" / "tokenizer.json")
    assert load_model(folder).tokenize(TEXT)[-1] == EOS_ID
    assert "tokenizer.json" in hash_checkpoint(folder)


@pytest.mark.parametrize(("width", "named", "heads"), [(384, "DiT-T", 4), (384, None, 4), (768, None, 12)])
def test_heads_follow_from_the_width(folder, width, named, heads):
    change_head(folder, lambda parts: parts.update(action_model=head_tensors(replace(DIT, depth=1, hidden_size=width))))
    edit(folder, "config.json", action_model_type=named)
    edit(folder, "architecture.json", dit={})
    assert describe_checkpoint(folder).model.config.dit == DitConfig(1, width, heads, 4, 7, 32)
    edit(folder, "config.json", action_model_type="DiT-L")
    with pytest.raises(CheckpointError, match=f"action_model_type DiT-L, but by the .* 1 blocks, {width} wide"):
        load_model(folder)


def put_head(**tensors):
    """A change of a run: tensors of the head by their names behind "net.", None to leave one out."""
    named = {f"net.{name.replace('__', '.')}": tensor for name, tensor in tensors.items()}

    def change(parts):
        parts["action_model"] = {name: tensor for name, tensor in {**parts["action_model"], **named}.items()
                                 if tensor is not None}

    return lambda folder: change_head(folder, change)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda f: edit(f, "config.json", past_action_window_size=2), r"past_action_window_size 2, and .* trained with 0"),
    (lambda f: edit(f, "config.json", use_ema=True), r"has use_ema true, .* set it to false"),
    (lambda f: edit(f, "config.json", future_action_window_size=15), r"future_action_window_size 15, but .* it is 3"),
    (lambda f: edit(f, "config.json", action_dim=8), r"has action_dim 8, but by the tensors in '.*step-1\.pt' it is 7"),
    (lambda f: edit(f, "architecture.json", dit={"heads": "three"}), r"'three' as dit\.heads, .* a whole number"),
    (lambda f: edit(f, "architecture.json", dit={"heads": 5}), r"step-1\.pt': .*24 wide, which 5 attention heads"),
    (lambda f: edit(f, "architecture.json", dit={}), r"24 wide, .* give it in architecture\.json, dit\.heads"),
    (lambda f: change_head(f, lambda parts: parts.pop("action_model")), r"step-1\.pt' has no action model"),
    (put_head(z_embedder__uncondition=None), r"z_embedder\.uncondition, which guidance needs, is missing"),
    (put_head(blocks__1__mlp__fc1__bias=None), r"'action_model' lacks tensors: blocks\.1\.mlp\.fc1\.bias"),
    (put_head(z_embedder__linear__weight=torch.zeros(24, 40), z_embedder__uncondition=torch.zeros(1, 40)),
     r"for hidden states of 40 numbers, .* must be of 32"),
    (put_head(x_embedder__linear__weight=torch.zeros(24, 6), final_layer__linear__weight=torch.zeros(6, 24),
              final_layer__linear__bias=torch.zeros(6)), r"has action_dim 7, but .* it is 6"),
    (put_head(blocks__0__attn__proj__bias=torch.full((24,), torch.nan)), r"proj\.bias' .* values that are not finite"),
    (lambda f: (f / "tokenizer.json").unlink(), r"has no 'tokenizer\.json'"),
    (lambda f: (f / "tokenizer.json").write_text("{}"), r"tokenizer\.json' is not readable as a tokenizer"),
    (lambda f: (f / "dataset_statistics.json").unlink(), r"does not tell what its actions mean"),
    (lambda f: (f / "dataset_statistics.json").write_text('{"own": {"action": {"q01": [0.0], "q99": [1.0]}}}'),
     r"dataset_statistics\.json' tells of actions of 1 numbers, and the action model's have 7"),
    (lambda f: shutil.rmtree(f / "checkpoints"), r"no published checkpoint"),
])
def test_bad_runs_are_refused(folder, monkeypatch, damage, message):
    damage(folder)
    monkeypatch.setattr("sqap_vla_ros.models.cogact.load_prismatic_", None)  # what is large is not begun to be read
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


@pytest.mark.parametrize(("settings", "message"), [
    ({"dataset": "mars"}, r"no data set 'mars' .* knows own"),
    ({"sampler_steps": 30}, r"cannot take 30 .* 50, 100; 0 is DDPM"),
    ({"guidance": 0.5}, r"guidance is 0\.5; 1 is none"),
    ({"guidance": float("nan")}, r"guidance is nan")])
def test_settings_it_cannot_have_are_refused(published, monkeypatch, settings, message):
    monkeypatch.setattr("sqap_vla_ros.models.shards.TensorFiles.read", None)
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(published, settings=ModelSettings(**settings))


def test_several_data_sets_want_a_choice(folder):
    edit(folder, "dataset_statistics.json", other=COARSE)
    assert describe_checkpoint(folder).family == "cogact"
    with pytest.raises(ConfigError, match=r"no data set is named .* knows own, other"):
        load_model(folder)


def test_a_description_survives_json(published):
    config = describe_checkpoint(published).model.config
    values = json.loads(json.dumps(config.to_json()))
    assert values["datasets"]["own"]["action"].keys() == {"q01", "q99", "mask"}
    assert CogActConfig.from_json(values).to_json() == config.to_json()
    for broken in ({}, {**values, "prompt": "poem"}, {**values, "dit": {"depth": 1}}, {**values, "datasets": None}):
        with pytest.raises(CheckpointError, match=r"config\.json of a CogACT checkpoint is not usable"):
            CogActConfig.from_json(broken)
    for size, message in (({"cognition_size": 40}, "hidden states of 40 numbers"), ({"action_size": 8}, "8 numbers")):
        with pytest.raises(CheckpointError, match=message):
            CogActConfig.from_json({**values, "dit": {**values["dit"], **size}})
