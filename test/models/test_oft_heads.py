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

"""OpenVLA-OFT's parts beside the model against formulas written out, and whole against the original's outputs."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from sqap_vla_ros.errors import CheckpointError, InputError
from sqap_vla_ros.models.action_tokens import ActionTokens
from sqap_vla_ros.models.dataset_statistics import Bounds, read_statistics
from sqap_vla_ros.models.oft_files import read_parts
from sqap_vla_ros.models.oft_presets import PRESETS, OftPreset
from sqap_vla_ros.models.oft_sequence import (
    STOP_ID,
    action_window,
    assemble_sequence,
    average_language,
    empty_places,
)
from sqap_vla_ros.models.proprio import normalize_proprio
from sqap_vla_ros.models.shards import open_safetensors
from sqap_vla_ros.policy.preprocess import unnormalize_actions

WIDTH, ACTIONS, STATES = 12, 3, 4
EMBEDDING = "language_model.model.embed_tokens.weight"
DENOISING = "noise_predictor.mlp_resnet"


def random_part(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, generator=generator) * 0.5 for name, shape in shapes.items()}


def head_shapes(prefix):
    shapes = {"layer_norm1": [(36,)], "fc1": [(12, 36)], "mlp_resnet_blocks.0.ffn.0": [(12,)],
              "mlp_resnet_blocks.0.ffn.1": [(12, 12)], "mlp_resnet_blocks.1.ffn.0": [(12,)],
              "mlp_resnet_blocks.1.ffn.1": [(12, 12)], "layer_norm2": [(12,)], "fc2": [(3, 12)]}
    return {f"module.{prefix}.{name}.{kind}": shape if kind == "weight" else shape[:1]
            for name, (shape,) in shapes.items() for kind in ("weight", "bias")}


def write_parts(folder, head="model", parts=("proprio",)):
    """Files as the original's training on several GPUs writes them; returns all tensors by file."""
    made = {"action_head": random_part(head_shapes(head), 0)}
    for seed, (name, inputs) in enumerate((("proprio", STATES), ("noisy_action", 1)), start=1):
        if name in parts:
            made[f"{name}_projector"] = random_part({"module.fc1.weight": (WIDTH, inputs), "module.fc1.bias": (WIDTH,),
                                                     "module.fc2.weight": (WIDTH, WIDTH),
                                                     "module.fc2.bias": (WIDTH,)}, seed)
    for name, tensors in made.items():
        torch.save(tensors, folder / f"{name}--50_checkpoint.pt")
    return made


