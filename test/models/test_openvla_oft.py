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

"""OpenVLA-OFT from a folder with parts beside the weights to chunks of actions, for every kind of head."""

import json
import shutil
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sqap_vla_ros.config import build_config
from sqap_vla_ros.data import Observation, RobotFootprint, TokenRule
from sqap_vla_ros.errors import CheckpointError, ConfigError, InputError
from sqap_vla_ros.models.llama import Choice, PruneStep
from sqap_vla_ros.models.oft_config import OftConfig
from sqap_vla_ros.models.oft_diffusion import clipped_schedule, denoise_clipped, make_timesteps
from sqap_vla_ros.models.oft_heads import ChunkHead
from sqap_vla_ros.models.oft_presets import PRESETS
from sqap_vla_ros.models.oft_sequence import average_language
from sqap_vla_ros.models.proprio import TokenProjector, normalize_proprio
from sqap_vla_ros.models.random_tokenizer import write_tokenizer
from sqap_vla_ros.models.registry import describe_checkpoint, hash_checkpoint, load_checkpoint
from sqap_vla_ros.models.rope import apply_rope, rope_tables
from sqap_vla_ros.models.vla import Later, ModelSettings, VlaModel
from sqap_vla_ros.policy.compression import compress_checkpoint
from sqap_vla_ros.policy.observations import StoredObservation, calibrate
from sqap_vla_ros.policy.policy import build_policy
from sqap_vla_ros.policy.preprocess import prepare_pictures, prepare_state, unnormalize_actions
from sqap_vla_ros.quantization.quantize import W4A4, quantize_
from sqap_vla_ros.quantization.recipe import RECIPES
from sqap_vla_ros.quantization.rotation import rotate_

ROWS, WIDTH = 32064, 32
TEXT = "pick up the red block"


class Kind(NamedTuple):
    """What a folder holds beside the weights."""

    head: str = "l1"
    film: bool = False
    proprio: bool = True
    robot: str = "libero"

    def __str__(self):
        parts = [name for name in ("film", "proprio") if getattr(self, name)]
        return "-".join((self.robot, self.head, *parts))


KINDS = [Kind(head, both, both) for head in ("l1", "words", "diffusion") for both in (False, True)]
SOME = [Kind(), Kind("words", True, False), Kind("diffusion", True, True), Kind("l1", True, True, "aloha"),
        Kind("l1", False, False, "bridge")]
HEAD_NAMES = {"norm_in": "layer_norm1", "fc_in": "fc1", "norm_out": "layer_norm2", "fc_out": "fc2",
              **{f"blocks.{index}.{ours}": f"mlp_resnet_blocks.{index}.ffn.{theirs}" for index in (0, 1)
                 for theirs, ours in enumerate(("norm", "linear"))}}


def random_module(build, seed):
    """Tensors of a module with random weights, gains and biases among them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build().requires_grad_(False)
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.state_dict()


def write_film(folder):
    """Vision towers as OpenVLA-OFT saves them, other ones than the checkpoint's own."""
    stored = {}
    for path in folder.glob("model-*"):
        stored |= {name: tensor for name, tensor in load_file(path).items() if name.startswith("vision_backbone.")}
    generator, film = torch.Generator().manual_seed(7), {}
    for name, tensor in stored.items():
        before, blocks, after = name.partition(".blocks.")
        if not blocks:
            film[name] = 1.1 * tensor
            continue
        index, _, rest = after.partition(".")
        block = f"{before}.blocks.{index}"
        film[f"{block}.block.{rest}"] = 1.1 * tensor
        if rest == "norm1.weight":
            for kind in ("scale", "shift"):
                film[f"{block}.{kind}.weight"] = torch.randn(len(tensor), WIDTH, generator=generator)
                film[f"{block}.{kind}.bias"] = 0.1 * torch.randn(len(tensor), generator=generator)
    torch.save(film, folder / "vision_backbone--50_checkpoint.pt")


def make_statistics(preset):
    """Ends that are all different."""
    def ends(size, gripper):
        high = (1.0 + np.arange(size) / 10).tolist()
        low = [-0.5 * value for value in high]
        mask = {"mask": [True] * (size - 1) + [False]} if gripper else {}
        return {"q01": low, "q99": high, "min": [2 * value for value in low], "max": [2 * value for value in high],
                **mask}

    return {"action": ends(preset.action_dims, True), "proprio": ends(preset.proprio_dims, False)}


