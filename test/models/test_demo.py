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

"""Words, token order and actions of the demo family."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from sqap_vla_ros.errors import CheckpointError, InputError
from sqap_vla_ros.models.demo import ACT, BOS, DemoConfig
from sqap_vla_ros.models.registry import load_model
from sqap_vla_ros.models.vla import VlaModel
from sqap_vla_ros.simulation.suite import SUITES, choose_trials

SHIPPED = Path(__file__).parents[2] / "sqap_vla_ros" / "assets" / "demo"


def test_it_is_a_model_of_the_protocol(tiny_demo):
    assert isinstance(tiny_demo(), VlaModel)


def test_words_become_ids_whatever_their_case_and_spacing(tiny_demo):
    model = tiny_demo()
    assert model.tokenize("pick up the red block") == [2, 3, 4, 5, 7]
    assert model.tokenize("  Pick UP,  the red block. ") == [2, 3, 4, 5, 7]
    assert model.tokenize("pick,up!") == [2, 3]


@pytest.mark.parametrize("text", ["", "   ", "\n\t", ".,!"])
def test_an_instruction_without_words_is_refused(tiny_demo, text):
    with pytest.raises(InputError, match="instruction is empty; say what to do, for example"):
        tiny_demo().tokenize(text)


@pytest.mark.parametrize(("text", "named"), [
    ("pick up the green block", "does not know 'green'; its words are pick, up, the, red, blue, block"),
    ("fetch my tea", "'fetch', 'my', 'tea'"), ("pick 2", "'2'"), ("pick up the réd block", "'é'"),
    ("拿起", "'拿起'"), ("pick <act>", "'<'"), ("\x00", "x00")])
def test_unknown_words_are_named(tiny_demo, text, named):
    with pytest.raises(InputError, match=named):
        tiny_demo().tokenize(text)


def test_sequence_is_bos_picture_words_act(tiny_demo):
    model = tiny_demo()
    visual = torch.randn(1, 64, 64)
    sequence = model.build_sequence(visual, [2, 5])
    words = model.embed_tokens.weight
    assert sequence.visual == slice(1, 65)
    assert torch.equal(sequence.embeddings[0, 0], words[BOS])
    assert torch.equal(sequence.embeddings[:, sequence.visual], visual)
    assert torch.equal(sequence.embeddings[0, 65:], words[torch.tensor([2, 5, ACT])])
    assert sequence.positions.tolist() == [list(range(68))]


def test_actions_have_a_gripper_between_closed_and_open(tiny_demo):
    model = tiny_demo(chunk_steps=5)
    hidden = torch.randn(3, 10, 64) * 50
    with torch.no_grad():
        actions = model.predict_actions(hidden)
        assert actions.shape == (3, 5, 7) and actions.dtype == torch.float32
        assert torch.equal(actions, model.decode_actions(hidden[:, -1]))
        logits = model.action_logits(hidden[:, -1])
    assert torch.equal(actions[..., :6], logits[..., :6])
    torch.testing.assert_close(actions[..., 6], logits[..., 6].sigmoid())
    assert actions[..., 6].min() >= 0.0 and actions[..., 6].max() <= 1.0


def test_every_linear_of_the_decoder_and_no_other_is_quantizable(tiny_demo):
    model = tiny_demo(layers=3)
    linears = model.quantizable_linears()
    assert len(linears) == 3 * 7
    modules = dict(model.named_modules())
    assert all(modules[name] is linear and name.startswith("decoder.layers.") for name, linear in linears.items())
    reasons = model.float_reasons()
    named = {part for key in reasons for part in key.split(", ")}
    others = {name.split(".")[0] for name, _ in model.named_parameters()} - {"decoder"}
    assert named == others


def test_configuration_survives_json(tiny_demo):
    config = tiny_demo().config
    assert DemoConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_configuration_with_a_missing_part_is_refused(tiny_demo):
    for part in ("vision", "decoder", "vocabulary", "action"):
        values = tiny_demo().config.to_json()
        del values[part]
        with pytest.raises(CheckpointError, match=part):
            DemoConfig.from_json(values)


def test_the_shipped_checkpoint_is_small_and_its_card_names_it():
    weights = SHIPPED / "model.safetensors"
    assert weights.stat().st_size <= 24e6
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in (SHIPPED / "README.md").read_text()


def test_the_shipped_checkpoint_knows_every_word_of_every_task():
    model = load_model("demo")
    for suite in SUITES:
        for trial in choose_trials(suite, 60, 100):
            assert model.tokenize(trial.task.instruction)