def head_formula(tensors, x):
    t = {name.split(".", 1)[1].replace("noise_predictor.mlp_resnet.", "model."): value
         for name, value in tensors.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * t[f"{name}.weight"] + t[f"{name}.bias"]

    def linear(x, name):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    x = linear(norm(x, "model.layer_norm1"), "model.fc1").clamp(min=0)
    for block in ("model.mlp_resnet_blocks.0.ffn", "model.mlp_resnet_blocks.1.ffn"):
        x = x + linear(norm(x, f"{block}.0"), f"{block}.1").clamp(min=0)
    return linear(norm(x, "model.layer_norm2"), "model.fc2")


@pytest.mark.parametrize(("head", "parts"), [("model", ("proprio",)), (DENOISING, ("noisy_action",))])
def test_parts_are_read_and_compute_what_is_written_out(tmp_path, head, parts):
    made = write_parts(tmp_path, head, parts)
    read = read_parts(tmp_path)
    assert read.denoises == (head != "model")
    hidden = torch.randn(2, 5 * ACTIONS, WIDTH, generator=torch.Generator().manual_seed(3))
    steps = torch.stack([torch.cat([hidden[:, ACTIONS * t + d] for d in range(ACTIONS)], dim=-1) for t in range(5)], 1)
    torch.testing.assert_close(read.head(hidden), head_formula(made["action_head"], steps), atol=2e-5, rtol=0)
    name, projector, inputs = ("proprio_projector", read.proprio, STATES) if "proprio" in parts else (
        "noisy_action_projector", read.noisy_actions, 1)
    x, t = torch.linspace(-1, 1, 2 * inputs).view(1, 2, inputs), made[name]
    inner = x @ t["module.fc1.weight"].T + t["module.fc1.bias"]
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    expected = inner @ t["module.fc2.weight"].T + t["module.fc2.bias"]
    torch.testing.assert_close(projector(x), expected, atol=2e-5, rtol=0)
    read.check(OftPreset(5, ACTIONS, STATES, "q99", ("main",)), WIDTH)


def test_a_checkpoint_without_parts_writes_its_actions_as_words(tmp_path):
    parts = read_parts(tmp_path)
    assert (parts.head, parts.denoises, parts.proprio, parts.noisy_actions) == (None, False, None, None)


def test_parts_that_do_not_fit_are_named(tmp_path):
    made = write_parts(tmp_path)
    with pytest.raises(CheckpointError, match=r"the action head's actions are of 3 numbers; .* have 7. Presets are"):
        read_parts(tmp_path).check(PRESETS["libero"], WIDTH)
    with pytest.raises(CheckpointError, match=r"the proprio projector's tokens are of 12 numbers; .* have 64"):
        parts = read_parts(tmp_path)
        type(parts)(None, False, parts.proprio, None).check(OftPreset(5, 3, STATES, "q99", ("main",)), 64)
    path = tmp_path / "action_head--50_checkpoint.pt"
    for change, message in ((lambda t: t.pop("module.model.fc2.bias"), "lacks tensors: fc_out.bias"),
                            (lambda t: t.update({"module.model.gate": torch.ones(1)}), "has unknown tensors: gate"),
                            (lambda t: t.update({"module.model.fc1.bias": torch.ones(2)}), "has fc_in.bias with shape"),
                            (lambda t: t.update({"module.model.fc2.weight": torch.ones(5, 12)}), "36 numbers for 5")):
        tensors = dict(made["action_head"])
        change(tensors)
        torch.save(tensors, path)
        with pytest.raises(CheckpointError, match=message):
            read_parts(tmp_path)
    torch.save(random_part(head_shapes(DENOISING), 0), path)
    with pytest.raises(CheckpointError, match="holds a head that denoises, but no noisy_action_projector"):
        read_parts(tmp_path)
    torch.save(made["action_head"], tmp_path / "action_head--60_checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"holds 2 files for action_head: action_head--50_checkpoint.pt, act"):
        read_parts(tmp_path)


def test_a_state_is_scaled_then_cut_and_a_wrong_one_refused():
    bounds = Bounds((0.0, -1.0, 5.0, 0.0), (2.0, 1.0, 5.0, 1.0), (True, True, True, False))
    got = normalize_proprio(np.array([0.5, 3.0, 5.0, 0.25]), bounds)
    np.testing.assert_allclose(got, [-0.5, 1.0, -1.0, 0.25], atol=1e-7)
    with pytest.raises(InputError, match=r"must be 4 numbers in a row, got shape \(3,\)"):
        normalize_proprio(np.zeros(3), bounds)
    with pytest.raises(InputError, match="must be finite, got"):
        normalize_proprio(np.array([0.0, 0.0, np.nan, 0.0]), bounds)


def test_sequence_has_everything_in_its_place_and_actions_one_early():
    batch, pictures, prompt, chunk = 2, 8, 5, 6
    parts = [torch.full((batch, count, 3), float(value)) for value, count in enumerate((prompt, pictures, 2, chunk), 1)]
    prompt_part = parts[0] + torch.arange(prompt)[:, None] / 100
    stop = torch.full((1, 1, 3), 9.0)
    sequence = assemble_sequence(prompt_part, parts[1], parts[2], parts[3], stop)
    expected = [1.0] + [2.0] * 8 + [3.0] * 2 + [1.01, 1.02, 1.03, 1.04] + [4.0] * 6 + [9.0]
    assert sequence.embeddings[1, :, 0].tolist() == pytest.approx(expected)
    assert sequence.embeddings[:, sequence.visual].unique().tolist() == [2.0]
    assert sequence.positions.tolist() == [list(range(22))] * 2
    assert sequence.embeddings[0, action_window(chunk), 0].tolist() == pytest.approx([1.04] + [4.0] * 5)
    bare = assemble_sequence(prompt_part, parts[1], None, empty_places(prompt_part, chunk), stop)
    assert bare.embeddings[0, :, 0].tolist() == pytest.approx([1.0] + [2.0] * 8 + expected[11:15] + [0.0] * 6 + [9.0])
    mean = (5 * 1.02 + 9.0) / 6
    torch.testing.assert_close(average_language(prompt_part, stop), torch.full((2, 3), mean))


def test_state_sequence_and_actions_equal_those_of_the_original(oracles):
    folder = oracles / "openvla_oft" / "checkpoint"
    reference = load_file(oracles / "openvla_oft" / "reference_float32.safetensors")
    preset, statistics, parts = PRESETS["libero"], read_statistics(folder), read_parts(folder)
    parts.check(preset, 64)
    state = normalize_proprio(reference["proprio_raw"].numpy(), statistics.bounds("libero_spatial", "proprio", "q99"))
    np.testing.assert_allclose(state, reference["proprio_norm"].numpy(), atol=1e-12)

    words = open_safetensors(folder).read(EMBEDDING).float()
    ids = torch.cat((reference["input_ids"], torch.tensor([[29871]])), dim=1)
    extra = parts.proprio(torch.from_numpy(state).float()[None, None])
    prompt, stop = F.embedding(ids, words), words[STOP_ID][None, None]
    wanted = reference["l1_inputs_embeds"]
    sequence = assemble_sequence(prompt, wanted[:, 1:513], extra, empty_places(prompt, preset.action_tokens), stop)
    torch.testing.assert_close(sequence.embeddings, wanted, atol=2e-5, rtol=0)

    hidden = reference["l1_hidden_last"][:, action_window(preset.action_tokens)]
    assert torch.equal(hidden, reference["l1_action_hidden"])
    spec = preset.action_spec(statistics, None)
    actions = unnormalize_actions(parts.head.float()(hidden)[0].double().numpy(), spec)
    np.testing.assert_allclose(actions, reference["l1_actions"].numpy(), atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_words_of_openvla_mean_the_actions_that_the_original_makes_of_them(oracles, dtype):
    reference = load_file(oracles / "openvla" / f"reference_{dtype}.safetensors")
    spec = read_statistics(oracles / "openvla" / "checkpoint").bounds("bridge_orig", "action", "q99").action_spec(1)
    values = ActionTokens().decode(reference["generated_ids"]).double().numpy()
    np.testing.assert_allclose(unnormalize_actions(values, spec)[0], reference["action"].numpy(), atol=2e-5)