def edit(folder, name="config.json", **values):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture(scope="module")
def publish(tmp_path_factory, tiny_vlm, hf_folder):
    """Writer of folders with random weights, each made once; no test changes them."""
    made = {}

    def write(kind):
        folder, preset = tmp_path_factory.mktemp("oft") / "published", PRESETS[kind.robot]
        model = tiny_vlm(replace(tiny_vlm().config, vocabulary_size=ROWS))
        for linear in model.quantizable_linears().values():
            linear.weight.mul_(2.5)  # so that the layers add about as much as they are given
        hf_folder(folder, model)
        write_tokenizer(folder)
        edit(folder, model_type="openvla", norm_stats={"own": make_statistics(preset)})
        edit(folder, "architecture.json", robot=kind.robot, family="openvla-oft")
        if kind.film:
            write_film(folder)
        if kind.proprio:
            write_projector(folder, "proprio_projector", preset.proprio_dims, 1)
        if kind.head != "words":
            write_head(folder, kind.head, preset.action_dims)
        if kind.head == "diffusion":
            write_projector(folder, "noisy_action_projector", 1, 2)
        return folder

    return lambda kind: made.setdefault(kind, None) or made.update({kind: write(kind)}) or made[kind]


def write_projector(folder, name, inputs, seed):
    tensors = random_module(lambda: TokenProjector(inputs, WIDTH), seed)
    torch.save({f"module.{key}": tensor for key, tensor in tensors.items()}, folder / f"{name}--50_checkpoint.pt")


def write_head(folder, head, actions):
    tensors = {}
    for name, tensor in random_module(lambda: ChunkHead(actions, WIDTH, 24), 3).items():
        module, _, kind = name.rpartition(".")
        prefix = "model" if head == "l1" else "noise_predictor.mlp_resnet"
        # Fifty steps in a row double a difference again and again where the noise depends too much on the actions.
        tensor = 0.2 * tensor if head == "diffusion" and module == "fc_out" else tensor
        tensors[f"module.{prefix}.{HEAD_NAMES[module]}.{kind}"] = tensor.bfloat16()
    torch.save(tensors, folder / "action_head--50_checkpoint.pt")


@pytest.fixture
def folder(publish, tmp_path):
    """A copy of a folder to change: ``folder(kind)``."""
    return lambda kind=SOME[0]: shutil.copytree(publish(kind), tmp_path / "published")


def look(robot="libero", seed=0):
    """Pictures of each camera, of different sizes, and a state."""
    generator, preset = np.random.default_rng(seed), PRESETS[robot]
    images = tuple(generator.integers(0, 256, (40 + 4 * index, 60, 3), dtype=np.uint8)
                   for index in range(len(preset.cameras)))
    return images, generator.uniform(-0.4, 0.9, preset.proprio_dims)


def read(model, kind, dtype=torch.float32, text=TEXT):
    images, state = look(kind.robot)
    pixels, _ = prepare_pictures(images, model)
    ids = model.tokenize(text)
    return model.build_sequence(model.encode_images(pixels.to(dtype), ids), ids,
                                prepare_state(state if kind.proprio else None, model), seed=11)


@torch.inference_mode()
def act(model, kind, dtype=torch.float32, prune=None, text=TEXT):
    """The chunk, and what the decoder's first pass ends with."""
    sequence, ended = read(model, kind, dtype, text), []
    if prune is not None:
        prune = PruneStep(0, sequence.visual, prune, model.action_tokens)
    hidden = model.decoder(sequence.embeddings, sequence.positions, causal=sequence.causal, prune=prune,
                           tail=model.action_tokens)
    chunk = model.predict_actions(hidden, Later(sequence, prune, None, 11, ended.append))
    assert ended == (["decode"] if kind.head == "diffusion" else [])
    return chunk, hidden


def observe(kind, footprints=None, images=None):
    pictures, state = look(kind.robot)
    return Observation(5, pictures if images is None else images, TEXT, footprints or (None,) * len(pictures),
                       state=state if kind.proprio else None)


