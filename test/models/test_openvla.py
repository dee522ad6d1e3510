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

"""OpenVLA from a folder to an action: the originals' stages, and what compression and pruning may change."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from sqap_vla_ros.config import build_config
from sqap_vla_ros.data import Observation
from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.models.action_tokens import ActionTokens
from sqap_vla_ros.models.llama import Choice, PruneStep
from sqap_vla_ros.models.openvla import OpenVlaConfig
from sqap_vla_ros.models.pictures import prepare_picture
from sqap_vla_ros.models.random_tokenizer import write_tokenizer
from sqap_vla_ros.models.registry import describe_checkpoint, hash_checkpoint, load_checkpoint, load_model
from sqap_vla_ros.models.rope import rope_tables
from sqap_vla_ros.models.vla import Later, ModelSettings, VlaModel
from sqap_vla_ros.policy.compression import compress_checkpoint
from sqap_vla_ros.policy.observations import StoredObservation, calibrate
from sqap_vla_ros.policy.policy import Policy, build_policy
from sqap_vla_ros.policy.preprocess import unnormalize_actions
from sqap_vla_ros.quantization.quantize import W4A4, quantize_
from sqap_vla_ros.quantization.recipe import RECIPES
from sqap_vla_ros.quantization.rotation import rotate_

ATOL = 2e-5
ROWS = 32064
BRIDGE = ModelSettings(dataset="bridge_orig")
TEXT = "pick up the red block"
STATISTICS = {"action": {"q01": [-0.1, -0.2, -0.3, -0.4, -0.5, -0.6, 0.0], "q99": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0],
                         "mask": [True] * 6 + [False]}, "num_trajectories": 3}
SHORT = {"action": {"q01": [-1.0] * 3, "q99": [1.0] * 3}}


def edit(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture(scope="module")
def published(tmp_path_factory, tiny_vlm, hf_folder):
    """A folder with random weights; no test changes it."""
    folder = tmp_path_factory.mktemp("openvla") / "published"
    model = tiny_vlm(replace(tiny_vlm().config, vocabulary_size=ROWS))
    for linear in model.quantizable_linears().values():
        linear.weight.mul_(2.5)  # so that words are decided by what the layers make of the picture
    hf_folder(folder, model, 4)
    write_tokenizer(folder)
    edit(folder, model_type="openvla", norm_stats={"own": STATISTICS})
    return folder


@pytest.fixture
def folder(published, tmp_path):
    """A copy of it to change."""
    return shutil.copytree(published, tmp_path / "published")


@pytest.fixture(scope="module")
def rgb():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def read(model, rgb, text=TEXT, dtype=torch.float32):
    pixels, _ = prepare_picture(rgb, model.image_spec, model.pictures)
    ids = model.tokenize(text)
    return model.build_sequence(model.encode_images(pixels.to(dtype), ids), ids)


@torch.no_grad()
def write(model, sequence, prune=None):
    """Action, and the hidden states (1, 7, C) that its words were read from."""
    states, ended, cache = [], [], model.decoder.empty_cache()
    handle = model.decoder.register_forward_hook(lambda module, args, state: states.append(state[:, -1:]))
    hidden = model.decoder(sequence.embeddings, sequence.positions, prune=prune, tail=1, cache=cache)
    action = model.predict_actions(hidden, Later(sequence, prune, cache, 0, ended.append))
    handle.remove()
    assert ended == ["decode"]
    return action, torch.cat(states, dim=1)


def words(model, states):
    return model.config.tokens.read(states, model.lm_head)


def close(got, expected, atol=ATOL):
    torch.testing.assert_close(got.float(), expected.float(), atol=atol, rtol=0)


@torch.inference_mode()
def run_oracle(oracles, dtype):
    """Every stage by the name that the originals' outputs have."""
    folder = oracles / "openvla"
    model = load_checkpoint(folder / "checkpoint", dtype=dtype, settings=BRIDGE).model
    rgb = np.asarray(Image.open(folder / "image.png").convert("RGB"))
    pixels, _ = prepare_picture(rgb, model.image_spec, model.pictures)
    ids, first = model.tokenize("put spoon on towel"), []
    sequence = read(model, rgb, "put spoon on towel", dtype)
    handle = model.decoder.layers[0].register_forward_hook(lambda module, args, out: first.append(out[0]))
    prefill = model.decoder(sequence.embeddings, sequence.positions)
    handle.remove()
    action, states = write(model, sequence)
    spec = model.action_spec
    assert (spec.chunk_steps, spec.mask) == (1, (True,) * 6 + (False,)) and action.shape == (1, 1, 7)
    return model, {
        "pixel_values": pixels, "input_ids": torch.tensor([ids]), "patches": model.vision(pixels.to(dtype)),
        "projected": model.encode_images(pixels.to(dtype), ids), "inputs_embeds": sequence.embeddings,
        "hidden_layer1": first[0], "hidden_last_postnorm": prefill,
        "prefill_last_logits": model.lm_head(prefill[:, -1]), "decode_hidden_postnorm": states[:, 1:],
        "step_logits": model.lm_head(states), "generated_ids": words(model, states),
        "action": torch.from_numpy(unnormalize_actions(action[0].numpy(), spec)[0])}


