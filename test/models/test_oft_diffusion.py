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

"""The clipped sampler against closed forms, and the token that tells it the time."""

import math

import pytest
import torch

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.models.oft_diffusion import clipped_schedule, denoise_clipped, make_timesteps


def left_at(time, steps=50):
    """Share of the signal, which telescopes as long as no step is capped."""
    share = [math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, min(time + 1, steps - 1))]
    return share[1] / share[0] * (0.001 if time == steps - 1 else 1.0)


def test_schedule_is_the_squared_cosine_at_evenly_spaced_times():
    whole, part = clipped_schedule(), clipped_schedule(20)
    assert whole.timesteps == tuple(range(49, -1, -1)) and part.timesteps == tuple(range(38, -1, -2))
    for schedule in (whole, part):
        for time, left in zip(schedule.timesteps, schedule.left, strict=True):
            assert left == pytest.approx(left_at(time), rel=3e-5)
        assert schedule.left_next == (*schedule.left[1:], 1.0)
    for steps in (0, 51):
        with pytest.raises(ConfigError, match=f"1 to 50 steps, got {steps}"):
            clipped_schedule(steps)


@pytest.mark.parametrize("steps", [50, 10, 3, 1])
def test_who_knows_the_actions_gets_them_and_those_outside_are_cut(steps):
    torch.manual_seed(0)
    actions = torch.tensor([[[-0.9, 0.3, 0.7], [1.0, 0.0, -1.0]]], dtype=torch.float64)
    noise = torch.randn(1, 2, 3, dtype=torch.float64)
    schedule = clipped_schedule(steps)
    left = dict(zip(schedule.timesteps, schedule.left, strict=True))

    def predictor(goal):
        return lambda x, time: (x - math.sqrt(left[time]) * goal) / math.sqrt(1 - left[time])

    torch.testing.assert_close(denoise_clipped(predictor(actions), noise, schedule), actions, atol=1e-9, rtol=0)
    beyond = denoise_clipped(predictor(3 * actions), noise, schedule)
    torch.testing.assert_close(beyond, (3 * actions).clamp(-1, 1), atol=1e-9, rtol=0)


def test_noise_that_is_wrong_leads_where_the_recurrence_leads():
    # One number, no tensors: the clean action that a step implies is cut, the noise that was predicted is not.
    schedule, x = clipped_schedule(7), 0.8
    sample = denoise_clipped(lambda noisy, time: 0.3 * noisy.sin() + 0.02 * time, torch.full((1, 1, 1), x), schedule)
    times = [7 * step for step in range(6, -1, -1)]
    for time in times:
        noise = 0.3 * math.sin(x) + 0.02 * time
        clean = max(-1.0, min(1.0, (x - math.sqrt(1 - left_at(time)) * noise) / math.sqrt(left_at(time))))
        after = left_at(time - 7) if time else 1.0
        x = math.sqrt(after) * clean + math.sqrt(1 - after) * noise
    assert abs(x) < 0.99 and sample.item() == pytest.approx(x, abs=2e-5)


def test_time_is_told_by_sines_then_cosines_between_both_ends():
    timesteps = make_timesteps(64)
    tokens = timesteps(torch.arange(50))
    assert tokens.shape == (50, 64) and isinstance(timesteps.weight, torch.nn.Parameter)
    assert tokens[0].tolist() == [0.0] * 32 + [1.0] * 32
    for time in (1, 49):
        for index in (0, 11, 31):
            angle = time * 10000 ** (-index / 31)
            assert tokens[time, index].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert tokens[time, 32 + index].item() == pytest.approx(math.cos(angle), abs=1e-5)
