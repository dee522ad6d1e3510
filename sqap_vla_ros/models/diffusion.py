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

"""From noise to actions: noise schedules, the sampler's loop, guidance, and what CogACT does with a sample.

Every step of DDIM and DDPM is linear in the noisy actions and the predicted noise, so a schedule is three numbers per
step, worked out once in float64. A sample depends on nothing but its arguments: its noise is one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.models.dit import Dit, read_dit

TRAIN_STEPS = 100
GRIPPER = 6
# CogACT's name of the vector that stands for no cognition.
NO_COGNITION = "z_embedder.uncondition"
# Noisy actions and the index of a step, from 0 in the order of sampling, to the predicted noise.
Predictor = Callable[[Tensor, int], Tensor]


def squared_cosine_betas(steps: int) -> np.ndarray:
    """How much of the variance each diffusion step replaces by noise (Nichol and Dhariwal 2021, section 3.2).

    :param steps: of the diffusion as trained
    :return: (steps,) float64, at most 0.999
    """
    # The share of the signal's variance that is left at time 0 <= t <= 1 is left(t) / left(0).
    left = np.array([math.cos((step / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(steps + 1)])
    return np.minimum(1 - left[1:] / left[:-1], 0.999)


@dataclass(frozen=True)
class Schedule:
    """A way from noise to a sample: x <- keep x + remove e + spread n, with predicted noise e and fresh noise n.

    :param timesteps: diffusion times as trained, falling; the model is told these
    :param keep: one factor per step
    :param remove: one factor per step
    :param spread: one factor per step; zeros for a way without fresh noise, and always for the last step
    """

    timesteps: range
    keep: tuple[float, ...]
    remove: tuple[float, ...]
    spread: tuple[float, ...]

    @property
    def draws(self) -> int:
        """How many chunks of noise a sample takes: one to start from, and one behind each step that spreads."""
        return 1 + sum(factor > 0 for factor in self.spread)


def ddim_schedule(steps: int = 10, train_steps: int = TRAIN_STEPS) -> Schedule:
    """The deterministic sampler of Song et al. 2021, equation 12 with eta 0, at evenly spaced times from 0 up.

    :param steps: predictions per sample; only counts that a whole stride gives, and 1, which is the middle
    :param train_steps: of the diffusion as trained
    :raises ConfigError: for a count that no stride gives
    """
    strides = {len(range(0, train_steps, stride)): stride for stride in range(train_steps, 0, -1)}
    if steps not in strides:
        raise ConfigError(f"a DDIM sampler cannot take {steps} evenly spaced of {train_steps} diffusion steps; allowed "
                          f"are {', '.join(map(str, sorted(strides)))}")
    middle = train_steps // 2
    times = range(middle, middle - 1, -1) if steps == 1 else range(0, train_steps, strides[steps])[::-1]
    left = np.cumprod(1 - squared_cosine_betas(train_steps))[list(times)]
    left_next = np.append(left[1:], 1.0)
    # x = sqrt(left) x0 + sqrt(1 - left) e, solved for x0 and written again with left_next.
    keep = np.sqrt(left_next / left)
    remove = np.sqrt(1 - left_next) - keep * np.sqrt(1 - left)
    return Schedule(times, _floats(keep), _floats(remove), (0.0,) * steps)


def ddpm_schedule(train_steps: int = TRAIN_STEPS) -> Schedule:
    """The sampler of Ho et al. 2020, algorithm 2, every step as trained, with the posterior's variance.

    :param train_steps: of the diffusion as trained
    """
    betas = squared_cosine_betas(train_steps)
    left = np.cumprod(1 - betas)
    left_next = np.append(1.0, left[:-1])
    keep = 1 / np.sqrt(1 - betas)
    remove = -keep * betas / np.sqrt(1 - left)
    spread = np.sqrt(betas * (1 - left_next) / (1 - left))
    return Schedule(range(train_steps)[::-1], _floats(keep[::-1]), _floats(remove[::-1]), _floats(spread[::-1]))


def make_schedule(steps: int) -> Schedule:
    """The sampler of a model that was trained with ``TRAIN_STEPS``, by how many of them it takes.

    :param steps: of DDIM; 0 is DDPM, which takes all
    :raises ConfigError: for a count that DDIM cannot have
    """
    if steps == 0:
        return ddpm_schedule()
    try:
        return ddim_schedule(steps)
    except ConfigError as error:
        raise ConfigError(f"{error}; 0 is DDPM, which takes all") from error


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(values.tolist())


def denoise(predict: Predictor, noise: Tensor, schedule: Schedule) -> Tensor:
    """Go the way of a schedule.

    :param predict: the noise in noisy actions at a step
    :param noise: (draws, B, T, D) standard normal, the first to start from, the others in the order of use
    :param schedule: the way
    :return: (B, T, D), in the type of ``noise``
    """
    if len(noise) != schedule.draws:
        raise ValueError(f"noise holds {len(noise)} draws; a sample by this schedule takes {schedule.draws}")
    x, fresh = noise[0], iter(noise[1:])
    for index, (keep, remove, spread) in enumerate(zip(schedule.keep, schedule.remove, schedule.spread, strict=True)):
        x = keep * x + remove * predict(x, index)
        if spread > 0:
            x = x + spread * next(fresh)
    return x


class ActionModel(nn.Module):
    """CogACT's head: a cognition vector to a chunk of actions.

    ``nothing`` is what guidance leads away from, the embedded vector that stands for no cognition. That vector does not
    come from the decoder's norm, so it must not go through a linear into which gain or rotation have been folded.

    :param net: predicts noise
    """

    def __init__(self, net: Dit) -> None:
        super().__init__()
        self.net = net
        self.nothing = nn.Parameter(torch.zeros(1, net.config.hidden_size))

    def draw_noise(self, schedule: Schedule, generator: torch.Generator, batch: int = 1) -> Tensor:
        """Noise for :meth:`sample`, the same for the same state of the generator.

        :param schedule: tells how much
        :param generator: on the device where the noise shall be
        :param batch: B
        :return: (draws, B, T, D) float32
        """
        config = self.net.config
        return torch.randn(schedule.draws, batch, config.chunk_steps, config.action_size, generator=generator,
                           device=generator.device)

    def sample(self, cognition: Tensor, noise: Tensor, schedule: Schedule, *, guidance_scale: float = 1.5) -> Tensor:
        """Draw a chunk.

        :param cognition: (B, Z) hidden state of the cognition token, behind the decoder's final norm
        :param noise: (draws, B, T, D), as :meth:`draw_noise` gives it
        :param schedule: of the sampler
        :param guidance_scale: how far to go beyond what follows from the cognition, away from what follows from none
            (Ho and Salimans 2022); up to 1 there is no guidance, and half the work
        :return: (B, T, D) normalised actions, not yet clipped; float32, or float64 in a float64 model
        """
        predict = self.make_predictor(cognition, schedule, guidance_scale=guidance_scale)
        return denoise(predict, noise.to(cognition.device, self._wide), schedule)

    def make_predictor(self, cognition: Tensor, schedule: Schedule, *, guidance_scale: float = 1.5) -> Predictor:
        """What predicts noise from one cognition; all that does not depend on the actions is worked out here.

        :param cognition: (B, Z)
        :param schedule: whose steps it will be asked for
        :param guidance_scale: as for :meth:`sample`
        """
        guided = guidance_scale > 1.0
        seen = self.net.embed_cognition(cognition)
        if guided:
            seen = torch.cat((seen, self.nothing.expand_as(seen)))
        times = schedule.timesteps
        # Counted on the device itself: nothing has to be sent there, nor kept from one sample to the next.
        timesteps = torch.arange(times.start, times.stop, times.step, device=cognition.device)
        conditions = self.net.embed_times(timesteps)[:, None] + seen  # (S, 2 B, C) when guided

        def predict(x: Tensor, index: int) -> Tensor:
            x = x.to(conditions.dtype)
            if not guided:
                return self.net(x, conditions[index]).to(self._wide)
            with_cognition, without = self.net(torch.cat((x, x)), conditions[index]).to(self._wide).chunk(2)
            return without + guidance_scale * (with_cognition - without)

        return predict

    @property
    def _wide(self) -> torch.dtype:
        # Samples gather ten or a hundred small changes, which bfloat16 would round away.
        return torch.float64 if self.net.positional_embedding.dtype == torch.float64 else torch.float32


def read_action_model(tensors: Mapping[str, Tensor], *, num_heads: int | None = None) -> ActionModel:
    """Build the head that some weights are for, and put them into it as they are.

    Only the vector that stands for no cognition is not kept: it is embedded, in float64.

    :param tensors: by CogACT's names, all starting with ``net.``
    :param num_heads: of the attention; None for that of CogACT's size of the same width
    :raises CheckpointError: naming the tensor that is missing, unknown or of another shape
    """
    named = {name.removeprefix("net."): tensor for name, tensor in tensors.items()}
    vector = named.pop(NO_COGNITION, None)
    net = read_dit(named, num_heads=num_heads)
    size = net.config.cognition_size
    if vector is None or vector.shape != (1, size):
        came = "is missing" if vector is None else f"has shape {tuple(vector.shape)}"
        raise CheckpointError(f"the action model's tensor {NO_COGNITION}, which guidance needs, {came}; with the sizes "
                              f"of its other tensors it must be {(1, size)}")
    linear = net.z_embedder.linear
    model = ActionModel(net)
    embedded = F.linear(vector.double(), linear.weight.double(), linear.bias.double())
    model.nothing = nn.Parameter(embedded.detach().to(linear.weight.dtype))
    return model


def clip_actions(samples: Tensor, gripper: int = GRIPPER) -> Tensor:
    """Normalised actions out of a sample: motion within [-1, 1], the gripper 0 (closed) below 0.5 and 1 (open) above.

    :param samples: (B, T, D)
    :param gripper: index of the gripper's dimension
    :return: (B, T, D); NaN where a sample is not finite, so that whoever checks behind this sees it
    """
    clipped = samples.clamp(-1.0, 1.0)
    clipped[..., gripper] = (samples[..., gripper] >= 0.5).to(samples.dtype)
    return clipped.masked_fill_(~samples.isfinite(), math.nan)
