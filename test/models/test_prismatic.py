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

"""Prismatic models from both of the originals' layouts, against the originals and against themselves."""

import json
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from sqap_vla_ros.errors import CheckpointError, InputError
from sqap_vla_ros.models import prismatic_checkpoint
from sqap_vla_ros.models.family import build_empty
from sqap_vla_ros.models.llama import LlamaConfig
from sqap_vla_ros.models.llama_tokenizer import EMPTY_ID, EOS_ID, LlamaTokenizer
from sqap_vla_ros.models.pictures import prepare_picture
from sqap_vla_ros.models.prismatic import PrismaticConfig, PrismaticVlm, check_keys, load_prismatic_
from sqap_vla_ros.models.prismatic_checkpoint import find_tokenizer, open_prismatic
from sqap_vla_ros.models.shards import TensorFile, TensorFiles
from sqap_vla_ros.models.towers import TowerConfig
from sqap_vla_ros.models.vla import ImageSpec
from sqap_vla_ros.quantization.rotation import rotate_

ATOL = 2e-5
# Folder, checkpoint within it, instruction, what CogACT puts behind every prompt.
ORACLES = [("openvla", "checkpoint", "put spoon on towel", ()),
           ("cogact", "run", "Move sponge near apple", (EMPTY_ID, EOS_ID))]


def load(folder, dtype=torch.float32):
    checkpoint = open_prismatic(folder)
    model = build_empty(PrismaticVlm, checkpoint.config)
    check_keys(model, checkpoint.tensors, checkpoint.keys, elsewhere=("action_model.",))
    load_prismatic_(model, checkpoint.tensors, checkpoint.keys, dtype=dtype, elsewhere=("action_model.",))
    return checkpoint, model.eval().requires_grad_(False)


def run_oracle(folder, part, instruction, appended, dtype=torch.float32):
    checkpoint, model = load(folder / part, dtype)
    pixels, _ = prepare_picture(np.asarray(Image.open(folder / "image.png").convert("RGB")), checkpoint.config.image)
    ids = LlamaTokenizer(find_tokenizer(folder / part), checkpoint.prompt, always_append=appended).encode(instruction)
    visual = model.encode_images(pixels.to(dtype), ids)
    return checkpoint, model, pixels, ids, visual, model.build_sequence(visual, ids)


def close(got, expected, atol=ATOL):
    torch.testing.assert_close(got.float(), expected.float(), atol=atol, rtol=0)


@pytest.mark.parametrize(("name", "part", "instruction", "appended"), ORACLES)
def test_every_stage_is_the_originals(oracles, name, part, instruction, appended):
    checkpoint, model, pixels, ids, visual, sequence = run_oracle(oracles / name, part, instruction, appended)
    expected = load_file(oracles / name / "reference_float32.safetensors")
    theirs = expected.get("pixel_values")
    if theirs is None:
        theirs = torch.cat((expected["pixel_dino"], expected["pixel_siglip"]))[None]
    assert torch.equal(pixels, theirs)
    close(model.vision(pixels), expected["patches"])
    close(visual, expected["projected"])
    assert sequence.visual == slice(1, 257) and sequence.positions[0].tolist() == list(range(256 + len(ids)))
    hidden = model.decoder(sequence.embeddings, sequence.positions)
    close(hidden, expected["hidden_last_postnorm"])
    if name == "cogact":
        assert checkpoint.config.decoder.rms_norm_eps == 1e-5
        close(hidden[:, -1], expected["cognition"])
        return
    assert checkpoint.config.decoder.rms_norm_eps == 1e-6
    assert ids == expected["input_ids"][0].tolist()
    close(sequence.embeddings, expected["inputs_embeds"])
    close(model.lm_head(hidden[:, -1]), expected["prefill_last_logits"])