def test_every_stage_is_the_originals(oracles):
    _, found = run_oracle(oracles, torch.float32)
    expected = load_file(oracles / "openvla" / "reference_float32.safetensors")
    assert expected.keys() - found.keys() == {"prefill_logits_pos_norm"}
    for name in ("pixel_values", "input_ids", "generated_ids"):
        assert torch.equal(found.pop(name), expected[name]), name
    torch.testing.assert_close(found.pop("action"), expected["action"], atol=1e-5, rtol=0)
    for name, got in found.items():
        torch.testing.assert_close(got, expected[name], atol=ATOL, rtol=0, msg=lambda text, name=name: name + text)


def test_half_precision_is_the_originals(oracles):
    model, found = run_oracle(oracles, torch.bfloat16)
    expected = load_file(oracles / "openvla" / "reference_bfloat16.safetensors")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.equal(found["generated_ids"], expected["generated_ids"])
    torch.testing.assert_close(found["action"], expected["action"], atol=1e-5, rtol=0)
    for name in ("patches", "projected", "inputs_embeds", "hidden_layer1", "hidden_last_postnorm",
                 "prefill_last_logits", "decode_hidden_postnorm", "step_logits"):
        got, theirs = found[name].float(), expected[name].float()
        assert (got - theirs).norm() <= 2e-2 * theirs.norm(), name


def test_a_policy_acts_as_the_original(oracles):
    folder = oracles / "openvla"
    expected = load_file(folder / "reference_float32.safetensors")["action"]
    model = load_checkpoint(folder / "checkpoint", settings=BRIDGE).model
    policy = Policy(model, build_config({"prune.rule": "none"}), None, None, torch.device("cpu"))
    rgb = np.asarray(Image.open(folder / "image.png").convert("RGB"))
    steps = policy.infer(Observation(0, (rgb,), "Put spoon on towel", (None,))).chunk.steps
    np.testing.assert_allclose(steps, expected[None].numpy(), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_transformers_writes_the_same_words(published, rgb):
    model = load_model(published)
    sizes = model.decoder.config
    second = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=ROWS, hidden_size=sizes.hidden_size, intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_hidden_layers, num_attention_heads=sizes.num_attention_heads,
        num_key_value_heads=sizes.num_key_value_heads, rms_norm_eps=sizes.rms_norm_eps)).eval()
    weights = {f"model.{name}": tensor for name, tensor in model.decoder.state_dict().items()}
    second.load_state_dict({**weights, "model.embed_tokens.weight": model.embed_tokens.weight,
                            "lm_head.weight": model.lm_head.weight})
    sequence = read(model, rgb)
    action, states = write(model, sequence)
    embeddings, cache, written = sequence.embeddings, None, []
    for step in range(7):
        out = second(inputs_embeds=embeddings, past_key_values=cache, use_cache=True, output_hidden_states=True)
        cache = out.past_key_values
        close(states[:, step], out.hidden_states[-1][:, -1])
        likeliest = out.logits[:, -1, 31744:32000].argmax(dim=-1) + 31744
        written.append(likeliest.item())
        embeddings = second.model.embed_tokens(likeliest)[:, None]
    assert words(model, states)[0].tolist() == written and len(set(written)) > 3
    step = 2 / 255
    np.testing.assert_allclose(action[0, 0], [(np.clip(31999 - word, 0, 254) + 0.5) * step - 1 for word in written],
                               atol=1e-6)