def knobs(folder, **others):
    return build_config({"model.checkpoint": str(folder), "model.recipe": "float", "prune.rule": "none",
                         **{name.replace("__", "."): value for name, value in others.items()}})


@torch.inference_mode()
def test_every_stage_is_the_originals(oracles):
    place = oracles / "openvla_oft"
    expected = load_file(place / "reference_float32.safetensors")
    model = load_checkpoint(place / "checkpoint").model
    images = tuple(np.asarray(Image.open(place / name).convert("RGB")) for name in ("main.png", "wrist.png"))
    pixels, _ = prepare_pictures(images, model)
    assert torch.equal(pixels, expected["pixel_values"])
    ids = model.tokenize("pick up the black bowl")
    assert ids == [*expected["input_ids"][0].tolist(), 29871]
    state = prepare_state(expected["proprio_raw"].numpy(), model)
    np.testing.assert_allclose(normalize_proprio(state.numpy(), model.state_bounds), expected["proprio_norm"],
                               atol=1e-12)
    sequence = model.build_sequence(model.encode_images(pixels, ids), ids, state)
    torch.testing.assert_close(sequence.embeddings, expected["l1_inputs_embeds"], atol=2e-5, rtol=0)
    assert (sequence.visual, sequence.causal) == (slice(1, 513), False)
    whole = model.decoder(sequence.embeddings, sequence.positions, causal=False)
    tail = model.decoder(sequence.embeddings, sequence.positions, causal=False, tail=model.action_tokens)
    # A few of 37824 numbers differ by more than 2e-5, for there the original's own rounding is as large: it and this
    # are equally far from what these weights give in float64, 2.2e-5.
    wanted = expected["l1_hidden_last"]
    exact = load_checkpoint(place / "checkpoint", dtype=torch.float64).model.decoder(
        sequence.embeddings.double(), sequence.positions, causal=False)
    for found in (whole, wanted):
        torch.testing.assert_close(found.double(), exact, atol=3e-5, rtol=0)
    assert ((whole - wanted).abs() > 2e-5).sum() <= 12
    torch.testing.assert_close(tail, whole[:, -58:], atol=2e-6, rtol=0)
    torch.testing.assert_close(tail[:, :-2], expected["l1_action_hidden"], atol=4e-5, rtol=0)
    for hidden in (whole, tail):
        steps = unnormalize_actions(model.predict_actions(hidden)[0].numpy(), model.action_spec)
        np.testing.assert_allclose(steps, expected["l1_actions"].numpy(), atol=1e-5, rtol=0)