def test_the_first_decoder_layer_is_the_originals(oracles):
    _, model, _, _, _, sequence = run_oracle(oracles / "openvla", *ORACLES[0][1:])
    expected = load_file(oracles / "openvla" / "reference_float32.safetensors")
    seen = []
    model.decoder.layers[0].register_forward_hook(lambda module, args, out: seen.append(out[0]))
    model.decoder(sequence.embeddings, sequence.positions)
    close(seen[0], expected["hidden_layer1"])


def test_half_precision_is_the_originals(oracles):
    _, model, pixels, _, visual, sequence = run_oracle(oracles / "openvla", *ORACLES[0][1:], dtype=torch.bfloat16)
    expected = load_file(oracles / "openvla" / "reference_bfloat16.safetensors")
    hidden = model.decoder(sequence.embeddings, sequence.positions)
    for name, got in {"patches": model.vision(pixels.bfloat16()), "projected": visual,
                      "inputs_embeds": sequence.embeddings, "hidden_last_postnorm": hidden}.items():
        assert got.dtype == torch.bfloat16
        theirs = expected[name].float()
        assert (got.float() - theirs).norm() <= 2e-2 * theirs.norm(), name


def test_transformers_llama_says_the_same_of_the_same_weights(oracles):
    _, model, _, _, _, sequence = run_oracle(oracles / "openvla", *ORACLES[0][1:])
    config = transformers.LlamaConfig(vocab_size=32064, hidden_size=64, intermediate_size=176, num_hidden_layers=2,
                                      num_attention_heads=4, rms_norm_eps=1e-6, attn_implementation="eager")
    second = transformers.LlamaForCausalLM(config).eval()
    weights = {f"model.{name}": tensor for name, tensor in model.decoder.state_dict().items()}
    second.load_state_dict({**weights, "model.embed_tokens.weight": model.embed_tokens.weight,
                            "lm_head.weight": model.lm_head.weight})
    with torch.inference_mode():
        theirs = second(inputs_embeds=sequence.embeddings).logits
    close(model.lm_head(model.decoder(sequence.embeddings, sequence.positions)), theirs)


def test_two_pictures_are_the_originals(oracles):
    folder = oracles / "openvla_oft"
    checkpoint, model = load(folder / "checkpoint")
    pictures = [prepare_picture(np.asarray(Image.open(folder / name).convert("RGB")), checkpoint.config.image)[0]
                for name in ("main.png", "wrist.png")]
    expected = load_file(folder / "reference_float32.safetensors")["l1_inputs_embeds"]
    close(model.encode_images(torch.cat(pictures, dim=1), []), expected[:, 1:513])


@pytest.mark.parametrize("layout", ["hf", "native"])
def test_a_model_comes_back_from_either_layout(tmp_path, tiny_vlm, hf_folder, native_run, layout):
    written = tiny_vlm()
    checkpoint, model = load((hf_folder if layout == "hf" else native_run)(tmp_path / "a", written))
    eps = 1e-6 if layout == "hf" else 1e-5
    size = replace(written.config, decoder=replace(written.config.decoder, rms_norm_eps=eps))
    assert checkpoint.config == size
    for name, tensor in written.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=0, rtol=0)
    assert checkpoint.prompt == "openvla"
    # Of each tower the last block and the norm, and a pooling; the action head is left to CogACT.
    per_block = {"dino": 14, "siglip": 12}
    assert len(checkpoint.keys.unused) == sum(per_block.values()) + 2 + 1
    others = {"hf": (), "native": ("action_model.net.final_layer.linear.bias",)}
    assert checkpoint.keys.others == others[layout]


class ShapesOnly(TensorFile):
    """A file of which only the header is there."""

    def __init__(self, shapes):
        self.path, self.shapes = Path("nowhere"), shapes
        self.stored = {name: ("BF16", shape) for name, shape in shapes.items()}

    def _list(self): ...

    def _get(self, name): ...

    def _close(self): ...


