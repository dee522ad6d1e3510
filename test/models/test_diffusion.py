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

"""Schedules against published numbers and Bayes' rule, the sampler where the answer is known, and the original's."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.models.diffusion import (
    ActionModel,
    clip_actions,
    ddim_schedule,
    ddpm_schedule,
    denoise,
    make_schedule,
    read_action_model,
    squared_cosine_betas,
)
from sqap_vla_ros.models.dit import Dit, DitConfig

TINY = DitConfig(depth=1, hidden_size=16, num_heads=2, chunk_steps=3, action_size=2, cognition_size=6)
TOLERANCE = 2e-5


def make_model(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    model = ActionModel(Dit(TINY)).to(dtype).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def shares_left():
    return np.cumprod(1 - squared_cosine_betas(100))


def test_ten_steps_use_the_published_shares():
    schedule = ddim_schedule(10)
    assert list(schedule.timesteps) == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]
    published = [.99936872, .9667167, .88910313, .77400621, .63251575, .47826463, .32611525, .19072748, .08514621,
                 .01954438]
    np.testing.assert_allclose(shares_left()[::10], published, atol=5e-9)
    assert schedule.draws == 1


def test_betas_are_capped_and_rise():
    betas = squared_cosine_betas(100)
    assert betas[-1] == 0.999 and (betas[:-1] < 0.8).all() and (np.diff(betas) > 0).all()


@pytest.mark.parametrize(("steps", "times"), [
    (1, [50]), (2, [50, 0]), (5, [80, 60, 40, 20, 0]), (4, [75, 50, 25, 0]), (100, list(range(100))[::-1])])
def test_times_are_evenly_spaced(steps, times):
    assert list(ddim_schedule(steps).timesteps) == times


@pytest.mark.parametrize("steps", [0, -1, 16, 30, 99, 101])
def test_a_count_without_a_stride_is_refused(steps):
    with pytest.raises(ConfigError, match=f"cannot take {steps} evenly .* allowed are 1, 2, 3, 4, 5, .*50, 100"):
        ddim_schedule(steps)


def test_none_of_ddims_steps_are_all_of_ddpms():
    assert make_schedule(0) == ddpm_schedule() and make_schedule(5) == ddim_schedule(5)
    with pytest.raises(ConfigError, match=r"cannot take 30 .* 50, 100; 0 is DDPM"):
        make_schedule(30)


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_a_ddim_step_keeps_its_noise_and_its_end(steps):
    schedule, left, x0, noise = ddim_schedule(steps), shares_left(), 0.7, -1.3
    shares = [left[time] for time in schedule.timesteps] + [1.0]
    for index in range(steps):
        before, after = (np.sqrt(share) * x0 + np.sqrt(1 - share) * noise for share in shares[index:index + 2])
        assert schedule.keep[index] * before + schedule.remove[index] * noise == pytest.approx(after, abs=1e-12)


def test_a_ddpm_step_is_the_posterior():
    # x_t = sqrt(alpha) x_(t-1) + sqrt(beta) n, with x_(t-1) normal around sqrt(left) x0: precisions add up.
    schedule, betas, left = ddpm_schedule(), squared_cosine_betas(100), shares_left()
    assert list(schedule.timesteps) == list(range(100))[::-1]
    assert schedule.draws == 100 and schedule.spread[-1] == 0.0
    x, noise = 0.4, -0.9
    for index, time in enumerate(schedule.timesteps[:-1]):
        alpha, beta, before = 1 - betas[time], betas[time], left[time - 1]
        x0 = (x - np.sqrt(1 - left[time]) * noise) / np.sqrt(left[time])
        precision = alpha / beta + 1 / (1 - before)
        mean = (np.sqrt(alpha) * x / beta + np.sqrt(before) * x0 / (1 - before)) / precision
        assert schedule.keep[index] * x + schedule.remove[index] * noise == pytest.approx(mean, abs=1e-9)
        assert schedule.spread[index] == pytest.approx(precision**-0.5, rel=1e-9)


@pytest.mark.parametrize("schedule", [ddim_schedule(10), ddim_schedule(5), ddpm_schedule()])
def test_with_perfect_predictions_every_noise_leads_to_the_answer(schedule):
    left, answer = shares_left(), torch.tensor([0.5, -1.0], dtype=torch.float64)

    def predict(x, index):
        share = left[schedule.timesteps[index]]
        return (x - share**0.5 * answer) / (1 - share) ** 0.5

    torch.manual_seed(0)
    sample = denoise(predict, torch.randn(schedule.draws, 4, 3, 2, dtype=torch.float64), schedule)
    torch.testing.assert_close(sample, answer.expand(4, 3, 2), atol=1e-10, rtol=0)


def test_ddpm_samples_have_the_spread_of_what_was_learned():
    schedule, left, mean, deviation = ddpm_schedule(), shares_left(), 0.3, 0.5

    def predict(x, index):
        share = left[schedule.timesteps[index]]
        return (1 - share) ** 0.5 * (x - share**0.5 * mean) / (share * deviation**2 + 1 - share)

    torch.manual_seed(0)
    sample = denoise(predict, torch.randn(schedule.draws, 20000, 1, 1), schedule)
    assert sample.mean().item() == pytest.approx(mean, abs=0.015)
    assert sample.std().item() == pytest.approx(deviation, rel=0.04)


def test_noise_of_another_schedule_is_refused():
    with pytest.raises(ValueError, match="noise holds 1 draws; a sample by this schedule takes 100"):
        denoise(lambda x, index: x, torch.zeros(1, 1, 3, 2), ddpm_schedule())


@pytest.mark.parametrize("scale", [1.5, 4.0])
def test_guidance_goes_beyond_the_condition(scale):
    model, schedule = make_model(), ddim_schedule(5)
    cognition, x = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 3, 2, dtype=torch.float64)
    conditioned = model.make_predictor(cognition, schedule, guidance_scale=1.0)(x, 1)
    time = model.net.embed_times(torch.tensor([schedule.timesteps[1]]))
    without = model.net(x, (time + model.nothing).expand(2, -1))
    guided = model.make_predictor(cognition, schedule, guidance_scale=scale)(x, 1)
    torch.testing.assert_close(guided, scale * conditioned + (1 - scale) * without, atol=1e-12, rtol=0)
    assert (guided - conditioned).abs().max() > 0.01


@pytest.mark.parametrize(("scale", "batch"), [(0.0, 1), (1.0, 1), (1.01, 2), (1.5, 2)])
def test_one_pass_per_step_and_only_guidance_doubles_it(scale, batch):
    model, schedule, passes = make_model(torch.float32), ddim_schedule(10), []
    model.net.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    model.sample(torch.randn(1, 6), model.draw_noise(schedule, torch.Generator()), schedule, guidance_scale=scale)
    assert passes == [batch] * 10


def test_cognition_and_times_are_embedded_once():
    model, schedule, calls = make_model(torch.float32), ddim_schedule(10), []
    for part in (model.net.z_embedder, model.net.t_embedder):
        part.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape))
    model.sample(torch.randn(1, 6), model.draw_noise(schedule, torch.Generator()), schedule)
    assert sorted(calls) == [(1, 6), (10, 256)]


def test_the_same_generator_gives_the_same_actions():
    model, cognition = make_model(torch.float32), torch.randn(1, 6)
    for schedule in (ddim_schedule(10), ddpm_schedule()):
        first, again, other = (model.sample(cognition, model.draw_noise(
            schedule, torch.Generator().manual_seed(seed)), schedule) for seed in (3, 3, 4))
        assert first.shape == (1, 3, 2) and torch.equal(first, again)
        assert (first - other).abs().max() > 0.01


def test_a_model_remembers_neither_schedule_nor_weights():
    model, cognition = make_model(), torch.randn(1, 6, dtype=torch.float64)
    noise = torch.randn(1, 1, 3, 2, dtype=torch.float64)
    ten, five = (model.sample(cognition, noise, ddim_schedule(steps)) for steps in (10, 5))
    assert (ten - five).abs().max() > 1e-3
    assert torch.equal(ten, model.sample(cognition, noise, ddim_schedule(10)))
    model.load_state_dict(make_model(seed=1).state_dict())
    fresh = make_model(seed=1).sample(cognition, noise, ddim_schedule(5))
    assert torch.equal(model.sample(cognition, noise, ddim_schedule(5)), fresh)


def test_half_precision_weights_still_gather_in_float32():
    wide, half, schedule = make_model(torch.float32), make_model(torch.bfloat16), ddim_schedule(10)
    cognition, noise = torch.randn(1, 6), wide.draw_noise(schedule, torch.Generator().manual_seed(0))
    expected, sample = (model.sample(cognition, noise, schedule, guidance_scale=1.5) for model in (wide, half))
    assert sample.dtype == torch.float32
    assert (sample - expected).norm() / expected.norm() < 2e-2


def test_actions_are_clipped_and_the_gripper_is_open_or_closed():
    samples = torch.zeros(1, 4, 7)
    samples[0, :, 0] = torch.tensor([-1.5, -0.5, 1.0, 3.0])
    samples[0, :, 6] = torch.tensor([-2.0, 0.4999, 0.5, 1.2])
    clipped = clip_actions(samples)
    assert clipped[0, :, 0].tolist() == [-1.0, -0.5, 1.0, 1.0]
    assert clipped[0, :, 6].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert samples[0, 0, 0] == -1.5


def test_what_is_not_finite_is_not_clipped_away():
    samples = torch.zeros(1, 3, 7)
    samples[0, 0, 1], samples[0, 1, 6], samples[0, 2, 6] = torch.inf, torch.nan, -torch.inf
    assert clip_actions(samples).isnan().nonzero().tolist() == [[0, 0, 1], [0, 1, 6], [0, 2, 6]]


def to_checkpoint(model, vector):
    """A model's tensors by CogACT's names; its ``nothing`` is not among them."""
    named = {name: tensor for name, tensor in model.state_dict().items() if name != "nothing"}
    return named | {"net.z_embedder.uncondition": vector}


def test_weights_are_read_by_their_names_in_the_checkpoint():
    model, vector = make_model(), torch.randn(1, 6, dtype=torch.float64)
    tensors = to_checkpoint(model, vector)
    assert all(name.startswith("net.") for name in tensors)
    read = read_action_model(tensors, num_heads=2)
    assert read.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(read.nothing, model.net.embed_cognition(vector))
    model.nothing.copy_(read.nothing)
    cognition, noise = torch.randn(1, 6, dtype=torch.float64), torch.randn(1, 1, 3, 2)
    assert torch.equal(*(each.sample(cognition, noise, ddim_schedule(5)) for each in (read, model)))


@pytest.mark.parametrize(("name", "change", "named"), [
    ("final_layer.linear.bias", None, r"'action_model' lacks tensors: final_layer\.linear\.bias"),
    ("z_embedder.uncondition", None, r"z_embedder\.uncondition, which guidance needs, is missing; .* \(1, 6\)"),
    ("z_embedder.uncondition", torch.zeros(1, 5), r"z_embedder\.uncondition.* has shape \(1, 5\); .* \(1, 6\)")])
def test_unfit_weights_are_named(name, change, named):
    tensors = to_checkpoint(make_model(), torch.zeros(1, 6)) | {f"net.{name}": change}
    with pytest.raises(CheckpointError, match=named):
        read_action_model({key: tensor for key, tensor in tensors.items() if tensor is not None}, num_heads=2)


def test_what_stands_for_none_is_embedded_before_rounding_and_does_not_follow_the_linear():
    wide, vector = make_model(), torch.randn(1, 6, dtype=torch.float64)
    half = read_action_model(to_checkpoint(wide.bfloat16(), vector), num_heads=2).requires_grad_(False)
    linear = half.net.z_embedder.linear
    expected = vector @ linear.weight.double().T + linear.bias.double()
    assert half.nothing.dtype == torch.bfloat16 and torch.equal(half.nothing, expected.bfloat16())
    linear.weight.zero_()
    assert torch.equal(half.nothing, expected.bfloat16())


@pytest.fixture(scope="module")
def original(oracles):
    """A tiny checkpoint in the original's own format, and what the original gave for it."""
    folder = oracles / "cogact"
    sizes = json.loads((folder / "architecture.json").read_text())["dit"]
    path, = (folder / "run" / "checkpoints").glob("*.pt")
    tensors = torch.load(path, weights_only=True, mmap=True)["model"]["action_model"]
    model = read_action_model(tensors, num_heads=sizes["heads"]).eval().requires_grad_(False)
    assert (model.net.config.depth, model.net.config.hidden_size) == (sizes["depth"], sizes["hidden"])
    assert model.net.config.chunk_steps == sizes["future_action_window_size"] + 1
    return model, load_file(folder / "reference_float32.safetensors"), tensors


