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

"""From nothing to the demo checkpoint, in stages that survive being killed."""

from __future__ import annotations

import copy
import math
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.models.demo import DemoVla
from sqap_vla_ros.models.own_format import save_model
from sqap_vla_ros.simulation.suite import SUITES
from sqap_vla_ros.training.collect import collect
from sqap_vla_ros.training.curve import draw_curve
from sqap_vla_ros.training.frames import FrameSet
from sqap_vla_ros.training.learner import Learner, refine_grid
from sqap_vla_ros.training.settings import Settings, Stage, demo_config
from sqap_vla_ros.training.validate import validate
from sqap_vla_ros.training.work import WorkFolder

_MEMORY = 0.95  # of the running means that are logged


def find_device(name: str) -> torch.device:
    """The device of ``--device``.

    :raises ConfigError: when there is none of that name
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu" or (name == "cuda" and torch.cuda.is_available()):
        return torch.device(name)
    raise ConfigError(f"--device {name} is not here; allowed are cpu, cuda where torch sees one, and auto")


class Trainer:
    """Weights, their average, and the way through the stages.

    :param settings: the recipe
    :param work: folder of the run
    :param workers: processes that collect and validate
    :param device: what learns
    :raises ConfigError: when the folder is in use, or another recipe's
    """

    def __init__(self, settings: Settings, work: Path, workers: int, device: torch.device) -> None:
        self.settings, self.workers, self.device = settings, workers, device
        self.work = WorkFolder(work, asdict(settings))
        torch.manual_seed(settings.seed)
        self.learner = Learner(DemoVla(demo_config(settings.model, settings.stages[0].patch_stride))).to(device)
        self.averaged = copy.deepcopy(self.learner)

    def train(self, out: Path) -> dict[str, Any]:
        """Go through all stages and write the checkpoint in bfloat16.

        :return: success on validation scenes, by suite
        """
        for index, stage in enumerate(self.settings.stages):
            state = "finished before" if self.work.is_finished(stage.name) else f"{stage.samples} pictures"
            print(f"stage {index + 1} of {len(self.settings.stages)}, {stage.name}: {state}", file=sys.stderr)
            self.run_stage(index)
        save_model(self.averaged.model, out, dtype=torch.bfloat16)
        result = self.validate(out)
        self.work.log({"event": "finished", **result})
        return result

    def run_stage(self, index: int) -> None:
        """Collect, train, validate and keep one stage; a finished one is only loaded."""
        stage = self.settings.stages[index]
        self._match_grid(stage.patch_stride)
        if self.work.is_finished(stage.name):
            self._load(stage, None)
            return
        started = time.time()
        self._collect(index)
        collected = time.time()
        seconds = self._train(index, FrameSet(self.work.frames(stage.scenes), self.device))
        save_model(self.averaged.model, self.work.policy)
        self.work.log({"event": "stage", "stage": stage.name, "collect_s": round(collected - started),
                       "train_s": round(seconds), "device": self.device.type})
        self.work.log({"event": "validation", "stage": stage.name, **self.validate(self.work.policy)})
        self.work.finish(stage.name)
        draw_curve(self.work.log_path, self.settings.stages, self.work.path / "training.png")

    def validate(self, checkpoint: Path) -> dict[str, Any]:
        """Success on validation scenes by suite, which it also says."""
        result = {suite: validate(checkpoint, suite, self.settings.validation_episodes, self.settings.execute_steps,
                                  self.workers) for suite in SUITES}
        for suite, part in result.items():
            print(f"validation, {suite} suite: {part['success']:.1%} {part['tasks']}", file=sys.stderr)
        return result

    def _collect(self, index: int) -> None:
        stage, before = self.settings.stages[index], self.settings.stages[:index]
        first = sum(earlier.expert_frames + earlier.dagger_frames for earlier in before)
        kinds = (("expert", stage.expert_frames, first, None),
                 ("dagger", stage.dagger_frames, first + stage.expert_frames, self.work.policy))
        for source, count, first_seed, policy in kinds:
            if count:
                collect(self.work.frames(stage.scenes), f"{stage.name}-{source}", count, first_seed=first_seed,
                        settings=self.settings, scenes=self.settings.scenes[stage.scenes], policy=policy,
                        workers=self.workers)

    def _match_grid(self, patch_stride: int) -> None:
        if self.learner.model.config.vision.patch_stride == patch_stride:
            return
        for holder in (self.learner, self.averaged):
            finer = DemoVla(demo_config(self.settings.model, patch_stride)).to(self.device)
            refine_grid(holder.model, finer)
            holder.model = finer

    def _train(self, index: int, frames: FrameSet) -> float:
        # Returns the seconds it took, those of earlier processes included.
        stage = self.settings.stages[index]
        steps = math.ceil(stage.samples / stage.batch_size)
        optimizer = torch.optim.AdamW(self.learner.parameters(), lr=stage.peak_rate, betas=(0.9, 0.95),
                                      weight_decay=self.settings.optimizer.weight_decay, fused=True)
        first, seconds, recent = self._load(stage, optimizer)
        started = time.time()
        progress = tqdm(range(first, steps), initial=first, total=steps, desc=stage.name, unit="step", mininterval=5)
        for step in progress:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, stage, self.settings.optimizer.warmup_steps)
            rng = np.random.default_rng((self.settings.seed, index, step))
            losses = self._step(optimizer, frames, rng, stage.batch_size)
            recent = {name: _MEMORY * recent.get(name, loss) + (1 - _MEMORY) * loss for name, loss in losses.items()}
            if step % 20 == 0:
                progress.set_postfix({name: f"{float(value):.3f}" for name, value in recent.items()})
            if (step + 1) % self.settings.save_every == 0 or step + 1 == steps:
                self.work.save(stage.name, {
                    "learner": self.learner.state_dict(), "averaged": self.averaged.state_dict(),
                    "optimizer": optimizer.state_dict(), "step": step + 1, "recent": recent,
                    "seconds": seconds + time.time() - started})
                self.work.log({"event": "losses", "stage": stage.name, "step": step + 1,
                               **{name: round(float(value), 4) for name, value in recent.items()}})
        return seconds + time.time() - started

    def _step(self, optimizer: torch.optim.Optimizer, frames: FrameSet, rng: np.random.Generator,
              batch_size: int) -> dict[str, Tensor]:
        batch = frames.take(rng.integers(0, len(frames), batch_size))
        # On a CPU the fused attention's backward pass takes four times as long as plain products.
        attention = sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext()
        with torch.autocast(self.device.type, torch.bfloat16), attention:
            losses = self.learner(batch, rng, self.settings.loss)
        optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(self.learner.parameters(), self.settings.optimizer.gradient_clip)
        optimizer.step()
        with torch.no_grad():
            mine: list[Tensor] = list(self.learner.parameters())
            torch._foreach_lerp_(list(self.averaged.parameters()), mine, 1 - self.settings.optimizer.ema_decay)
        return {name: loss.detach() for name, loss in losses.items()}

    def _load(self, stage: Stage, optimizer: torch.optim.Optimizer | None) -> tuple[int, float, dict[str, Tensor]]:
        # Returns the step to go on with, the seconds spent so far, and the running means of the losses.
        kept = self.work.load(stage.name, self.device)
        if kept is None:
            return 0, 0.0, {}
        self.learner.load_state_dict(kept["learner"])
        self.averaged.load_state_dict(kept["averaged"])
        if optimizer is not None:
            optimizer.load_state_dict(kept["optimizer"])
        return int(kept["step"]), float(kept["seconds"]), kept["recent"]


def learning_rate(step: int, steps: int, stage: Stage, warmup: int) -> float:
    """Linear warm-up, then a cosine from the peak to the final rate."""
    if step < warmup:
        return stage.peak_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return stage.final_rate + 0.5 * (stage.peak_rate - stage.final_rate) * (1 + math.cos(math.pi * share))