def shapes_of_openvla_7b():
    shapes = {}
    for part, width, inner, depth in (("featurizer", 1024, 4096, 24), ("fused_featurizer", 1152, 4304, 27)):
        begin = f"vision_backbone.{part}."
        shapes |= {f"{begin}pos_embed": (1, 256, width), f"{begin}patch_embed.proj.weight": (width, 3, 14, 14),
                   f"{begin}patch_embed.proj.bias": (width,), f"{begin}norm.weight": (width,)}
        if part == "featurizer":
            shapes |= {f"{begin}cls_token": (1, 1, width), f"{begin}reg_token": (1, 4, width)}
        for block in range(depth):
            shapes[f"{begin}blocks.{block}.mlp.fc1.weight"] = (inner, width)
            if part == "featurizer":
                shapes[f"{begin}blocks.{block}.ls1.scale_factor"] = (width,)
    shapes |= {"projector.fc1.weight": (8704, 2176), "projector.fc2.weight": (4096, 8704),
               "projector.fc3.weight": (4096, 4096), "language_model.model.embed_tokens.weight": (32064, 4096)}
    for layer in range(32):
        begin = f"language_model.model.layers.{layer}."
        shapes |= {f"{begin}self_attn.k_proj.weight": (4096, 4096), f"{begin}mlp.gate_proj.weight": (11008, 4096)}
    return shapes


def test_sizes_of_openvla_7b_follow_from_its_files(tmp_path, monkeypatch):
    text = {"model_type": "llama", "pad_token_id": 32000, "torch_dtype": "bfloat16", "vocab_size": 32064}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": text, "image_sizes": [224, 224],
                                                      "image_resize_strategy": "resize-naive"}))
    monkeypatch.setattr(prismatic_checkpoint, "_open_tensors", lambda folder: TensorFiles(
        [ShapesOnly(shapes_of_openvla_7b())]))
    config = open_prismatic(tmp_path).config
    assert config.towers == {"dino": TowerConfig(224, 14, 1024, 4096, 23, 16, 4, True),
                             "siglip": TowerConfig(224, 14, 1152, 4304, 26, 16, None, False)}
    assert config.decoder == LlamaConfig(4096, 11008, 32, 32, 32, rms_norm_eps=1e-6, rope_theta=10000.0)
    assert config.image == ImageSpec(224, "resize-naive", ((0.485, 0.456, 0.406), (0.5,) * 3),
                                     ((0.229, 0.224, 0.225), (0.5,) * 3))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    model = build_empty(PrismaticVlm, config)
    assert time.process_time() - began < 2.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB; its weights would be 30 GB
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    counts = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in
              (("dino", model.vision.dino), ("siglip", model.vision.siglip), ("projector", model.projector),
               ("llm", nn.ModuleList((model.embed_tokens, model.decoder, model.lm_head))))}
    # The originals' 303,230,976 and 427,680,704, less the last block, the final norm and the pooling.
    assert counts == {"dino": 290_630_656, "siglip": 397_200_544, "projector": 71_385_600, "llm": 6_738_939_904}


class WithHead(PrismaticVlm):
    """A family's model: a part of its own beside the others."""

    def __init__(self, config):
        super().__init__(config, has_lm_head=False)
        self.action_model = nn.Linear(4, 7)


def test_parts_of_a_family_are_its_own_to_read(tmp_path, tiny_vlm, native_run):
    written = tiny_vlm()
    checkpoint = open_prismatic(native_run(tmp_path, written))
    model = build_empty(WithHead, checkpoint.config)
    load_prismatic_(model, checkpoint.tensors, checkpoint.keys, elsewhere=("action_model.",))
    assert model.action_model.weight.device.type == "meta" and model.lm_head is None
    for name, tensor in written.state_dict().items():
        if name != "lm_head.weight":
            assert torch.equal(model.state_dict()[name], tensor)
    assert checkpoint.tensors.outline("action_model.net.")["final_layer.linear.bias"].shape == (7,)
    assert torch.equal(checkpoint.tensors.read_part("action_model.")["net.final_layer.linear.bias"], torch.zeros(7))
    assert checkpoint.stored["decoder.norm.weight"] == ("F32", (32,))
    names = ["config.json", "architecture.json", "checkpoints/step-1.pt"]
    assert checkpoint.sources == tuple(tmp_path / name for name in names)