def test_a_rotated_model_writes_the_same(published, rgb):
    model = load_model(published).double()
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.decoder.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
    sequence = read(model, rgb, dtype=torch.float64)
    action, states = write(model, sequence)
    logits, gain = model.lm_head(states), model.decoder.norm.weight.clone()
    assert not torch.equal(gain, torch.ones_like(gain))
    first = states.clone()
    rotate_(model.rotation_sites(), 3)
    again, states = write(model, read(model, rgb, dtype=torch.float64))
    torch.testing.assert_close(model.lm_head(states), logits, atol=1e-9, rtol=0)
    assert torch.equal(again, action) and len(words(model, states).unique()) > 3
    # Behind the final norm the states are the same up to the gain, which went into the language head, and the turn.
    torch.testing.assert_close(states.norm(dim=-1), (first / gain).norm(dim=-1), atol=1e-9, rtol=0)
    assert (states - first / gain).abs().max() > 0.1


def test_a_compressed_one_needs_nothing_of_the_original(folder, rgb, tmp_path):
    model = load_model(folder)
    float_action, _ = write(model, read(model, rgb))
    quantize_(model, W4A4())
    action, states = write(model, read(model, rgb))
    done = compress_checkpoint(folder, tmp_path / "out", "w4a4-rtn")
    assert done.report.weight_bytes < done.report.float32_bytes / 4
    shutil.rmtree(folder)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors",
                                                                    "tokenizer.json"}
    loaded = load_checkpoint(tmp_path / "out")
    again, states_again = write(loaded.model, read(loaded.model, rgb))
    assert torch.equal(again, action) and torch.equal(states_again, states)
    assert loaded.model.action_spec == model.action_spec
    assert not torch.equal(float_action, action) and len(action.unique()) > 3
    with pytest.raises(ConfigError, match=r"no data set 'kitchen' .* 'config\.json' knows own"):
        load_checkpoint(tmp_path / "out", settings=ModelSettings(dataset="kitchen"))


def prune_half(seen):
    def select(scores, hidden):
        seen.append(scores)
        return Choice(scores.topk(8).indices.sort().values)
    return PruneStep(0, slice(1, 17), select)


@torch.inference_mode()
def test_words_behind_a_pruned_prefill_see_what_stayed(published, rgb):
    model = load_model(published).double()
    sequence, seen = read(model, rgb, dtype=torch.float64), []
    pruned, states = write(model, sequence, prune_half(seen))
    kept, length = seen[0].topk(8).indices[0], sequence.embeddings.shape[1]
    # All at once: every token keeps its place, and behind the first layer nobody looks at those that left.
    written = model.embed_tokens(words(model, states)[:, :6])
    x = torch.cat((sequence.embeddings, written), dim=1)
    positions = torch.arange(length + 6)[None]
    stays = torch.ones(length + 6, dtype=torch.bool)
    stays[1:17] = False
    stays[1 + kept] = True
    causal = torch.ones(length + 6, length + 6, dtype=torch.bool).tril()
    sizes = model.decoder.config
    rope = rope_tables(positions, sizes.head_dim, sizes.rope_theta, x.dtype)
    for layer, mask in zip(model.decoder.blocks, (causal, causal & (stays | torch.eye(len(stays)).bool())),
                           strict=True):
        x, _ = layer(x, rope, mask[None, None])
    torch.testing.assert_close(states, model.decoder.norm(x)[:, -7:], atol=1e-9, rtol=0)
    plain, plain_states = write(model, sequence)
    assert (states - plain_states).abs().max() > 0.1 and not torch.equal(pruned, plain)
    everything = PruneStep(0, slice(1, 17), lambda scores, hidden: Choice(torch.arange(16)[None]))
    again, states_again = write(model, sequence, everything)
    assert torch.equal(again, plain) and torch.equal(states_again, plain_states)


