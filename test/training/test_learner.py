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

"""Training: shards, the shared visual prefix, the finer grid, and going on after a kill."""

import itertools
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from sqap_vla_ros.cli.main import main
from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.models.demo import DemoVla
from sqap_vla_ros.simulation.expert import act, find_target, is_lifted, plan
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.scene import draw_scene
from sqap_vla_ros.simulation.tabletop import Tabletop
from sqap_vla_ros.simulation.tasks import KINDS, Task
from sqap_vla_ros.training import train
from sqap_vla_ros.training.collect import disturb, draw_layout, draw_tasks
from sqap_vla_ros.training.curve import draw_curve
from sqap_vla_ros.training.frames import FrameSet, ShardWriter
from sqap_vla_ros.training.instructions import draw_task, encode_task
from sqap_vla_ros.training.learner import (
    Learner,
    choose_instructions,
    infer_chunk,
    refine_grid,
    segment_positions,
    token_under,
)
from sqap_vla_ros.training.settings import RECIPE, demo_config, load_settings, scale_settings

CPU = torch.device("cpu")
SETTINGS = load_settings()
WIDE = SETTINGS.scenes["wide"]
CROWD = Layout(block_counts=(4, 4), twin_blocks=1)


def build(patch_stride):
    return DemoVla(demo_config(SETTINGS.model, patch_stride))


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """Six frames of one scene with two blocks of one color, written and read back."""
    folder, table, writer = tmp_path_factory.mktemp("frames"), Tabletop(CROWD), ShardWriter(4)
    scene, rng = table.reset(21), np.random.default_rng(0)
    single, other = scene.singles
    tasks = [Task("pick", single), Task("stack", single, other=other), Task("place", scene.twins[0], "right"),
             Task("place-reach", other, other=single),
             *(draw_task(scene, WIDE.kinds, rng) for _ in range(3))]
    states = []
    for _ in range(6):
        states.append(table.state())
        writer.add(table, tasks, table.render())
        table.step(plan(table.state(), tasks[0], table.layout, 1)[0])
    writer.write(folder / "some-0000.npz")
    (folder / "killed-0000.123.part").write_bytes(b"half")
    layout = table.layout
    table.close()
    return FrameSet(folder, CPU), tasks, states, layout


def test_frames_come_back_with_the_answer_to_every_instruction(shard):
    frames, tasks, states, layout = shard
    batch = frames.take(np.array([5, 3]))
    assert len(frames) == 6
    for index, task in enumerate(tasks):
        assert tuple(batch.codes[1, index].tolist()) == encode_task(task)
        assert batch.chunks[1, index].numpy() == pytest.approx(plan(states[3], task, layout, 4), abs=1e-6)
        names = [find_target(states[3], task, layout), task.other]
        for name, block in zip(names, batch.targets[1, index], strict=True):
            assert (block == -1) if not name else \
                batch.blocks[1, block].numpy() == pytest.approx(states[3].blocks[name], abs=1e-6)


def test_blocks_are_seen_where_frames_say(shard):
    batch = shard[0].take(np.array([0]))
    for name, pixel in zip(shard[2][0].blocks, batch.pixels[0], strict=False):
        strongest = {"red": 0, "green": 1, "blue": 2}.get(name.split("_")[0])
        if strongest is not None:
            assert batch.images[0, round(float(pixel[1])), round(float(pixel[0]))].argmax() == strongest


