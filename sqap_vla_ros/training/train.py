"""`sqap train-demo`: from nothing to the demo checkpoint, in stages that survive being killed."""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.models.demo import DemoVla
from sqap_vla_ros.models.registry import save_model
from sqap_vla_ros.simulation.suite import SUITES
from sqap_vla_ros.training.collect import collect
from sqap_vla_ros.training.curve import draw_curve
from sqap_vla_ros.training.frames import FrameSet
from sqap_vla_ros.training.learner import Learner, refine_grid
from sqap_vla_ros.training.settings import RECIPE, Settings, Stage, demo_config, load_settings, scale_settings
from sqap_vla_ros.training.validate import validate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``sqap train-demo``."""
    parser.add_argument("--config", type=Path, default=RECIPE, metavar="FILE",
                        help="the recipe; the default is the one that made the shipped checkpoint")
    parser.add_argument("--work", type=Path, default=Path("out/train"), metavar="DIR",
                        help="frames, resumable state and log (default: out/train); run again to go on after a kill")
    parser.add_argument("--out", type=Path, default=Path("out/train/checkpoint"), metavar="DIR",
                        help="where the finished checkpoint goes (default: out/train/checkpoint)")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X",
                        help="shrink frames, samples and validation by this factor; 0.002 shows in minutes that "
                             "all of it runs")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N",
                        help="processes that collect and validate (default: one per core)")
    parser.add_argument("--device", default="auto", metavar="NAME",
                        help="what learns: cpu, cuda, or auto for cuda where there is one (default: auto)")


def run(args: argparse.Namespace) -> int:
    """Train, export, print one line of JSON."""
    settings = scale_settings(load_settings(args.config), args.scale)
    trainer = Trainer(settings, args.work, args.workers, find_device(args.device))
    for number, stage in enumerate(settings.stages, 1):
        state = "finished before" if (args.work / f"{stage.name}.done").exists() else f"{stage.samples} pictures"
        print(f"stage {number} of {len(settings.stages)}, {stage.name}: {state}", file=sys.stderr)
        trainer.run_stage(stage)
    save_model(trainer.averaged.model, args.out, dtype=torch.bfloat16)
    result = trainer.validate(args.out)
    trainer.log({"event": "finished", **result})
    print(json.dumps({"checkpoint": str(args.out), **result}))
    return 0


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
    """Weights, their average, the optimizer, and where they are kept between runs."""

    def __init__(self, settings: Settings, work: Path, workers: int, device: torch.device) -> None:
        self.settings, self.work, self.workers, self.device = settings, work, workers, device
        torch.manual_seed(settings.seed)
        self.learner = Learner(DemoVla(demo_config(settings.model, settings.stages[0].patch_stride))).to(device)
        self.averaged = copy.deepcopy(self.learner)
        self._seed_offset = 0

    def log(self, record: dict[str, object]) -> None:
        """Append one line to the training log."""
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / "log.jsonl").open("a") as file:
            file.write(json.dumps({"time": round(time.time(), 1), **record}) + "\n")

    def run_stage(self, stage: Stage) -> None:
        """Collect, train and keep one stage; a finished one is only loaded."""
        self._match_grid(stage.patch_stride)
        finished = self.work / f"{stage.name}.done"
        if finished.exists():
            self._resume(stage, None)
        else:
            self._collect(stage)
            started = time.time()
            self._train(stage, FrameSet(self.work / "frames" / stage.scenes, self.device))
            self.log({"event": "stage", "stage": stage.name, "seconds": round(time.time() - started)})
        save_model(self.averaged.model, self.work / "policy")
        if not finished.exists():
            self.log({"event": "validation", "stage": stage.name, **self.validate(self.work / "policy")})
            draw_curve(self.work / "log.jsonl", self.settings.stages, self.work / "training.png")
            finished.touch()
        self._seed_offset += stage.expert_frames + stage.dagger_frames

    def _collect(self, stage: Stage) -> None:
        kinds = (("expert", stage.expert_frames, 0, None),
                 ("dagger", stage.dagger_frames, stage.expert_frames, self.work / "policy"))
        for source, count, offset, policy in kinds:
            if count:
                collect(self.work / "frames" / stage.scenes, f"{stage.name}-{source}", count,
                        first_seed=self._seed_offset + offset, scenes=self.settings.scenes[stage.scenes],
                        chunk_steps=self.settings.model.chunk_steps, policy=policy, workers=self.workers)

    def validate(self, checkpoint: Path) -> dict[str, object]:
        """Success on validation scenes, which it also says."""
        result = {suite: validate(checkpoint, suite, self.settings.validation_episodes, self.settings.execute_steps,
                                  self.workers) for suite in SUITES}
        for suite, part in result.items():
            print(f"validation, {suite} suite: {part['success']:.1%} {part['tasks']}", file=sys.stderr)
        return dict(result)

    def _match_grid(self, patch_stride: int) -> None:
        if self.learner.model.config.vision.patch_stride == patch_stride:
            return
        for holder in (self.learner, self.averaged):
            finer = DemoVla(demo_config(self.settings.model, patch_stride)).to(self.device)
            refine_grid(holder.model, finer)
            holder.model = finer

    def _train(self, stage: Stage, frames: FrameSet) -> None:
        steps = math.ceil(stage.samples / stage.batch_size)
        optimizer = torch.optim.AdamW(self.learner.parameters(), lr=stage.peak_rate, betas=(0.9, 0.95),
                                      weight_decay=self.settings.optimizer.weight_decay, fused=True)
        first = self._resume(stage, optimizer)
        recent: dict[str, Tensor] = {}
        progress = tqdm(range(first, steps), initial=first, total=steps, desc=stage.name, unit="step", mininterval=5)
        for step in progress:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, stage, self.settings.optimizer.warmup_steps)
            rng = np.random.default_rng((self.settings.seed, step, stage.patch_stride, stage.samples))
            losses = self._step(optimizer, frames, rng, stage.batch_size)
            recent = {name: 0.95 * recent.get(name, value) + 0.05 * value for name, value in losses.items()}
            if step % 20 == 0:
                progress.set_postfix({name: f"{float(value):.3f}" for name, value in recent.items()})
            if (step + 1) % self.settings.save_every == 0 or step + 1 == steps:
                self._save(stage, optimizer, step + 1)
                self.log({"event": "losses", "stage": stage.name, "step": step + 1,
                          **{name: round(float(value), 4) for name, value in recent.items()}})

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

    def _save(self, stage: Stage, optimizer: torch.optim.Optimizer, step: int) -> None:
        path = self.work / f"{stage.name}.pt"
        unfinished = path.with_suffix(".part")
        torch.save({"learner": self.learner.state_dict(), "averaged": self.averaged.state_dict(),
                    "optimizer": optimizer.state_dict(), "step": step}, unfinished)
        os.replace(unfinished, path)

    def _resume(self, stage: Stage, optimizer: torch.optim.Optimizer | None) -> int:
        path = self.work / f"{stage.name}.pt"
        if not path.exists():
            return 0
        kept = torch.load(path, weights_only=True, map_location=self.device)
        self.learner.load_state_dict(kept["learner"])
        self.averaged.load_state_dict(kept["averaged"])
        if optimizer is not None:
            optimizer.load_state_dict(kept["optimizer"])
        return int(kept["step"])


def learning_rate(step: int, steps: int, stage: Stage, warmup: int) -> float:
    """Linear warm-up, then a cosine from the peak to the final rate."""
    if step < warmup:
        return stage.peak_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return stage.final_rate + 0.5 * (stage.peak_rate - stage.final_rate) * (1 + math.cos(math.pi * share))
