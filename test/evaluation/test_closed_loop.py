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

"""What is planned, what the policy is given, and what is blanked."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sqap_vla_ros.config import build_config
from sqap_vla_ros.data import ActionChunk
from sqap_vla_ros.errors import CheckpointError, ConfigError, InputError
from sqap_vla_ros.evaluation.blinding import Blindfold, pick_others, see_tokens
from sqap_vla_ros.evaluation.closed_loop import Player, check_setup, choose_blind, find_footprint, limit_steps
from sqap_vla_ros.evaluation.methods import parse_methods
from sqap_vla_ros.evaluation.plan import Job, Setup, exchange_task, plan_jobs
from sqap_vla_ros.geometry.image_map import resize_map
from sqap_vla_ros.knobs import FootprintKnobs, SafetyKnobs
from sqap_vla_ros.models import registry
from sqap_vla_ros.models.demo import DemoVla
from sqap_vla_ros.models.own_format import save_model
from sqap_vla_ros.models.vit import VitConfig
from sqap_vla_ros.policy.compression import compress_checkpoint
from sqap_vla_ros.policy.ensemble import AdaptiveEnsemble
from sqap_vla_ros.policy.policy import build_policy
from sqap_vla_ros.simulation.expert import act
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.scene import draw_scene
from sqap_vla_ros.simulation.suite import SUITES, Trial, choose_trials
from sqap_vla_ros.simulation.tasks import Task

FLOAT, COMPRESSED = parse_methods("float,w4a4-rtn+sqap@0.4")
GRIPPER = FootprintKnobs().frames


@pytest.fixture(scope="module")
def policy():
    return build_policy(build_config({"model.checkpoint": "demo", "model.recipe": "float", "prune.rule": "none"}))


@pytest.fixture
def checkpoint(tiny_demo, tmp_path):
    """Knows 'pick up the red block' and 'blue'."""
    save_model(tiny_demo(), tmp_path)
    return str(tmp_path)


def find_job(method=FLOAT, seed=100):
    """A pick of a block whose colour the tiny model knows."""
    while True:
        for color in ("red", "blue"):
            if color in draw_scene(Layout(), seed).singles:
                return Job(method, Trial(seed, "pick", Task("pick", color), Layout()))
        seed += 1


@pytest.mark.parametrize("suite", list(SUITES))
def test_other_language_names_another_block_that_is_there(suite):
    trials = choose_trials(suite, 60, 7_000)
    jobs = plan_jobs([FLOAT, COMPRESSED], trials, exchange=True)
    assert [job.key for job in jobs] == [(method.name, trial.seed) for method in (FLOAT, COMPRESSED)
                                         for trial in trials]
    for job, trial in zip(jobs, trials, strict=False):
        scene, task = draw_scene(trial.layout, trial.seed), job.trial.task
        scene.check(task)
        assert job.replaced == trial.task and task.kind == trial.task.kind
        assert task.color in scene.singles and task.color not in trial.task.colors
        assert scene.target(task) != scene.target(trial.task)
    assert len({job.trial.task.color for job in jobs}) >= 4
    assert jobs == plan_jobs([FLOAT, COMPRESSED], trials, exchange=True)


def test_scene_without_another_block_is_named():
    scene = draw_scene(replace(Layout(), block_counts=(1, 1)), 3)
    with pytest.raises(ConfigError, match="scene 3 has no other block to name"):
        exchange_task(Task("reach", scene.colors[0]), scene)


def test_what_would_fail_everywhere_is_found_first_without_reading_weights(checkpoint, tiny_demo, tmp_path,
                                                                            monkeypatch):
    job = find_job()
    monkeypatch.delattr(registry, "load_own_")
    check_setup(Setup(checkpoint, 2, "gripper"), [job])
    with pytest.raises(InputError, match="does not know 'put', 'in', 'tray'"):
        check_setup(Setup(checkpoint, 2), [replace(job, trial=replace(job.trial, task=Task("place", "red")))])
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        check_setup(Setup(str(tmp_path / "nothing"), 2), [job])
    config = tiny_demo().config
    arms = replace(config.action, low=(0.0,) * 14, high=(1.0,) * 14, mask=(True,) * 14)
    save_model(DemoVla(replace(config, action=arms)), tmp_path / "arms")
    with pytest.raises(CheckpointError, match="14 dimensions; to move one arm 7 are needed"):
        check_setup(Setup(str(tmp_path / "arms"), 2), [job])
    with pytest.raises(ConfigError, match=r"control\.ensemble_horizon is 4 and control\.execute_steps is 2"):
        check_setup(Setup(checkpoint, 2, settings={"control.ensemble_horizon": 4}), [job])


def test_chunks_of_an_episode_are_blended_by_what_was_carried_out(checkpoint, tabletop, monkeypatch):
    given, played, steps = [], [], np.random.default_rng(0).normal(scale=0.01, size=(5, 4, 7))

    class Scripted:
        config = build_config(Setup(checkpoint, 1, settings={"control.ensemble_horizon": 3}).knobs(FLOAT))

        def infer(self, observation):
            given.append(ActionChunk(observation.stamp_ns, 7, steps[len(given)]))
            return SimpleNamespace(chunk=given[-1])

    player = Player(Setup(checkpoint, 1))
    for _ in range(2):
        tabletop.reset(7_100)
        given.clear()
        look = player._look(Scripted(), tabletop, None, "block_red")
        played.append([look(tabletop.render(), "pick up the red block")[0] for _ in range(5)])
        assert [chunk.stamp_ns for chunk in given] == [index * 100_000_000 for index in range(5)]
    ensemble = AdaptiveEnsemble(3, 0.1)
    expected = [ensemble.blend(ActionChunk(index, 1, chunk), "").steps[0] for index, chunk in enumerate(steps)]
    # Each episode begins another ensemble.
    np.testing.assert_allclose(played, [expected, expected], atol=1e-12)


@pytest.mark.parametrize("blind", ["", "random"])
def test_episode_depends_on_its_job_alone(checkpoint, blind):
    first, second = find_job(), find_job(COMPRESSED, 200)
    player = Player(Setup(checkpoint, 4, blind))
    played = [player.play(job) for job in (first, second, first)]
    player.close()
    assert played[0] == played[2]
    record = played[0]
    assert (record.method, record.seed, record.group, record.steps) == ("float", first.trial.seed, "pick", 60)
    assert record.target == first.trial.task.color and record.nearest in draw_scene(Layout(), record.seed).colors
    assert not record.success and record.jerk > 0.0
    # 60 steps, each slower than 0.6 m/s for 0.1 s.
    assert 0.0 < record.path_m <= 60 * 0.06
    assert played[1].method == "w4a4-rtn+sqap@0.4"


def test_compressed_checkpoint_plays_as_the_recipe_it_was_made_by(checkpoint, tmp_path):
    compress_checkpoint(checkpoint, tmp_path / "small", "w4a4-rtn")
    job = find_job(COMPRESSED)
    players = Player(Setup(checkpoint, 4)), Player(Setup(checkpoint, 4, "", {"w4a4-rtn": str(tmp_path / "small")}))
    made_here, read = (player.play(job) for player in players)
    assert [player._policy.stored_recipe for player in players] == ["", "w4a4-rtn"]
    assert read == made_here and read.method == "w4a4-rtn+sqap@0.4"
    for player in players:
        player.close()


def test_unknown_frame_is_named(tabletop):
    with pytest.raises(ConfigError, match="names 'wrist', which the simulated robot does not have"):
        find_footprint(tabletop, FootprintKnobs(frames=("wrist",), radii_m=(0.1,)))


def test_steps_are_slowed_as_the_node_slows_them():
    steps = np.array([[0.03, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], [0.06, 0.08, 0.0, 0.0, 0.0, 0.1, 0.5]])
    limited = limit_steps(steps, 0.1, SafetyKnobs(max_linear_m_s=0.5))
    assert np.allclose(limited[0], steps[0])
    assert np.allclose(limited[1], [0.03, 0.04, 0.0, 0.0, 0.0, 0.05, 0.5])
    assert steps[1, 0] == 0.06


def test_token_sees_what_its_field_covers():
    vision = VitConfig(32, 8, 4, 32, 1, 2)  # fields of 8 px, 4 px apart: the first covers -2 to 5
    shown = np.zeros((32, 32), bool)
    shown[5, 9] = True
    # Rows -2..5 and 2..9; columns 6..13 and 2..9.
    assert np.argwhere(see_tokens(shown, resize_map(32, 32, 32), vision).reshape(8, 8)).tolist() == [
        [0, 1], [0, 2], [1, 1], [1, 2]]
    # With a stem the first field covers -6 to 8.
    stemmed = see_tokens(shown, resize_map(32, 32, 32), replace(vision, stem_channels=4)).reshape(8, 8)
    assert np.argwhere(stemmed).tolist() == [[row, column] for row in (0, 1, 2) for column in (1, 2, 3)]
    # The same place in a picture twice as wide and three times as high.
    large = np.zeros((96, 64), bool)
    large[15:18, 18:20] = True
    assert np.array_equal(see_tokens(large, resize_map(64, 96, 32), vision),
                          see_tokens(shown, resize_map(32, 32, 32), vision))


def test_blindfold_replaces_tokens_by_the_mean_of_the_rest(tiny_demo):
    model, mask = tiny_demo(), np.zeros(64, bool)
    mask[[3, 40]] = True
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain = model.encode_images(pixels)
        with Blindfold(model) as blindfold:
            assert torch.equal(model.encode_images(pixels), plain)
            blindfold.cover(mask)
            blind = model.encode_images(pixels)
            with pytest.raises(InputError, match="all 64 visual tokens would be blanked"):
                blindfold.cover(~np.zeros(64, bool))
        assert torch.equal(model.encode_images(pixels), plain)
    assert torch.equal(blind[:, ~mask], plain[:, ~mask])
    assert torch.allclose(blind[:, mask], plain[:, ~mask].mean(1, keepdim=True).expand(-1, 2, -1))


def test_other_families_are_not_blinded():
    with pytest.raises(ConfigError, match="family 'openvla' cannot be blinded"):
        Blindfold(SimpleNamespace(family="openvla"))


def test_random_tokens_are_as_many_and_others():
    mask, taken = np.zeros(64, bool), np.zeros(64, bool)
    mask[:10], taken[:30] = True, True
    picked = pick_others(mask, taken, np.random.default_rng(0))
    assert picked.sum() == 10 and not (picked & taken).any()
    assert pick_others(mask, ~mask & (np.arange(64) > 12) | mask, np.random.default_rng(0)).sum() == 3


def test_blanked_tokens_cover_the_gripper_and_the_target(tabletop, policy):
    shares = []
    for seed in range(7_100, 7_112):
        scene = tabletop.reset(seed)
        task = Task("pick", scene.singles[0])
        for _ in range(seed % 7):
            tabletop.step(act(tabletop.state(), task, tabletop.layout))
        labels, footprint = tabletop.segment(), find_footprint(tabletop, policy.config.footprint)
        names = {int(index): tabletop.body_name(int(index)) for index in np.unique(labels) if index >= 0}
        masks = {blind: choose_blind(blind, policy, tabletop, footprint, f"block_{task.color}",
                                     np.random.default_rng(0)) for blind in ("gripper", "target", "random")}
        cells = masks["gripper"].reshape(16, 16).repeat(14, 0).repeat(14, 1)
        gripper = np.isin(labels, [index for index, name in names.items() if name in GRIPPER])
        shares.append((gripper & cells).sum() / gripper.sum())
        block = np.isin(labels, [index for index, name in names.items() if name == f"block_{task.color}"])
        # Fields of 28 px in steps of 14; the stem sees every second pixel from 6 before, and 4 px around each.
        fields = np.pad(block, (10, 11))
        expected = [fields[14 * row:14 * row + 35, 14 * column:14 * column + 35].any()
                    for row in range(16) for column in range(16)]
        assert block.any() and masks["target"].tolist() == expected
        assert masks["random"].sum() == masks["gripper"].sum() > 5
        assert not (masks["random"] & (masks["gripper"] | masks["target"])).any()
    assert np.mean(shares) > 0.95 and min(shares) > 0.85
