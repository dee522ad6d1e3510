"""Training: shards, the shared visual prefix, the finer grid, and going on after a kill."""

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sqap_vla_ros.models.demo import DemoVla
from sqap_vla_ros.simulation.expert import plan
from sqap_vla_ros.simulation.tabletop import Tabletop
from sqap_vla_ros.simulation.tasks import COLORS, KINDS, Task
from sqap_vla_ros.training import train
from sqap_vla_ros.training.frames import Batch, FrameSet, ShardWriter, project_to_pixels
from sqap_vla_ros.training.learner import Learner, infer_chunk, refine_grid, segment_positions
from sqap_vla_ros.training.settings import STAGES, Settings, demo_config


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """Six frames of one scene, written and read back."""
    folder, table, writer = tmp_path_factory.mktemp("frames"), Tabletop(), ShardWriter()
    scene = table.reset(21)
    task = Task("pick", scene.colors[0])
    states = []
    for _ in range(6):
        states.append(table.state())
        writer.add(table, task, table.render())
        table.step(plan(table.state(), task, table.layout, 1)[0])
    writer.write(folder / "some-0000.npz")
    (folder / "killed-0000.part.npz").write_bytes(b"half")
    projected = project_to_pixels(table, np.stack(list(states[0].blocks.values())))
    table.close()
    return FrameSet(folder), scene, states, table.layout, projected


def test_frames_come_back_with_the_answer_to_every_instruction(shard):
    frames, scene, states, layout, projected = shard
    batch = frames.take(np.arange(6))
    assert len(frames) == 6
    assert {COLORS[i] for i in np.flatnonzero(batch.present[0])} == set(scene.colors)
    for color in scene.colors:
        for kind_index, kind in enumerate(KINDS):
            expected = plan(states[3], Task(kind, color), layout, 4)
            assert batch.chunks[3, kind_index, COLORS.index(color)] == pytest.approx(expected, abs=1e-6)
    for color, pixel in zip(states[0].blocks, projected, strict=True):
        assert batch.pixels[0, COLORS.index(color)] == pytest.approx(pixel, abs=1e-3)
        red, green, blue = batch.images[0, round(float(pixel[1])), round(float(pixel[0]))].astype(int)
        strongest = {"red": red, "green": green, "blue": blue}
        if color in strongest:
            assert strongest[color] == max(strongest.values())


def test_instructions_that_share_a_picture_do_not_see_each_other(shard):
    torch.manual_seed(0)
    model = DemoVla(demo_config(28)).eval()
    learner = Learner(model).eval()
    image = shard[0].take(np.array([0])).images[0]
    visual = model.encode_images(((torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255) - 0.5) / 0.5)
    kinds, colors = np.array([[0, 2, 1, 2]]), np.array([[0, 3, 1, 4]])
    with torch.no_grad():
        hidden = learner._decode(visual, learner._words[kinds, colors])
    width = learner._words.shape[-1]
    for index, (kind, color) in enumerate(zip(kinds[0], colors[0], strict=True)):
        length = int(learner._lengths[kind, color])
        act = hidden[:, 1 + visual.shape[1] + index * width + length - 1]
        together = model.decode_actions(act)[0].detach().double().numpy()
        together[:, :6] *= np.array(model.action_spec.high[:6])
        alone = infer_chunk(model, image, Task(KINDS[kind], COLORS[color]).instruction)
        assert together == pytest.approx(alone, abs=1e-5)


def test_coarse_tokens_take_the_positions_of_the_fine_grid():
    coarse, fine = (segment_positions(stride, (224 // stride) ** 2, 2, 3)[0] for stride in (28, 14))
    assert coarse[:4].tolist() == [0, 1, 3, 5]
    assert coarse[9].item() == 1 + 2 * 16
    assert coarse[-3:].tolist() == fine[-3:].tolist() == [257, 258, 259]


def test_a_finer_grid_keeps_every_weight_but_interpolates_positions():
    coarse, fine = DemoVla(demo_config(28)), DemoVla(demo_config(14))
    refine_grid(coarse, fine)
    assert torch.equal(coarse.vision.patch_embed.weight, fine.vision.patch_embed.weight)
    assert fine.vision.pos_embed.shape == (1, 256, 192)
    pooled = fine.vision.pos_embed.view(8, 2, 8, 2, 192).mean((1, 3)).flatten(0, 1)
    assert torch.corrcoef(torch.stack((pooled.flatten(), coarse.vision.pos_embed.flatten())))[0, 1] > 0.9


def test_losses_fall_on_a_few_frames(shard):
    torch.manual_seed(0)
    learner = Learner(DemoVla(demo_config(28)))
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3)
    batch: Batch = shard[0].take(np.arange(4))
    totals = []
    for step in range(12):
        losses = learner(batch, np.random.default_rng(step), Settings())
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        totals.append(losses["total"].item())
    assert totals[-1] < 0.6 * totals[0]


def test_the_rate_warms_up_and_ends_where_it_should():
    stage = STAGES[0]
    rates = [train.learning_rate(step, 1000, stage, 100) for step in range(1000)]
    assert rates[99] == pytest.approx(stage.peak_rate) == max(rates)
    assert rates[-1] == pytest.approx(stage.final_rate, rel=1e-2)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_in_the_same_weights(tmp_path, capsys):
    stage = replace(STAGES[0], expert_frames=40, samples=48, batch_size=8)

    def finish(folder):
        trainer = train.Trainer(replace(Settings(), save_every=2, validation_episodes=3), folder, 1)
        trainer.run_stage(stage)
        return trainer.averaged.state_dict()

    whole = finish(tmp_path / "whole")
    killed = train.Trainer(replace(Settings(), save_every=2, validation_episodes=3), tmp_path / "killed", 1)
    calls, take = [], killed._step

    def die(*args):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return take(*args)

    killed._step = die
    with pytest.raises(KeyboardInterrupt):
        killed.run_stage(stage)
    again = finish(tmp_path / "killed")
    assert all(torch.allclose(whole[name], again[name], atol=1e-5) for name in whole)


@pytest.mark.slow
def test_the_whole_recipe_runs_in_miniature(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    args = parser.parse_args(["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--scale", "0.0005",
                              "--workers", "1"])
    assert train.run(args) == 0
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert last["episodes"] == 3
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < 24e6