@pytest.mark.parametrize("recipe", ["float", "w4a4-rtn"])
def test_a_policy_runs_it(published, rgb, recipe):
    policy = build_policy(build_config({"model.checkpoint": str(published), "model.recipe": recipe, "prune.layer": 0,
                                        "prune.rule": "fastv", "prune.pruned_ratio": 0.5}))
    assert isinstance(policy.model, VlaModel)
    policy.warm_up()
    inference = policy.infer(Observation(5, (rgb,), TEXT, (None,)))
    assert list(inference.times.milliseconds) == ["preprocess", "vision", "llm", "decode", "head"]
    assert [(tokens.grid, len(tokens.kept)) for tokens in inference.tokens] == [((4, 4), 8)]
    action, _ = write(policy.model, read(policy.model, rgb), prune_half([]))
    np.testing.assert_array_equal(inference.chunk.steps, unnormalize_actions(action[0].numpy(),
                                                                             policy.model.action_spec))
    # Six numbers in metres and radians, at the middle of one of 255 intervals, and the gripper's as it was written.
    high = np.array(STATISTICS["action"]["q99"][:6])
    intervals = (inference.chunk.steps[0, :6] / high + 1) * 127.5 - 0.5
    np.testing.assert_allclose(intervals, intervals.round(), atol=1e-4)
    assert policy.describe()["family"] == "openvla" and inference.chunk.steps[0, 6] == action[0, 0, 6].item()


def test_recipes_that_read_actions_are_refused(published, tmp_path):
    named = [name for name, recipe in RECIPES.items() if recipe.mean_bits is not None]
    assert named
    for name in named:
        with pytest.raises(ConfigError, match=rf"'{name}' .* family 'openvla' writes actions as words"):
            build_policy(build_config({"model.checkpoint": str(published), "model.recipe": name}))
        with pytest.raises(ConfigError, match=rf"'{name}' .* family 'openvla' writes actions as words"):
            compress_checkpoint(published, tmp_path / "out", name)


def test_without_a_cache_the_first_word_alone_is_read(published, rgb):
    model = load_model(published)
    (run,) = calibrate(model, [StoredObservation((rgb,), TEXT, "line 1", None)])
    action, _ = write(model, read(model, rgb))
    assert torch.equal(run().detach(), action[:, :, :1]) and run().dtype == torch.float32
    other, _ = write(model, read(model, 255 - rgb))
    assert not torch.equal(other, action)


def test_the_data_set_gives_units_and_the_number_of_words(folder, rgb):
    (folder / "dataset_statistics.json").write_text(json.dumps({"own": STATISTICS, "short_no_noops": SHORT}))
    for asked, words_of_it in (("", "no data set is named"), ("kitchen", "there is no data set 'kitchen'")):
        with pytest.raises(ConfigError, match=rf"{words_of_it} .*dataset_statistics\.json' knows own, short_no_noops"):
            load_checkpoint(folder, settings=ModelSettings(dataset=asked))
    seven = load_checkpoint(folder, settings=ModelSettings(dataset="own")).model
    three = load_checkpoint(folder, settings=ModelSettings(dataset="short", pictures="libero-uncropped")).model
    assert (three.action_spec.low, three.pictures, seven.pictures) == ((-1.0,) * 3, "libero-uncropped", "none")
    sequence = read(seven, rgb)
    assert torch.equal(write(three, sequence)[0], write(seven, sequence)[0][:, :, :3])
    # Without a choice it can still be told what there is, and hashes are of all that decides.
    facts = describe_checkpoint(folder)
    assert facts.family == "openvla" and facts.tensors["lm_head.weight"] == ("F32", (ROWS, 32))
    assert facts.tensors.keys() == facts.model.state_dict().keys()
    shards = {f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)}
    assert set(hash_checkpoint(folder)) == shards | {"config.json", "architecture.json", "dataset_statistics.json",
                                                     "tokenizer.json", "model.safetensors.index.json"}