def test_an_adapter_among_the_files_is_merged(tmp_path, tiny_vlm, hf_folder):
    written, generator = tiny_vlm(), torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 32, generator=generator), torch.randn(48, 2, generator=generator)
    hf_folder(tmp_path, written)
    begin = "base_model.model.language_model.model.layers.1.mlp.up_proj"
    save_file({f"{begin}.lora_A.weight": down, f"{begin}.lora_B.weight": up}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    checkpoint, model = load(tmp_path)
    mlp, before = model.decoder.layers[1].mlp, written.decoder.layers[1].mlp
    torch.testing.assert_close(mlp.up_proj.weight, before.up_proj.weight + 2 * up @ down, atol=1e-5, rtol=0)
    assert torch.equal(mlp.gate_proj.weight, before.gate_proj.weight)
    assert {"adapter_config.json", "adapter_model.safetensors", "model.safetensors.index.json", "config.json",
            "model-00001-of-00002.safetensors"} < {path.name for path in checkpoint.sources}


def test_a_rotated_model_says_the_same(tiny_vlm):
    model = tiny_vlm().double()
    pixels, ids = torch.randn(1, 6, 28, 28, dtype=torch.float64), [1, 5, 6]

    def logits():
        sequence = model.build_sequence(model.encode_images(pixels, ids), ids)
        assert sequence.causal
        return model.lm_head(model.decoder(sequence.embeddings, sequence.positions))

    before, sites = logits(), model.rotation_sites()
    assert len(sites.writers) == 1 + 2 * 2 and sites.readers[-1].linears == (model.lm_head,)
    rotate_(sites, 3)
    assert (model.projector.last.weight - tiny_vlm().projector.last.weight).abs().max() > 0.1
    torch.testing.assert_close(logits(), before, atol=1e-9, rtol=0)


def test_what_may_be_rounded_is_the_decoder(tiny_vlm):
    model = tiny_vlm()
    assert len(model.quantizable_linears()) == 2 * 7 and model.blocks() == list(model.decoder.layers)
    assert model.quantizable_linears()["decoder.layers.1.mlp.up_proj"] is model.decoder.layers[1].mlp.up_proj
    assert {*model.float_reasons(), "decoder"} == {name for name, _ in model.named_children()}
    assert (model.cameras, model.grid, model.image_spec) == (("main",), (4, 4), model.config.image)


def test_a_description_survives_json(tiny_vlm):
    config = tiny_vlm().config
    assert PrismaticConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    for broken in ({}, {**config.to_json(), "towers": {"dino": {"size": 3}}}, {**config.to_json(), "image": None}):
        with pytest.raises(CheckpointError, match="description of a Prismatic model is not usable"):
            PrismaticConfig.from_json(broken)


def test_the_projector_is_linears_with_exact_gelu_between(tiny_vlm):
    projector = tiny_vlm().projector
    x = torch.randn(1, 3, 40)

    def gelu(x):
        return 0.5 * x * (1 + torch.erf(x / 2**0.5))

    step = gelu(x @ projector.fc1.weight.T + projector.fc1.bias)
    step = gelu(step @ projector.fc2.weight.T + projector.fc2.bias)
    torch.testing.assert_close(projector(x), step @ projector.fc3.weight.T + projector.fc3.bias, atol=1e-5, rtol=1e-5)
    assert projector.last is projector.fc3


def test_pictures_lie_one_behind_the_other(tiny_vlm):
    model = tiny_vlm()
    pixels = torch.randn(2, 12, 28, 28)
    visual = model.encode_images(pixels, [])
    assert visual.shape == (2, 32, 32)
    torch.testing.assert_close(visual[:, 16:], model.encode_images(pixels[:, 6:], []), atol=0, rtol=0)
    with pytest.raises(InputError, match="9 channels are no whole number of pictures of 6"):
        model.encode_images(pixels[:, :9], [])
    sequence = model.build_sequence(visual, [1, 5, 6])
    assert sequence.visual == slice(1, 33) and sequence.positions[1].tolist() == list(range(35))
    torch.testing.assert_close(sequence.embeddings[1, [0, 33, 34]], model.embed_tokens.weight[[1, 5, 6]])
    torch.testing.assert_close(sequence.embeddings[:, 1:33], visual)


def test_one_tower_and_two_linears_are_openvla_v01(tmp_path, tiny_vlm, hf_folder):
    config = tiny_vlm().config
    config = replace(config, towers={"siglip": config.towers["siglip"]}, projector_sizes=(24, 32, 32))
    folder = hf_folder(tmp_path, tiny_vlm(config))
    for path in sorted(tmp_path.glob("model-*")):
        renamed = {name.replace("fused_featurizer", "featurizer"): tensor for name, tensor in load_file(path).items()}
        save_file(renamed, path)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("fused_featurizer", "featurizer"))
    settings = {"text_config": {"num_attention_heads": 4}, "llm_backbone_id": "vicuna-v15-7b"}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "image_resize_strategy": "letterbox", "input_sizes": [[3, 28, 28]], "means": [[0.5, 0.4, 0.3]],
        "stds": [[0.5, 0.5, 0.6]]}))
    checkpoint, model = load(folder)
    assert checkpoint.prompt == "openvla-v01" and list(checkpoint.config.towers) == ["siglip"]
    assert checkpoint.config.image.strategy == "letterbox-last"
    assert (checkpoint.config.image.mean, checkpoint.config.image.std) == (((0.5, 0.4, 0.3),), ((0.5, 0.5, 0.6),))
    assert model.encode_images(torch.zeros(1, 3, 28, 28), []).shape == (1, 16, 32)