def test_instructions_that_share_a_picture_do_not_see_each_other(shard):
    torch.manual_seed(0)
    model = build(28).eval()
    learner = Learner(model).eval()
    batch = shard[0].take(np.array([0]))
    visual = model.encode_images((batch.images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5)
    words, act_at, colors_at = learner._tokens.look_up(batch.codes)
    with torch.no_grad():
        hidden = learner._decode(visual, words)
    for index, task in enumerate(shard[1]):
        start = 1 + visual.shape[1] + index * words.shape[-1]
        together = model.decode_actions(hidden[:, start + int(act_at[0, index])])[0].detach().double().numpy()
        together[:, :6] *= np.array(model.action_spec.high[:6])
        assert together == pytest.approx(infer_chunk(model, batch.images[0].numpy(), task.instruction), abs=1e-5)
        said = [int(words[0, index, at]) for at in colors_at[0, index]]
        assert said == [model.tokenize(color)[0] for color in (task.color, task.other or task.color)]


def test_the_frames_own_instruction_comes_first_and_none_twice():
    codes = np.zeros((400, 8, 4), np.int8)
    codes[:, 3, 2] = codes[:, 5, 3] = 1
    chosen = choose_instructions(codes, 4, np.random.default_rng(0))
    assert (chosen[:, 0] == 0).all()
    assert all(len(set(row)) == 4 for row in chosen)
    share = np.bincount(chosen.ravel(), minlength=8)[1:] / 400
    assert share[[2, 4]].min() > 0.6 > 0.5 > share[[0, 1, 3, 5, 6]].max()


def test_tokens_under_pixels_are_numbered_row_by_row():
    pixels = torch.tensor([[0.0, 0.0], [223.0, 0.0], [13.4, 14.0], [-50.0, 500.0]])
    assert token_under(pixels, build(14)).tolist() == [0, 15, 16, 240]


def test_every_drawn_task_is_allowed_and_every_kind_comes():
    rng, kinds = np.random.default_rng(0), set()
    for seed in range(200):
        scene = draw_scene(draw_layout(WIDE, rng), seed)
        task = draw_task(scene, WIDE.kinds, rng)
        scene.check(task)
        kinds.add(task.kind)
    assert kinds == set(KINDS)


def test_no_side_is_asked_for_while_one_of_two_alike_is_in_the_air():
    table = Tabletop(Layout(block_counts=(3, 3), twin_blocks=1))
    scene, rng = table.reset(2), np.random.default_rng(0)
    own = Task("pick", scene.twins[0], "left")
    before = draw_tasks(table, own, WIDE.kinds, rng)
    assert before[0] == own and len(set(before)) == 8 and any(task.side for task in before[1:])
    for _ in range(20):
        table.step(act(table.state(), own, table.layout))
    assert is_lifted(table.state(), scene.target(own), table.layout)
    lifted = draw_tasks(table, own, WIDE.kinds, rng)
    table.close()
    # Four kinds on the only other block are all that is left.
    assert len(lifted) == 8 and set(lifted) - {own} == {Task(kind, scene.singles[0]) for kind in
                                                        ("reach", "pick", "place", "pick-place")}


def test_disturbance_moves_and_turns_but_seldom_grips():
    rng, action = np.random.default_rng(0), np.array([0.01, 0, 0, 0, 0, 0, 1.0])
    worse = np.array([disturb(action, 0.02, rng) for _ in range(2000)]) - action
    assert worse[:, 5].std() == pytest.approx(0.04 / 2**0.5, rel=0.1)
    assert (disturb(action, 0.0, rng) == action).all()
    assert 0.45 < (worse[:, 0] != 0).mean() < 0.55
    assert worse[:, :3].std() == pytest.approx(0.02 / 2**0.5, rel=0.1)
    assert 0.01 < (worse[:, 6] != 0).mean() < 0.03


def test_coarse_tokens_take_the_positions_of_the_fine_grid():
    coarse, fine = (segment_positions(stride, (224 // stride) ** 2, 2, 3)[0] for stride in (28, 14))
    assert coarse[:4].tolist() == [0, 1, 3, 5]
    assert coarse[9].item() == 1 + 2 * 16
    assert coarse[-3:].tolist() == fine[-3:].tolist() == [257, 258, 259]


def test_a_finer_grid_keeps_every_weight_but_interpolates_positions():
    coarse, fine = build(28), build(14)
    refine_grid(coarse, fine)
    assert torch.equal(coarse.vision.patch_embed.weight, fine.vision.patch_embed.weight)
    assert fine.vision.pos_embed.shape == (1, 256, 192)
    pooled = fine.vision.pos_embed.view(8, 2, 8, 2, 192).mean((1, 3)).flatten(0, 1)
    assert torch.corrcoef(torch.stack((pooled.flatten(), coarse.vision.pos_embed.flatten())))[0, 1] > 0.9


def test_losses_fall_on_a_few_frames(shard):
    torch.manual_seed(0)
    learner = Learner(build(28))
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3)
    batch = shard[0].take(np.arange(4))
    totals = []
    for step in range(12):
        losses = learner(batch, np.random.default_rng(step), SETTINGS.loss)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        totals.append(losses["total"].item())
    assert totals[-1] < 0.6 * totals[0]


def test_the_rate_warms_up_and_ends_where_it_should():
    stage = SETTINGS.stages[0]
    rates = [train.learning_rate(step, 1000, stage, 100) for step in range(1000)]
    assert rates[99] == pytest.approx(stage.peak_rate) == max(rates)
    assert rates[-1] == pytest.approx(stage.final_rate, rel=1e-2)


@pytest.mark.parametrize(("old", "new", "sentence"), [
    ("seed: 0", "sead: 0", "missing: seed, unknown: sead"),
    ("batch_size: 32", "batch_size: many", r"stages\[0\].batch_size takes a value of kind int, got 'many'"),
    ("scenes: plain, patch", "scenes: bare, patch", "stage 'plain' takes scenes 'bare'; there are plain, wide"),
    ("own_weight: 0.3", "", r"loss needs exactly .* missing: own_weight"),
    ("seed: 0", "seed: [", "cannot be read"),
    ("{base: 1.0}", "{bass: 1.0}", "scenes.plain.difficulties gives shares of base, small"),
    ("{reach: 0.20,", "{rech: 0.20,", "scenes.plain.kinds gives shares of reach, pick"),
    ("{block_yaw_rad: 0.1}", "{block_yaw: 0.1}", "unknown layout field 'block_yaw'"),
    ("name: wide,", "name: plain,", "stage 'plain' needs a name of its own"),
    ("instructions_per_image: 4", "instructions_per_image: 9", "allowed is 1 to 8"),
])
def test_a_recipe_that_cannot_be_is_named(tmp_path, old, new, sentence):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match=sentence):
        load_settings(recipe)


def test_the_curve_shows_every_stage_and_validation_of_a_log(tmp_path):
    losses = dict.fromkeys(("motion", "gripper", "pointer", "place", "gripper_place", "relation", "turn",
                            "turn_seen"), 0.1)
    validation = {suite: {"success": 0.5, "successes": 3, "episodes": 6} for suite in ("base", "hard")}
    records = [{"event": "losses", "stage": stage.name, "step": step, **losses}
               for stage in SETTINGS.stages for step in (200, 400, 400)]
    records += [{"event": "validation", "stage": stage.name, **validation} for stage in SETTINGS.stages]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, records)))
    draw_curve(tmp_path / "log.jsonl", SETTINGS.stages, tmp_path / "curve.png")
    assert cv2.imread(str(tmp_path / "curve.png")).std() > 10