def test_an_adapter_is_merged_before_anything_is_written(folder, rgb):
    before = load_model(folder)
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 32, generator=generator), torch.randn(32, 2, generator=generator)
    begin = "base_model.model.language_model.model.layers.1.self_attn.o_proj"
    save_file({f"{begin}.lora_A.weight": down, f"{begin}.lora_B.weight": up}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 1}')
    model, sequence = load_model(folder), read(before, rgb)
    _, plain = write(before, sequence)
    before.decoder.layers[1].self_attn.o_proj.weight.data += 0.5 * up @ down
    action, states = write(before, sequence)
    found, found_states = write(model, sequence)
    close(found_states, states)
    assert torch.equal(found, action) and (states - plain).abs().max() > 0.1


def test_version_01_has_one_tower_and_another_prompt(tmp_path, tiny_vlm, hf_folder, rgb):
    config = tiny_vlm().config
    config = replace(config, towers={"siglip": config.towers["siglip"]}, projector_sizes=(24, 32, 32),
                     vocabulary_size=ROWS)
    hf_folder(tmp_path, tiny_vlm(config))
    for path in sorted(tmp_path.glob("model-*")):
        save_file({name.replace("fused_", ""): tensor for name, tensor in load_file(path).items()}, path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("fused_", ""))
    write_tokenizer(tmp_path)
    edit(tmp_path, model_type="openvla", llm_backbone_id="vicuna-v15-7b", image_sizes=[28], norm_stats={"a": SHORT})
    model = load_model(tmp_path)
    assert model.config.prompt == "openvla-v01" and list(model.config.vlm.towers) == ["siglip"]
    assert len(model.tokenize(TEXT)) > 100
    action, _ = write(model, read(model, rgb))
    assert action.shape == (1, 1, 3)


def test_a_description_survives_json(published):
    config = load_model(published).config
    assert config.tokens == ActionTokens(32000, 256)
    values = json.loads(json.dumps(config.to_json()))
    again = OpenVlaConfig.from_json(values)
    assert again.to_json() == config.to_json() and replace(again, statistics=config.statistics) == config
    assert again.statistics.datasets == {"own": {"action": STATISTICS["action"]}}
    for change, message in (({"prompt": "poem"}, "no prompt 'poem'; known are openvla, openvla-v01"),
                            ({"tokens": {"words": 3}}, "256 edges of intervals and 3 words do not fit"),
                            ({"tokens": {"bins": 3}}, "description of an OpenVLA model is not usable"),
                            ({"statistics": None}, "description of an OpenVLA model is not usable"),
                            ({"vlm": {}}, "description of a Prismatic model is not usable")):
        with pytest.raises(CheckpointError, match=message):
            OpenVlaConfig.from_json({**values, **change})
    with pytest.raises(CheckpointError, match="description of an OpenVLA model is not usable"):
        OpenVlaConfig.from_json({})


@pytest.mark.parametrize(("damage", "message"), [
    (lambda f: edit(f, n_action_bins="many"), r"config\.json': pad_to_multiple_of and n_action_bins .* 64 and 'many'"),
    (lambda f: edit(f, pad_to_multiple_of=32000), r"config\.json': 256 edges of intervals and 64 words do not fit"),
    (lambda f: edit(f, norm_stats={}), r"does not tell what its actions mean"),
    (lambda f: (f / "tokenizer.json").unlink(), r"has no 'tokenizer\.json'"),
    (lambda f: edit(f, norm_stats={"own": {"action": {"q01": [0.0]}}}), r"data set 'own', action: 'q99' must be"),
])
def test_bad_folders_are_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)