def test_a_policy_acts_as_the_original(oracles):
    place = oracles / "openvla_oft"
    expected = load_file(place / "reference_float32.safetensors")
    images = tuple(np.asarray(Image.open(place / name).convert("RGB")) for name in ("main.png", "wrist.png"))
    policy = build_policy(knobs(place / "checkpoint", model__dataset="libero_spatial"))
    assert (policy.model.family, policy.model.cameras, policy.model.state_size) == ("openvla-oft", ("main", "wrist"), 8)
    inference = policy.infer(Observation(0, images, "Pick up the black bowl", (None, None),
                                         state=expected["proprio_raw"].numpy()))
    np.testing.assert_allclose(inference.chunk.steps, expected["l1_actions"].numpy(), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_half_precision_is_the_originals(oracles):
    place = oracles / "openvla_oft"
    expected = load_file(place / "reference_bfloat16.safetensors")
    model = load_checkpoint(place / "checkpoint", dtype=torch.bfloat16).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    images = tuple(np.asarray(Image.open(place / name).convert("RGB")) for name in ("main.png", "wrist.png"))
    pixels, ids = prepare_pictures(images, model)[0].bfloat16(), model.tokenize("pick up the black bowl")
    sequence = model.build_sequence(model.encode_images(pixels, ids), ids,
                                    prepare_state(expected["proprio_raw"].numpy(), model))
    hidden = model.decoder(sequence.embeddings, sequence.positions, causal=False)
    actions = model.predict_actions(hidden)
    steps = unnormalize_actions(actions[0].numpy(), model.action_spec)
    assert actions.dtype == torch.float32
    for name, got in (("l1_inputs_embeds", sequence.embeddings), ("l1_hidden_last", hidden),
                      ("l1_actions", torch.from_numpy(steps))):
        theirs = expected[name].double()
        assert (got.double() - theirs).norm() <= 2e-2 * theirs.norm(), name


@pytest.mark.parametrize("kind", SOME, ids=str)
def test_a_sequence_is_put_together_of_its_parts(publish, kind):
    model, preset = load_checkpoint(publish(kind)).model, PRESETS[kind.robot]
    assert isinstance(model, VlaModel)
    with torch.inference_mode():
        sequence = read(model, kind)
    ids, x, count = model.tokenize(TEXT), sequence.embeddings[0], 16 * len(preset.cameras)
    words = model.embed_tokens.weight
    extra = int(kind.proprio) + int(kind.head == "diffusion")
    assert len(x) == 1 + count + extra + len(ids) - 1 + preset.action_tokens + 1
    assert sequence.visual == slice(1, 1 + count) and not sequence.causal
    assert sequence.positions[0].tolist() == list(range(len(x))) and model.action_tokens == preset.action_tokens + 2
    assert torch.equal(x[0], words[1]) and torch.equal(x[-1], words[2])
    assert torch.equal(x[1 + count + extra:-1 - preset.action_tokens], words[ids[1:]])
    bounds = model.config.statistics.datasets["own"]["proprio"]
    if kind.proprio:
        low, high = (np.array(bounds[key]) for key in (("q01", "q99") if kind.robot != "aloha" else ("min", "max")))
        numbers = np.clip(2 * (look(kind.robot)[1] - low) / (high - low + 1e-8) - 1, -1, 1)
        token = model.proprio(torch.from_numpy(numbers).float()[None])[0]
        torch.testing.assert_close(x[1 + count], token, atol=1e-6, rtol=0)
    places = x[-1 - preset.action_tokens:-1]
    if kind.head == "diffusion":
        torch.testing.assert_close(x[count + extra], make_timesteps(WIDTH).weight[49], atol=0, rtol=0)
        assert len(places.unique(dim=0)) == preset.action_tokens and places.std() > 0.1
    else:
        assert torch.equal(places, torch.zeros(preset.action_tokens, WIDTH))
    # What is added to a span so that it can be divided by is in the actions' units too.
    high = model.config.statistics.datasets["own"]["action"]["max" if kind.robot == "aloha" else "q99"]
    assert model.action_spec.high == tuple(value + 1e-8 for value in high)
    assert model.action_spec.chunk_steps == preset.chunk_steps


@torch.inference_mode()
def test_film_tells_the_towers_the_words(publish):
    plain, told = (load_checkpoint(publish(Kind("words", film, False))).model for film in (False, True))
    picture, ids = torch.randn(1, 6, 28, 28, generator=torch.Generator().manual_seed(0)), told.tokenize(TEXT)
    words = told.embed_tokens.weight
    language = average_language(words[ids][None], words[2][None, None])
    assert torch.equal(told.see(picture, ids), told.film(told.vision, picture, language))
    torch.testing.assert_close(language[0], words[[*ids, 2]].mean(dim=0))
    assert (told.see(picture, ids) - told.see(picture, told.tokenize("push it"))).abs().max() > 1e-3
    assert torch.equal(plain.see(picture, ids), plain.vision(picture))
    weight = "blocks.0.attn.qkv.weight"
    torch.testing.assert_close(told.vision.dino.get_parameter(weight), 1.1 * plain.vision.dino.get_parameter(weight))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@torch.inference_mode()
def test_a_rotated_model_acts_the_same(publish, kind):
    model = load_checkpoint(publish(kind), dtype=torch.float64).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.decoder.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
    chunk, hidden = act(model, kind, torch.float64)
    logits = None if model.lm_head is None else model.lm_head(hidden)
    rotate_(model.rotation_sites(), 3)
    again, turned = act(model, kind, torch.float64)
    torch.testing.assert_close(again, chunk, atol=1e-9, rtol=0)
    assert (turned - hidden).abs().max() > 0.1 and chunk.std() > 0.1
    if logits is not None:  # words alone could hide a difference
        torch.testing.assert_close(model.lm_head(turned), logits, atol=1e-9, rtol=0)


def test_denoising_asks_the_decoder_at_every_step_as_written_out(publish):
    kind = Kind("diffusion", False, True)
    model = load_checkpoint(publish(kind), dtype=torch.float64).model
    chunk, _ = act(model, kind, torch.float64)
    assert chunk.dtype == torch.float64 and chunk.abs().max() <= 1.0 and chunk.std() > 0.1
    noise = torch.randn(1, 8, 7, generator=torch.Generator().manual_seed(11)).double()
    asked = []

    def predict(x, time):
        asked.append(time)
        sequence = read(model, kind, torch.float64)
        embeddings = sequence.embeddings.clone()
        embeddings[:, sequence.visual.stop + 1] = make_timesteps(WIDTH).weight[time].double()
        embeddings[:, -57:-1] = model.noisy_actions(x.reshape(1, 56, 1))
        hidden = model.decoder(embeddings, sequence.positions, causal=False)
        return model.head(hidden[:, -58:-2])

    with torch.inference_mode():
        expected = denoise_clipped(predict, noise, clipped_schedule())
    assert asked == list(range(50))[::-1]
    torch.testing.assert_close(chunk, expected, atol=1e-9, rtol=0)


def test_vision_runs_once_and_tokens_are_chosen_once(publish, monkeypatch):
    kind = Kind("diffusion", True, True)
    policy = build_policy(knobs(publish(kind), prune__rule="fastv", prune__pruned_ratio=0.5, prune__layer=0))
    calls = {"decoder": [], "projector": [], "select": [], "last layer": []}
    policy.model.decoder.layers[1].register_forward_pre_hook(
        lambda module, args: calls["last layer"].append(args[0].shape[1]))
    for name in ("decoder", "projector"):
        getattr(policy.model, name).register_forward_hook(lambda *args, name=name: calls[name].append(args[-1].shape))
    select = policy.pruner.select
    monkeypatch.setattr(policy.pruner, "select", lambda *args: calls["select"].append(1) or select(*args))
    inference = policy.infer(observe(kind))
    assert [len(calls[name]) for name in ("projector", "decoder", "select")] == [2, 50, 1]
    length = 1 + 32 + 2 + len(policy.model.tokenize(TEXT)) - 1 + 56 + 1
    assert set(calls["decoder"]) == {(1, 58, WIDTH)} and calls["last layer"] == [length - 16] * 50
    assert list(inference.times.milliseconds) == ["preprocess", "vision", "llm", "decode", "head"]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_compressed_one_needs_nothing_of_the_original(folder, kind, tmp_path):
    place = folder(kind)
    model = load_checkpoint(place).model
    float_chunk, _ = act(model, kind)
    quantize_(model, W4A4())
    chunk, hidden = act(model, kind)
    compress_checkpoint(place, tmp_path / "out", "w4a4-rtn")
    shutil.rmtree(place)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}
    loaded = load_checkpoint(tmp_path / "out", settings=ModelSettings(robot=kind.robot))
    again, hidden_again = act(loaded.model, kind)
    assert torch.equal(again, chunk) and torch.equal(hidden_again, hidden)
    assert not torch.equal(chunk, float_chunk)
    assert (loaded.model.action_spec, loaded.model.cameras) == (model.action_spec, model.cameras)
    with pytest.raises(ConfigError, match=r"is for the robot 'libero', not 'aloha'; leave model\.robot empty"):
        load_checkpoint(tmp_path / "out", settings=ModelSettings(robot="aloha"))


