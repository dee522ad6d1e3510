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

"""OpenVLA-OFT's other head denoises a chunk, and asks the whole decoder at every step.

The sampler is DDIM with eta 0 (Song et al. 2021, equation 12) over the squared-cosine diffusion, as CogACT's, but the
clean actions that a step implies are cut to [-1, 1]. That makes a step more than a sum of noisy actions and noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.models.diffusion import squared_cosine_betas

TRAIN_STEPS = 50
# Noisy actions (B, T, D) and a time of the diffusion to the predicted noise.
NoisePredictor = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class ClippedSchedule:
    """Which times of the diffusion a sample stops at, and how much of the clean actions is left there.

    :param timesteps: falling; the model is told these
    :param left: share of the clean actions' variance at each
    :param left_next: the same at the one that follows; 1 behind the last
    """

    timesteps: tuple[int, ...]
    left: tuple[float, ...]
    left_next: tuple[float, ...]


def clipped_schedule(steps: int = TRAIN_STEPS, train_steps: int = TRAIN_STEPS) -> ClippedSchedule:
    """Times 0, s, 2 s, ... with s whole and ``steps`` of them.

    :param steps: predictions per sample; the published checkpoints take as many as they were trained with
    :param train_steps: of the diffusion as trained
    :raises ConfigError: for fewer than 1 or more than ``train_steps``
    """
    if not 1 <= steps <= train_steps:
        raise ConfigError(f"a chunk is denoised in 1 to {train_steps} steps, got {steps}")
    # The diffusion that checkpoints were trained with was worked out in float32. It matters where little is left.
    left = np.cumprod(np.float32(1) - squared_cosine_betas(train_steps).astype(np.float32))
    stride = train_steps // steps
    timesteps = tuple(stride * step for step in reversed(range(steps)))
    left_at = tuple(float(left[time]) for time in timesteps)
    return ClippedSchedule(timesteps, left_at, (*left_at[1:], 1.0))


def denoise_clipped(predict: NoisePredictor, noise: Tensor, schedule: ClippedSchedule) -> Tensor:
    """Go from noise to a chunk.

    :param predict: asked once per step
    :param noise: (B, T, D) standard normal
    :param schedule: where to stop
    :return: (B, T, D) between -1 and 1, in the type of ``noise``
    """
    x = noise
    for time, left, left_next in zip(schedule.timesteps, schedule.left, schedule.left_next, strict=True):
        predicted = predict(x, time).to(x.dtype)
        clean = ((x - math.sqrt(1.0 - left) * predicted) / math.sqrt(left)).clamp(-1.0, 1.0)
        x = math.sqrt(left_next) * clean + math.sqrt(1.0 - left_next) * predicted
    return x


def make_timesteps(width: int, train_steps: int = TRAIN_STEPS) -> nn.Embedding:
    """How far denoising is, as a token that no layer stands before.

    Sines of ``width`` / 2 frequencies from 1 down to 1 / 10000, both ends included, then their cosines. They are looked
    up as words are, since a rotation of the residual stream must turn them as it turns words.

    :param width: C, even
    :param train_steps: of the diffusion as trained
    :return: (train_steps, C) float32, a row for each time of the diffusion; 0 is the last that denoises
    """
    half = width // 2
    falling = torch.arange(half) * (-math.log(10000.0) / (half - 1))
    angles = torch.arange(train_steps).float()[:, None] * falling.exp()
    return nn.Embedding.from_pretrained(torch.cat((angles.sin(), angles.cos()), dim=-1))