def assert_near(value, expected, tolerance=TOLERANCE):
    torch.testing.assert_close(value, expected.to(value.dtype), atol=tolerance, rtol=0)


def test_schedule_is_the_original_one(original):
    _, reference, _ = original
    np.testing.assert_allclose(squared_cosine_betas(100), reference["base_betas"], rtol=1e-12)
    np.testing.assert_allclose(shares_left(), reference["base_alphas_cumprod"], rtol=1e-12)
    times = ddim_schedule(10).timesteps
    assert list(times) == reference["ddim_step_t"][:, 0].tolist()
    assert list(times)[::-1] == reference["ddim_timestep_map"].tolist()
    np.testing.assert_allclose(shares_left()[list(times)[::-1]], reference["ddim_alphas_cumprod"], rtol=1e-12)


def test_every_step_is_the_original_one(original):
    model, reference, _ = original
    assert_near(model.nothing, model.net.embed_cognition(reference["ddim_z"][1]), 1e-6)
    schedule, seen = ddim_schedule(10), []
    predict = model.make_predictor(reference["cognition"], schedule, guidance_scale=1.5)

    def watch(x, index):
        seen.append((x, predict(x, index)))
        return seen[-1][1]

    sample = denoise(watch, reference["noise"][None], schedule)
    assert len(seen) == 10
    for index, (x, predicted) in enumerate(seen):
        assert_near(x, reference["ddim_step_x"][index, :1])
        assert_near(predicted, reference["ddim_step_eps_cfg"][index, :1])
        assert_near(predict(reference["ddim_step_x"][index, :1], index), reference["ddim_step_eps_cfg"][index, :1])
    assert_near(sample, reference["ddim10_cfg15_raw_samples"][:1])


def test_actions_are_the_original_ones(original):
    model, reference, _ = original
    sample = model.sample(reference["cognition"], reference["noise"][None], ddim_schedule(10), guidance_scale=1.5)
    assert_near(clip_actions(sample)[0], reference["ddim10_cfg15_normalized"])


def test_half_precision_stays_near_the_original(original):
    _, reference, tensors = original
    half = read_action_model({name: tensor.bfloat16() for name, tensor in tensors.items()}, num_heads=4)
    sample = half.sample(reference["cognition"], reference["noise"][None], ddim_schedule(10), guidance_scale=1.5)
    expected = reference["ddim10_cfg15_raw_samples"][:1]
    assert ((sample - expected).norm() / expected.norm()).item() < 2e-2
