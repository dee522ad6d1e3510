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

"""A policy serves models of several cameras, with a state, and with a decoder that is asked again after the prefill."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from sqap_vla_ros.config import Config, build_config, iterate_knobs
from sqap_vla_ros.data import Observation, RobotFootprint, TokenRule
from sqap_vla_ros.errors import CheckpointError, ConfigError, InputError
from sqap_vla_ros.knobs import InputKnobs
from sqap_vla_ros.models.llama import Choice, LlamaConfig, LlamaDecoder, PruneStep
from sqap_vla_ros.models.pictures import prepare_picture
from sqap_vla_ros.models.vla import ActionSpec, ImageSpec, Later, ModelSettings, Sequence, VlaModel
from sqap_vla_ros.policy.compression import check_smoothness
from sqap_vla_ros.policy.observations import StoredObservation, calibrate
from sqap_vla_ros.policy.policy import Policy, token_grids
from sqap_vla_ros.policy.preprocess import unnormalize_actions
from sqap_vla_ros.policy.wiring import check_arm
from sqap_vla_ros.pruning.pruner import Pruner, draw_seed
from sqap_vla_ros.quantization.recipe import RECIPES

HALF = ((0.5, 0.5, 0.5),)
STATE = np.array([0.1, -0.2, 0.3])
# Between margins, 64 x 32 px fill rows 1 and 2 of the 4 x 4 tokens, 32 x 64 px columns 1 and 2.
WIDE, TALL = {4, 5, 6, 7, 8, 9, 10, 11}, {1, 2, 5, 6, 9, 10, 13, 14}


class Chunker(nn.Module):
    """Two cameras, a state, every token sees every other, and noisy actions are bettered in two further passes."""

    family = "chunker"
    pictures = "none"
    cameras = ("main", "wrist")
    grid = (4, 4)
    state_size = 3
    action_tokens = 6
    decodes = False
    has_smooth_actions = False
    example = "go on"
    causal = False

    def __init__(self):
        super().__init__()
        self.vision = nn.Conv2d(3, 32, 8, 8)
        self.words = nn.Embedding(8, 32)
        self.read_state = nn.Linear(3, 32)
        self.decoder = LlamaDecoder(LlamaConfig(32, 64, 2, 4, 2))
        self.head = nn.Linear(32, 1)
        self.action_spec = ActionSpec(3, (-1.0, -2.0), (1.0, 2.0), (True, True))
        self.image_spec = ImageSpec(32, "letterbox", HALF, HALF)
        self.later = None

    def choose(self, settings):
        self.pictures = settings.pictures

    def tokenize(self, instruction):
        return [1 + len(word) % 7 for word in instruction.split()]

    def encode_images(self, pixels, ids):
        pictures = [self.vision(picture).flatten(2).transpose(1, 2) for picture in pixels.split(3, dim=1)]
        return torch.cat(pictures, dim=1) * len(ids)

    def build_sequence(self, visual, ids, state=None, seed=0):
        noise = torch.randn(1, self.action_tokens, 32, generator=torch.Generator().manual_seed(seed))
        words = self.words(torch.tensor([[0, *ids]]))
        read = self.read_state(state.float())[None, None]
        embeddings = torch.cat((words[:, :1], visual, read, words[:, 1:], noise), dim=1)
        positions = torch.arange(embeddings.shape[1])[None]
        return Sequence(embeddings, positions, slice(1, 1 + visual.shape[1]), causal=self.causal)

    def predict_actions(self, hidden, later=None):
        self.later = later
        actions = self.head(hidden[:, -6:])
        if later is not None:
            for _ in range(2):
                embeddings = later.sequence.embeddings.clone()
                embeddings[:, -6:] += actions
                actions = self.head(self.decoder(embeddings, later.sequence.positions, causal=False, prune=later.prune,
                                                 tail=6))
            later.end_stage("decode")
        return actions.view(1, 3, 2)

    def rotation_sites(self):
        raise AssertionError("nothing is rotated here")

    def quantizable_linears(self):
        return {name: module for name, module in self.decoder.named_modules() if isinstance(module, nn.Linear)}

    def blocks(self):
        return list(self.decoder.layers)

    def float_reasons(self):
        return {}


class Writer(Chunker):
    """Writes one number after the other, each behind all before it."""

    action_tokens = 1
    decodes = True
    causal = True

    def predict_actions(self, hidden, later=None):
        self.later = later
        written = [hidden[:, -1:]]
        if later is None:
            return self.head(written[0])
        for step in range(5):
            position = later.sequence.positions[:, -1:] + 1 + step
            written.append(self.decoder(written[-1], position, cache=later.cache))
        later.end_stage("decode")
        return self.head(torch.cat(written, dim=1)).view(1, 3, 2)


def make_policy(kind=Chunker, **knobs):
    torch.manual_seed(0)
    model = kind().eval()
    values = {"prune.layer": 0, **{f"prune.{name}": value for name, value in knobs.items()}}
    config = build_config(values)
    pruner = None if config.prune.rule == "none" else Pruner(config.prune, token_grids(model))
    return Policy(model, config, pruner, None, torch.device("cpu"))


def observe(*footprints, **changes):
    rng = np.random.default_rng(1)
    images = tuple(rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in ((64, 32), (32, 64)))
    return dataclasses.replace(Observation(5, images, "push it", footprints or (None, None), state=STATE), **changes)


def disc(u, v, radius):
    return RobotFootprint(("hand",), np.array([[u, v]], dtype=float), np.array([radius], dtype=float))


def robot_tokens(tokens):
    return set(tokens.kept[tokens.rules == TokenRule.ROBOT].tolist())


def make_sequence(model, observation, seed):
    ids = model.tokenize(observation.instruction)
    pixels = torch.cat([prepare_picture(rgb, model.image_spec)[0] for rgb in observation.images], dim=1)
    return model.build_sequence(model.encode_images(pixels, ids), ids, torch.from_numpy(STATE), seed)


@torch.inference_mode()
def run_alone(model, observation, prune=None):
    """What the model gives without a policy, the same tokens leaving in each pass."""
    sequence = make_sequence(model, observation, draw_seed(observation.images, 0))
    hidden = model.decoder(sequence.embeddings, sequence.positions, causal=False, prune=prune, tail=6)
    actions = model.predict_actions(hidden, Later(sequence, prune, None, 0, lambda stage: None))
    return unnormalize_actions(actions[0].double().numpy(), model.action_spec)


@pytest.mark.parametrize("kind", [Chunker, Writer])
def test_they_are_models_of_the_protocol(kind):
    assert isinstance(kind(), VlaModel)


def test_without_pruning_it_is_the_model_itself():
    policy = make_policy(rule="none")
    inference = policy.infer(observe())
    np.testing.assert_array_equal(inference.chunk.steps, run_alone(make_policy().model, observe()))
    assert inference.chunk.steps.shape == (3, 2)
    assert list(inference.times.milliseconds) == ["preprocess", "vision", "llm", "decode", "head"]
    assert [(tokens.grid, len(tokens.kept)) for tokens in inference.tokens] == [((4, 4), 16)] * 2
    assert policy.describe()["total_tokens"] == policy.describe()["kept_tokens"] == 32
    other = observe(state=STATE + 0.1)
    assert np.abs(policy.infer(other).chunk.steps - inference.chunk.steps).max() > 1e-6


def test_every_camera_has_its_own_mask_by_its_own_map():
    # Discs that hold the whole picture: margins are none of it.
    policy = make_policy(rule="sqap", pruned_ratio=0.25, attention_ratio=0.0, robot_ratio=1.0)
    everywhere = disc(30.0, 30.0, 200.0)
    for footprints, expected in (((everywhere, None), (WIDE, set())), ((None, everywhere), (set(), TALL)),
                                 ((everywhere, everywhere), (WIDE, TALL))):
        assert tuple(map(robot_tokens, policy.infer(observe(*footprints)).tokens)) == expected
    # The pixels of one token of 16 x 16 px: in row 2, column 3 of the wide one, and row 3, column 1 of the tall one.
    found = policy.infer(observe(disc(55.5, 23.5, 7.0), disc(7.5, 55.5, 7.0))).tokens
    assert tuple(map(robot_tokens, found)) == ({2 * 4 + 3}, {3 * 4 + 1})
    assert [len(tokens.kept) for tokens in found] == [12, 12]
    # Turned by the preset, camera and all.
    policy.model.choose(ModelSettings(pictures="libero-uncropped"))
    found = policy.infer(observe(disc(55.5, 7.5, 3.0), None)).tokens
    assert robot_tokens(found[0]) == {4 * row for row in (2, 3)}
    np.testing.assert_allclose(policy.image_map(64, 32).apply([0.0, 0.0]), [31.25, 31.0], atol=1e-9)


def test_tokens_are_chosen_once_for_all_passes():
    policy = make_policy(rule="fastv", pruned_ratio=0.5)
    with policy.pruner.record_scores() as record:
        inference = policy.infer(observe())
    assert len(record) == 1
    later = policy.model.later
    assert (later.prune.layer, later.prune.watchers, later.cache) == (0, 6, None)
    assert later.seed == draw_seed(observe().images, 0)
    for tokens, scores in zip(inference.tokens, record[0][0].split(16), strict=True):
        assert set(tokens.kept.tolist()) == set(scores.topk(8).indices.tolist())
    kept = torch.from_numpy(np.concatenate([inference.tokens[0].kept, inference.tokens[1].kept + 16]))[None]
    fixed = PruneStep(0, slice(1, 33), lambda scores, hidden: Choice(kept), watchers=6)
    np.testing.assert_array_equal(inference.chunk.steps, run_alone(make_policy().model, observe(), fixed))


def test_noise_is_the_pictures_own_whatever_is_pruned():
    plain = make_policy(rule="none").infer(observe()).chunk.steps
    np.testing.assert_array_equal(make_policy(rule="sqap", pruned_ratio=0.0).infer(observe()).chunk.steps, plain)
    assert np.abs(make_policy(rule="none", seed=1).infer(observe()).chunk.steps - plain).max() > 1e-6
    (text,) = (knob.description for name, knob, _ in iterate_knobs(Config()) if name == "prune.seed")
    assert text.endswith("the noise that CogACT's actions and those of OpenVLA-OFT's diffusion head are made from.")


def test_a_model_that_decodes_gets_the_keys_and_values_of_the_prefill():
    policy = make_policy(Writer, rule="none")
    inference = policy.infer(observe())
    assert list(inference.times.milliseconds) == ["preprocess", "vision", "llm", "decode", "head"]
    model = make_policy(Writer).model
    with torch.inference_mode():
        sequence = make_sequence(model, observe(), draw_seed(observe().images, 0))
        embeddings, found = sequence.embeddings, []
        for _ in range(6):
            hidden = model.decoder(embeddings, torch.arange(embeddings.shape[1])[None])[:, -1:]
            embeddings = torch.cat((embeddings, hidden), dim=1)
            found.append(model.head(hidden).item())
    np.testing.assert_allclose(inference.chunk.steps, np.reshape(found, (3, 2)) * [1.0, 2.0], atol=1e-5)
    pruned = make_policy(Writer, rule="sqap", pruned_ratio=0.5)
    steps = pruned.infer(observe()).chunk.steps
    assert (pruned.model.later.prune.watchers, len(pruned.model.later.cache)) == (1, 2)
    assert np.abs(steps - inference.chunk.steps).max() > 1e-6


@pytest.mark.parametrize(("changes", "words"), [
    ({"images": observe().images[:1]}, "came with 1 pictures, and the model sees 2; .*: main, wrist"),
    ({"images": observe().images * 2}, "came with 4 pictures, .*: main, wrist"),
    ({"footprints": (None,)}, "2 pictures came with 1 footprints"),
    ({"state": None}, "came without a robot state, and the model reads one of 3 numbers"),
    ({"state": np.zeros(4)}, r"must be 3 numbers in a row, got shape \(4,\)"),
    ({"state": np.array([0.0, np.inf, 0.0])}, "must be finite")])
def test_observations_that_do_not_fit(changes, words):
    with pytest.raises(InputError, match=words):
        make_policy().infer(observe(**changes))


def test_a_state_that_nobody_reads_is_refused():
    policy = make_policy()
    policy.model.state_size = 0
    with pytest.raises(InputError, match="came with a robot state, and the model reads none"):
        policy.infer(observe())


@pytest.mark.parametrize("kind", [Chunker, Writer])
def test_warming_up_brings_pictures_state_and_words_along(kind):
    policy = make_policy(kind, rule="sqap", pruned_ratio=0.5)
    policy.warm_up()
    assert policy.model.later.sequence.embeddings.shape[1] == 1 + 32 + 1 + 2 + policy.model.action_tokens


def test_calibration_runs_the_first_pass_over_all_tokens():
    model, observation = make_policy().model, observe()
    stored = StoredObservation(observation.images, observation.instruction, "line 7", STATE)
    (run,) = calibrate(model, [stored])
    sequence = make_sequence(model, observation, 0)
    hidden = model.decoder(sequence.embeddings, sequence.positions, causal=False)
    assert torch.equal(run(), model.head(hidden[:, -6:]).view(1, 3, 2))
    assert model.later is None
    for change, words in (({"images": observation.images[:1]}, "line 7: .* 1 pictures, .*: main, wrist"),
                          ({"state": None}, "line 7: .* without a robot state")):
        with pytest.raises(ConfigError, match=words):
            calibrate(model, [dataclasses.replace(stored, **change)])


def test_one_arm_needs_one_camera_and_no_state():
    model = Chunker()
    with pytest.raises(CheckpointError, match="2 dimensions; to move one arm 7 are needed"):
        check_arm(model, InputKnobs())
    model.action_spec = ActionSpec(3, (0.0,) * 7, (1.0,) * 7, (True,) * 7)
    with pytest.raises(CheckpointError, match=r"sees 2 camera\(s\) \(main, wrist\)"):
        check_arm(model, InputKnobs())
    model.cameras = ("main",)
    with pytest.raises(CheckpointError, match="reads a robot state of 3 numbers"):
        check_arm(model, InputKnobs())
    check_arm(model, InputKnobs(state="joints", joints=("a", "b", "c")))
    with pytest.raises(CheckpointError, match="state of 3 numbers, and here are 7"):
        check_arm(model, InputKnobs(state="pose_rpy", joints=("finger",)))
    model.state_size = 0
    check_arm(model, InputKnobs())


def test_gradients_of_words_are_refused():
    for name, recipe in RECIPES.items():
        if recipe.mean_bits is None:
            check_smoothness(Chunker(), name, recipe)
        else:
            with pytest.raises(ConfigError, match=rf"'{name}' .* family 'chunker' writes actions as words.* w4a4, "):
                check_smoothness(Chunker(), name, recipe)