@pytest.mark.parametrize("recipe", ["w4a4", "qvla-4bit"])
def test_it_is_calibrated_with_all_cameras_and_the_state(publish, recipe, tmp_path):
    lines = []
    for number in range(2):
        images, state = look(seed=number)
        names = [f"{number}-{camera}.png" for camera in range(2)]
        for name, image in zip(names, images, strict=True):
            Image.fromarray(image).save(tmp_path / name)
        lines.append(json.dumps({"images": names, "instruction": TEXT, "state": state.tolist()}))
    (tmp_path / "observations.jsonl").write_text("\n".join(lines))
    compress_checkpoint(publish(Kind()), tmp_path / "out", recipe, observations=tmp_path)
    exact, found = (act(load_checkpoint(place).model, Kind())[0] for place in (publish(Kind()), tmp_path / "out"))
    error = (found - exact).norm() / exact.norm()
    assert 1e-3 < error < 0.7


def keep_best(count):
    return lambda scores, hidden: Choice(scores.topk(count).indices.sort().values)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_keeping_all_tokens_is_no_pruning(publish, kind):
    model = load_checkpoint(publish(kind)).model
    plain, pruned = act(model, kind)[0], act(model, kind, prune=keep_best(16))[0]
    assert torch.equal(act(model, kind, prune=keep_best(32))[0], plain) and not torch.equal(pruned, plain)
    policies = [build_policy(knobs(publish(kind), prune__rule=rule, prune__pruned_ratio=0.0))
                for rule in ("none", "sqap")]
    steps = [policy.infer(observe(kind)).chunk.steps for policy in policies]
    np.testing.assert_array_equal(*steps)


