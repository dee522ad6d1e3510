"""Where training frames come from: the expert, disturbed on purpose, and the policy itself (DAgger).

DAgger: Ross, Gordon and Bagnell, AISTATS 2011.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sqap_vla_ros.simulation.expert import MAX_STEP_M, act
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.suite import DIFFICULTIES
from sqap_vla_ros.simulation.tabletop import Tabletop
from sqap_vla_ros.simulation.tasks import Task
from sqap_vla_ros.training.frames import ShardWriter
from sqap_vla_ros.training.instructions import draw_task
from sqap_vla_ros.training.settings import TRAIN_SEEDS, Scenes

FRAMES_PER_SHARD = 500
INSTRUCTIONS_PER_FRAME = 8
_LINGER_STEPS = 3
_EXPERT_SHARE = 0.15
Infer = Callable[[np.ndarray, str], np.ndarray]


@dataclass(frozen=True)
class _Job:
    path: Path
    frames: int
    seed: int
    scenes: Scenes
    chunk_steps: int
    policy: Path | None


def collect(folder: Path, name: str, frames: int, *, first_seed: int, scenes: Scenes, chunk_steps: int,
            policy: Path | None, workers: int) -> None:
    """Fill ``folder`` with shards ``name-*.npz`` of ``frames`` frames in all; whole shards already there are kept.

    :param first_seed: offset into the training seeds
    :param scenes: what is shown
    :param chunk_steps: steps of the expert's plan that label a frame
    :param policy: checkpoint that drives the robot, or None for the disturbed expert
    :param workers: processes
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for start in range(0, frames, FRAMES_PER_SHARD):
        path = folder / f"{name}-{start // FRAMES_PER_SHARD:04d}.npz"
        if not path.exists():
            jobs.append(_Job(path, min(FRAMES_PER_SHARD, frames - start), TRAIN_SEEDS[first_seed + start], scenes,
                             chunk_steps, policy))
    if not jobs:
        return
    with multiprocessing.get_context("spawn").Pool(workers, limit_threads) as pool, \
            tqdm(total=sum(job.frames for job in jobs), desc=f"collect {name}", unit="frame") as progress:
        for done in pool.imap_unordered(_collect_shard, jobs):
            progress.update(done)


def limit_threads() -> None:
    """One thread for the products, one for the software renderer: there are as many processes as cores."""
    os.environ["OMP_NUM_THREADS"] = os.environ["LP_NUM_THREADS"] = "1"


def _collect_shard(job: _Job) -> int:
    writer, rng, seed = ShardWriter(job.chunk_steps), np.random.default_rng(job.seed), job.seed
    infer = None if job.policy is None else load_infer(job.policy)
    tabletops: dict[Layout, Tabletop] = {}
    while len(writer) < job.frames:
        layout = draw_layout(job.scenes, rng)
        if layout not in tabletops:
            tabletops[layout] = Tabletop(layout)
        tabletops[layout].reset(seed)
        seed += 1
        _run(tabletops[layout], job, writer, rng, infer)
    writer.write(job.path)
    for tabletop in tabletops.values():
        tabletop.close()
    return job.frames


def draw_layout(scenes: Scenes, rng: np.random.Generator) -> Layout:
    """One of the few layouts that frames are collected from."""
    shares = np.array(list(scenes.difficulties.values()))
    name = str(rng.choice(list(scenes.difficulties), p=shares / shares.sum()))
    layout = replace(Layout(), **{**scenes.layout, **DIFFICULTIES.get(name, {})})
    if rng.random() >= scenes.varied:
        return layout
    variation: dict[str, Any] = {field: tuple(value) for field, value in scenes.variation.items()}
    return replace(layout, **variation)


def _run(tabletop: Tabletop, job: _Job, writer: ShardWriter, rng: np.random.Generator, infer: Infer | None) -> None:
    # With a policy, the expert takes over a share of the chunks so that late phases are seen from the start.
    task = draw_task(tabletop.scene, job.scenes.kinds, rng)
    noise = MAX_STEP_M * rng.choice([0.0, 0.2, 0.5])
    lingering = 0
    chunk: list[np.ndarray] = []
    for _ in range(task.max_steps):
        if len(writer) >= job.frames or lingering > _LINGER_STEPS:
            return
        image = tabletop.render()
        writer.add(tabletop, [task, *_draw_others(tabletop, job, rng)], image)
        if infer is None or (not chunk and rng.random() < _EXPERT_SHARE):
            action = disturb(act(tabletop.state(), task, tabletop.layout), noise, rng)
        else:
            chunk = chunk or list(infer(image, task.instruction)[:int(rng.integers(1, 4))])
            action = chunk.pop(0)
        tabletop.step(action)
        lingering += tabletop.succeeded(task)


def _draw_others(tabletop: Tabletop, job: _Job, rng: np.random.Generator) -> list[Task]:
    return [draw_task(tabletop.scene, job.scenes.kinds, rng) for _ in range(INSTRUCTIONS_PER_FRAME - 1)]


def disturb(action: np.ndarray, noise_m: float, rng: np.random.Generator) -> np.ndarray:
    """An action made worse, so that the expert is seen to recover: noise in half of the steps, a wrong grip in few."""
    worse = action.copy()
    if rng.random() < 0.5:
        worse[:3] += rng.normal(0.0, noise_m + 1e-9, 3)
        worse[5] += rng.normal(0.0, 2 * noise_m + 1e-9)
    if noise_m > 0 and rng.random() < 0.02:
        worse[6] = 1.0 - worse[6]
    return worse


def load_infer(checkpoint: Path) -> Infer:
    """A float policy on one thread: picture and instruction to (T, 7) steps."""
    import torch

    from sqap_vla_ros.training.learner import infer_chunk, load_policy

    torch.set_num_threads(1)
    model = load_policy(checkpoint)
    return lambda image, instruction: infer_chunk(model, image, instruction)