def test_a_smaller_recipe_keeps_everything_else():
    small = scale_settings(SETTINGS, 0.01)
    assert small.stages[0].samples == SETTINGS.stages[0].samples // 100
    assert replace(small, stages=SETTINGS.stages, validation_episodes=SETTINGS.validation_episodes) == SETTINGS


def miniature(**changes):
    """The recipe's first and last stage with next to nothing in them."""
    first, last = SETTINGS.stages[0], SETTINGS.stages[-1]
    stages = (replace(first, name="first", expert_frames=40, samples=48, batch_size=8),
              replace(last, name="last", expert_frames=0, dagger_frames=20, scenes=first.scenes, samples=16))
    return replace(SETTINGS, **{"save_every": 2, "validation_episodes": 3, "stages": stages} | changes)


@pytest.mark.parametrize(("changes", "sentence"), [({}, "another training works in"),
                                                   ({"seed": 1}, "its seed differs; remove the folder")])
def test_a_work_folder_serves_one_run_of_one_recipe(tmp_path, changes, sentence):
    trainer = train.Trainer(miniature(), tmp_path, 1, CPU)
    if changes:
        del trainer
    with pytest.raises(ConfigError, match=sentence):
        train.Trainer(miniature(**changes), tmp_path, 1, CPU)


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "calls"), [("_step", 4), ("_step", 7), ("validate", 1), ("_collect", 2)])
def test_a_killed_run_goes_on_and_ends_in_the_same_weights(tmp_path, capsys, victim, calls):
    def start(folder):
        return train.Trainer(miniature(), folder, 1, CPU)

    whole = start(tmp_path / "whole")
    whole.train(tmp_path / "whole_out")
    killed, count = start(tmp_path / "killed"), itertools.count(1)
    going = getattr(killed, victim)

    def die(*args):
        if next(count) == calls:
            raise KeyboardInterrupt
        return going(*args)

    setattr(killed, victim, die)
    with pytest.raises(KeyboardInterrupt):
        killed.train(tmp_path / "killed_out")
    killed.work._lock.close()
    again = start(tmp_path / "killed")
    again.train(tmp_path / "killed_out")
    expected, got = whole.averaged.state_dict(), again.averaged.state_dict()
    assert all(torch.allclose(expected[name], got[name], atol=1e-5) for name in expected)


@pytest.mark.slow
def test_the_whole_recipe_runs_in_miniature(tmp_path, capsys):
    assert main(["train-demo", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--scale", "0.0005",
                 "--workers", "1", "--device", "cpu"]) == 0
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert last["base"]["episodes"] == last["hard"]["episodes"] == 6
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < 24e6
    assert (tmp_path / "work" / "training.png").exists()


@pytest.mark.gpu
def test_a_gpu_learns_the_same_and_a_cpu_goes_on_from_there(tmp_path):
    totals = []
    for device in ("cpu", "cuda"):
        trainer = train.Trainer(miniature(), tmp_path / device, 1, torch.device(device))
        trainer.run_stage(0)
        totals.append(json.loads(trainer.work.log_path.read_text().splitlines()[0])["total"])
        trainer.work._lock.close()
    assert totals[0] == pytest.approx(totals[1], rel=0.05)
    train.Trainer(miniature(), tmp_path / "cuda", 1, CPU).train(tmp_path / "out")