@torch.inference_mode()
def test_all_that_stand_for_actions_say_who_stays(publish):
    kind = Kind()
    model = load_checkpoint(publish(kind), dtype=torch.float64).model
    seen = []
    act(model, kind, torch.float64, lambda scores, hidden: seen.append(scores) or Choice(torch.arange(32)[None]))
    sequence, attention = read(model, kind, torch.float64), model.decoder.layers[0].self_attn
    x = model.decoder.layers[0].input_layernorm(sequence.embeddings)
    rope = rope_tables(sequence.positions, 8, model.decoder.config.rope_theta, x.dtype)
    q, k = (apply_rope(projection(x).unflatten(-1, (-1, 8)).transpose(1, 2), rope.cos, rope.sin)
            for projection in (attention.q_proj, attention.k_proj))
    weights = (q[:, :, -58:] @ k.repeat_interleave(2, 1).mT * 8**-0.5).softmax(-1)
    expected = weights.mean(dim=(1, 2))[:, sequence.visual]
    torch.testing.assert_close(seen[0].double(), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("recipe", ["float", "w4a4-rtn"])
def test_each_camera_keeps_its_share_and_its_robot(publish, recipe):
    kind = Kind()
    policy = build_policy(knobs(publish(kind), model__recipe=recipe, model__pictures="libero", prune__rule="sqap",
                                prune__pruned_ratio=0.5, prune__robot_ratio=0.5))
    policy.warm_up()
    # At the upper left of the picture; LIBERO's hang upside down.
    corner = RobotFootprint(("hand",), np.array([[9.0, 6.0]]), np.array([1.0]))
    for camera in (0, 1):
        footprints = tuple(corner if index == camera else None for index in (0, 1))
        tokens = policy.infer(observe(kind, footprints)).tokens
        assert [(use.grid, len(use.kept)) for use in tokens] == [((4, 4), 8)] * 2
        assert tokens[1 - camera].count(TokenRule.ROBOT) == 0
        assert 15 in tokens[camera].kept
        protected = tokens[camera].kept[tokens[camera].rules == int(TokenRule.ROBOT)]
        assert set(protected) <= {15} and tokens[camera].count(TokenRule.ATTENTION) >= 1
    assert policy.describe()["kept_tokens"] == 16 and policy.describe()["total_tokens"] == 32


def test_chunks_come_in_the_robots_units(publish):
    kind = SOME[3]
    policy = build_policy(knobs(publish(kind)))
    assert policy.grids == ((4, 4),) * 3
    chunk, _ = act(policy.model, kind)
    steps = policy.infer(observe(kind)).chunk.steps
    assert steps.shape == (25, 14)
    ends = policy.model.config.statistics.datasets["own"]["action"]
    low, high = np.array(ends["min"]), np.array(ends["max"])
    expected = 0.5 * (chunk[0].double().numpy() + 1) * (high - low + 1e-8) + low
    np.testing.assert_allclose(steps[:, :13], expected[:, :13], atol=1e-9)
    np.testing.assert_array_equal(steps[:, 13], chunk[0, :, 13].double().numpy())


def test_noise_follows_from_the_pictures(publish):
    kind = Kind("diffusion", False, False)
    policy = build_policy(knobs(publish(kind)))
    first, again = (policy.infer(observe(kind)).chunk.steps for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = policy.infer(observe(kind, images=look(seed=1)[0])).chunk.steps
    assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize("head", ["l1", "diffusion", "words"])
def test_a_calibration_sees_one_pass(publish, head):
    kind = Kind(head)
    model, (images, state) = load_checkpoint(publish(kind)).model, look()
    (run,) = calibrate(model, [StoredObservation(images, TEXT, "line 1", state)])
    out = run()
    assert out.shape == (1, 8, 7) and out.dtype == torch.float32
    if head == "words":
        assert not out.requires_grad
        named = [name for name, recipe in RECIPES.items() if recipe.mean_bits is not None]
        assert named
        for name in named:
            with pytest.raises(ConfigError, match=rf"'{name}' .* family 'openvla-oft' writes actions as words"):
                build_policy(knobs(publish(kind), model__recipe=name))
        return
    weight = model.decoder.layers[0].mlp.up_proj.weight.requires_grad_()
    (gradient,) = torch.autograd.grad(run().sum(), weight)
    assert gradient.abs().max() > 1e-6


def test_a_folder_is_described_and_hashed_without_its_weights(publish, monkeypatch):
    kind = Kind("diffusion", True, True)
    expected = load_checkpoint(publish(kind)).model.state_dict()
    monkeypatch.setattr("sqap_vla_ros.models.shards.TensorFiles.read", None)
    facts = describe_checkpoint(publish(kind))
    assert facts.family == "openvla-oft"
    assert expected.keys() - facts.tensors.keys() == {"unfold.weight", "timesteps.weight"}
    assert all(shape == tuple(expected[name].shape) for name, (_, shape) in facts.tensors.items())
    assert facts.tensors["head.fc_in.weight"] == ("BF16", (24, 7 * WIDTH))
    assert facts.tensors["film.dino.0.scale.weight"] == ("F32", (16, WIDTH))
    parts = ("action_head", "proprio_projector", "noisy_action_projector", "vision_backbone")
    assert set(hash_checkpoint(publish(kind))) == {
        "config.json", "architecture.json", "tokenizer.json", "model.safetensors.index.json",
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        *(f"{part}--50_checkpoint.pt" for part in parts)}


@pytest.mark.parametrize(("kind", "told"), [
    (Kind(), "libero"), (Kind(robot="bridge"), "bridge"), (Kind(robot="aloha", proprio=False), "aloha"),
    (Kind("words"), "libero"), (Kind(proprio=False), "actions of 7 numbers fit 2 presets"),
    (Kind("words", True, False), "files fit 3 presets")], ids=str)
def test_the_robot_is_found_by_the_parts(folder, kind, told):
    place = folder(kind)
    architecture = json.loads((place / "architecture.json").read_text())
    del architecture["robot"]
    (place / "architecture.json").write_text(json.dumps(architecture))
    if told in PRESETS:
        model = load_checkpoint(place).model
        assert (model.config.robot, model.cameras) == (told, PRESETS[told].cameras)
        return
    with pytest.raises(ConfigError, match=rf"its {told}; name one of libero, aloha, bridge as model\.robot"):
        load_checkpoint(place)
    model = load_checkpoint(place, settings=ModelSettings(robot="bridge")).model
    assert model.action_spec.chunk_steps == 5 and model.cameras == ("main",)


def test_cameras_can_be_others_than_the_presets(folder, tmp_path):
    place, kind = folder(Kind()), Kind()
    edit(place, "architecture.json", cameras=["front"])
    policy = build_policy(knobs(place))
    assert policy.model.cameras == ("front",) and policy.grids == ((4, 4),)
    images, state = look()
    assert policy.infer(Observation(0, images[:1], TEXT, (None,), state=state)).chunk.steps.shape == (8, 7)
    for cameras in ("front", [], ["a", "b", "c", "d"], ["a", "a"], [1]):
        edit(place, "architecture.json", cameras=cameras)
        with pytest.raises(CheckpointError, match=r"'architecture.json' states the cameras .* 1 to 3 different names"):
            load_checkpoint(place)
    assert kind.robot == "libero"


def test_what_cannot_be_is_told_in_a_sentence(folder, publish):
    policy, kind = build_policy(knobs(publish(Kind()))), Kind()
    images, state = look()
    for observation, message in (
            (observe(kind, images=images[:1]), "came with 1 pictures, and the model sees 2; .* order: main, wrist"),
            (replace(observe(kind), state=None), "without a robot state, and the model reads one of 8 numbers"),
            (replace(observe(kind), state=state[:7]), r"must be 8 numbers in a row, got shape \(7,\)"),
            (replace(observe(kind), state=state * np.nan), "must be finite")):
        with pytest.raises(InputError, match=message):
            policy.infer(observation)
    stateless = build_policy(knobs(publish(Kind(proprio=False))))
    with pytest.raises(InputError, match="came with a robot state, and the model reads none"):
        stateless.infer(observe(kind))
    place = folder()
    with pytest.raises(ConfigError, match="unknown OpenVLA-OFT preset 'dog'; presets are libero, aloha, bridge"):
        load_checkpoint(place, settings=ModelSettings(robot="dog"))
    for robot, message in (("aloha", "the action head's actions are of 7 numbers; the model and the preset have 14"),
                           ("bridge", "the proprio projector's states are of 8 numbers; .* have 7")):
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(place, settings=ModelSettings(robot=robot))
    edit(place, norm_stats={"own": {**make_statistics(PRESETS["libero"]),
                                    "proprio": make_statistics(PRESETS["bridge"])["proprio"]}})
    with pytest.raises(CheckpointError, match=r"statistics of states of 7 numbers, and the model reads 8"):
        load_checkpoint(place)
    edit(place, norm_stats={"own": make_statistics(PRESETS["aloha"])})
    with pytest.raises(CheckpointError, match=r"statistics of 14 action dimensions, the preset is for 7"):
        load_checkpoint(place)


@pytest.mark.parametrize("kind", SOME, ids=str)
def test_a_description_survives_json(publish, kind):
    config = load_checkpoint(publish(kind)).model.config
    again = OftConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again.to_json() == config.to_json() and replace(again, statistics=config.statistics) == config
    values = config.to_json()
    for change, message in (({"prompt": "poem"}, "no prompt 'poem'; known are openvla, openvla-v01"),
                            ({"tokens": {"words": 3}}, "256 edges of intervals and 3 words do not fit"),
                            ({"preset": {**values["preset"], "chunk_steps": 0}}, "not usable: .*chunk_steps must be 1"),
                            ({"head": {"width": 3}}, "description of an OpenVLA-OFT model is not usable"),
                            ({"vlm": {}}, "description of a Prismatic model is not usable")):
        with pytest.raises(CheckpointError, match=message):
            OftConfig.from_json({**values, **change})
    with pytest.raises(CheckpointError, match="description of an OpenVLA-OFT model is not usable"):
        OftConfig.from_json({})


def test_a_folder_without_parts_is_openvla(folder):
    place = folder(Kind("words", False, False))
    architecture = json.loads((place / "architecture.json").read_text())
    named = {key: architecture.pop(key) for key in ("family", "robot")}
    for told, family in ((named, "openvla-oft"), ({"robot": "libero"}, "openvla-oft"), ({}, "openvla")):
        (place / "architecture.json").write_text(json.dumps({**architecture, **told}))
        assert load_checkpoint(place).model.family == family
    with pytest.raises(ConfigError) as caught:
        load_checkpoint(place, settings=ModelSettings(robot="libero"))
    assert str(caught.value) == (
        f"model.robot is 'libero', which is for OpenVLA-OFT, and '{place}' is taken for OpenVLA, as no action head or "
        "projector lies in it; if it is OpenVLA-OFT that writes its actions as words, put {\"family\": "
        "\"openvla-oft\"} into 'architecture.json' there, else leave model.robot empty")
    edit(place, "architecture.json", family="openvla-oft")
    model = load_checkpoint(place, settings=ModelSettings(robot="libero")).model
    assert (model.family, model.config.robot, model.action_spec.chunk_steps) == ("openvla-oft", "libero", 8)