def edit(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def drop_tensor(folder, name):
    path = folder / "model.safetensors.index.json"
    places = json.loads(path.read_text())["weight_map"]
    kept = load_file(folder / places[name])
    del kept[name]
    save_file(kept, folder / places.pop(name))
    path.write_text(json.dumps({"weight_map": places}))


def put_tensor(folder, name, tensor):
    path = folder / "model.safetensors.index.json"
    places = json.loads(path.read_text())["weight_map"]
    places.setdefault(name, next(iter(places.values())))
    save_file({**load_file(folder / places[name]), name: tensor}, folder / places[name])
    path.write_text(json.dumps({"weight_map": places}))


UP = "language_model.model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(("damage", "message"), [
    (lambda f: (f / "config.json").unlink(), r"config\.json' is missing"),
    (lambda f: (f / "config.json").write_text("[]"), r"config\.json' must hold a JSON object"),
    (lambda f: drop_tensor(f, UP), r"has no tensor for 'decoder\.layers\.1\.mlp\.up_proj\.weight'"),
    (lambda f: put_tensor(f, UP, torch.zeros(2, 2)), rf"'{UP}' in '.*' has shape \(2, 2\), .* need \(48, 32\)"),
    (lambda f: put_tensor(f, UP, torch.full((48, 32), torch.inf)), rf"'{UP}' in '.*' has values that are not finite"),
    (lambda f: put_tensor(f, UP.replace("up", "sideways"), torch.zeros(1)), r"sideways_proj.* has no place"),
    (lambda f: put_tensor(f, "language_model.model.layers.0.self_attn.q_proj.bias", torch.zeros(32)),
     r"q_proj\.bias' .* has no place in a Prismatic model with a Llama"),
    (lambda f: put_tensor(f, "vision_backbone.featurizer.pos_embed", torch.zeros(1, 17, 16)), r"pos_embed.* a square"),
    (lambda f: edit(f, "architecture.json", my_dino={"num_heads": 3}), r"patch_embed.* number of attention heads"),
    (lambda f: (f / "architecture.json").unlink(), r"patch_embed.* state it in 'architecture\.json'"),
    (lambda f: edit(f, "architecture.json", my_dino={"num_heads": 2, "img_size": 42}), r"pos_embed.* pictures of 42"),
    (lambda f: edit(f, "architecture.json", my_siglip={"num_heads": 3, "depth": 3}), r"states depth 3 .* it is 2"),
    (lambda f: put_tensor(f, "odd.one", torch.zeros(1)), r"'odd\.one' in .* has no place in a Prismatic model"),
    (lambda f: edit(f, "config.json", text_config={"num_attention_heads": 5}), r"cannot be split among 5"),
    (lambda f: edit(f, "config.json", text_config={"num_attention_heads": 4, "rope_scaling": {"type": "linear"}}),
     r"stretches rotary positions"),
    (lambda f: put_tensor(f, "projector.fc3.weight", torch.zeros(16, 32)), r"from 40 numbers to 16, .* 40 and 32 wide"),
    (lambda f: put_tensor(f, "projector.fc1.weight", torch.zeros(160, 39)), r"from 39 numbers to 32, .* 40 and 32"),
    (lambda f: edit(f, "config.json", text_config={"num_attention_heads": 0}), r"config\.json', or .* ZeroDivision"),
    (lambda f: edit(f, "config.json", text_config=[1]), r"config\.json', or .*'architecture\.json' beside it, has"),
    (lambda f: edit(f, "config.json", image_sizes="big"), r"config\.json', or .* can be built by: ValueError"),
    (lambda f: edit(f, "architecture.json", my_dino={"num_heads": "two"}), r"'architecture\.json' .* 'two'"),
    (lambda f: (edit(f, "config.json", image_sizes=None), (f / "preprocessor_config.json").write_text(
        '{"input_sizes": [28]}')), r"'preprocessor_config\.json' or .* TypeError"),
    (lambda f: edit(f, "config.json", image_resize_strategy="fold"), r"made square by 'fold'; known are resize-naive"),
    (lambda f: (f / "preprocessor_config.json").write_text('{"means": [[0.5]]}'), r"three means and stds for each"),
])
def test_bad_folders_are_refused(tmp_path, tiny_vlm, hf_folder, damage, message):
    damage(hf_folder(tmp_path, tiny_vlm()))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_tokenizer_is_found_beside_a_checkpoint_that_is_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").touch()
    monkeypatch.chdir(tmp_path / "run")
    assert find_tokenizer(".") == tmp_path / "tokenizer" / "tokenizer.json"


def test_bad_runs_are_refused(tmp_path, tiny_vlm, native_run):
    folder = native_run(tmp_path, tiny_vlm())
    with pytest.raises(CheckpointError, match=r"'action_model\.net.*' in '.*step-1\.pt' has no place"):
        checkpoint = open_prismatic(folder)
        check_keys(PrismaticVlm(checkpoint.config), checkpoint.tensors, checkpoint.keys)
    edit(folder, "config.json", vla={"base_vlm": "prism-qwen25-dinosiglip-224px+0_5b"})
    with pytest.raises(CheckpointError, match=r"names 'prism-qwen25.*known are prism-dinosiglip-224px\+7b"):
        load(folder)
    (folder / "checkpoints" / "step-2.pt").touch()
    with pytest.raises(CheckpointError, match=r"exactly one file 'checkpoints/\*\.pt'; of the last it has 2"):
        load(folder)
    with pytest.raises(CheckpointError, match=r"'tokenizer\.json', nor .* copy it there from OpenVLA-7B"):
        find_tokenizer(folder)
