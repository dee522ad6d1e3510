"""Where training frames come from: the expert, disturbed on purpose, and the policy itself (DAgger).

DAgger: Ross, Gordon and Bagnell, AISTATS 2011.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sqap_vla_ros.simulation.expert import MAX_STEP_M, act
from sqap_vla_ros.simulation.tabletop import Tabletop
from sqap_vla_ros.simulation.tasks import KINDS, MAX_STEPS, Task
from sqap_vla_ros.training.frames import ShardWriter
from sqap_vla_ros.training.settings import TRAIN_SEEDS

FRAMES_PER_SHARD = 500
_LINGER_STEPS = 3
Infer = Callable[[np.ndarray, str], np.ndarray]


def collect(folder: Path, name: str, frames: int, *, first_seed: int, policy: Path | None, workers: int) -> None:
    """Fill ``folder`` with shards ``name-*.npz`` of ``frames`` frames in all; whole shards already there are kept.

    :param first_seed: offset into the training seeds
    :param policy: checkpoint that drives the robot, or None for the disturbed expert
    :param workers: processes
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = -(-frames // FRAMES_PER_SHARD)
    jobs = [(folder / f"{name}-{index:04d}.npz", TRAIN_SEEDS[first_seed + index * FRAMES_PER_SHARD],
             min(FRAMES_PER_SHARD, frames - index * FRAMES_PER_SHARD), policy)
            for index in range(count) if not (folder / f"{name}-{index:04d}.npz").exists()]
    if not jobs:
        return
    with multiprocessing.get_context("spawn").Pool(workers, _limit_threads) as pool, \
            tqdm(total=sum(job[2] for job in jobs), desc=f"collect {name}", unit="frame") as progress:
        for done in pool.imap_unordered(_collect_shard, jobs):
            progress.update(done)


def _limit_threads() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"


def _collect_shard(job: tuple[Path, int, int, Path | None]) -> int:
    path, seed, frames, policy = job
    tabletop, writer, rng = Tabletop(), ShardWriter(), np.random.default_rng(seed)
    infer = None if policy is None else load_infer(policy)
    while len(writer) < frames:
        scene = tabletop.reset(seed)
        seed += 1
        task = Task(str(rng.choice(KINDS, p=(0.2, 0.35, 0.45))), str(rng.choice(scene.colors)))
        _run(tabletop, task, writer, rng, frames, infer)
    writer.write(path)
    tabletop.close()
    return frames


def _run(tabletop: Tabletop, task: Task, writer: ShardWriter, rng: np.random.Generator, frames: int,
         infer: Infer | None) -> None:
    # With a policy, the expert takes over a share of the chunks so that late phases are seen from the start.
    noise = MAX_STEP_M * rng.choice([0.0, 0.2, 0.5])
    lingering = 0
    chunk: list[np.ndarray] = []
    for _ in range(MAX_STEPS):
        if len(writer) >= frames or lingering > _LINGER_STEPS:
            return
        image = tabletop.render()
        writer.add(tabletop, task, image)
        if infer is None or (not chunk and rng.random() < 0.15):
            action = act(tabletop.state(), task, tabletop.layout)
            if rng.random() < 0.5:
                action[:3] += rng.normal(0.0, noise + 1e-9, 3)
            if noise > 0 and rng.random() < 0.02:
                action[6] = 1.0 - action[6]
        else:
            chunk = chunk or list(infer(image, task.instruction)[:int(rng.integers(1, 4))])
            action = chunk.pop(0)
        tabletop.step(action)
        lingering += tabletop.succeeded(task)


def load_infer(checkpoint: Path) -> Infer:
    """A float policy on one thread: picture and instruction to (T, 7) steps."""
    import torch

    from sqap_vla_ros.training.learner import infer_chunk, load_policy

    torch.set_num_threads(1)
    model = load_policy(checkpoint)
    return lambda image, instruction: infer_chunk(model, image, instruction)
