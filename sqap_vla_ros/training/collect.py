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

"""Where training frames come from: the expert, disturbed on purpose, and the policy itself (DAgger).

DAgger: Ross, Gordon and Bagnell, AISTATS 2011.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sqap_vla_ros.simulation.expert import MAX_STEP_M, act, is_lifted
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.tabletop import Tabletop
from sqap_vla_ros.simulation.tasks import Task
from sqap_vla_ros.training.frames import ShardWriter
from sqap_vla_ros.training.instructions import draw_task
from sqap_vla_ros.training.settings import INSTRUCTIONS_PER_FRAME, TRAIN_SEEDS, Scenes, Settings, mix_layout

FRAMES_PER_SHARD = 500
_LINGER_STEPS = 3
_MOST_DRAWS = 60
_EXPERT_SHARE = 0.15
_NOISE_RAD_PER_M = 2.0
Infer = Callable[[np.ndarray, str], np.ndarray]


@dataclass(frozen=True)
class _Job:
    path: Path
    frames: int
    first_scene: int
    seed: int
    scenes: Scenes
    chunk_steps: int
    policy: Path | None


def collect(folder: Path, name: str, frames: int, *, first_seed: int, settings: Settings, scenes: Scenes,
            policy: Path | None, workers: int) -> None:
    """Fill ``folder`` with shards ``name-*.npz`` of ``frames`` frames in all; whole shards already there are kept.

    :param first_seed: offset into the training seeds
    :param settings: its seed and the length of a plan
    :param scenes: what is shown
    :param policy: checkpoint that drives the robot, or None for the disturbed expert
    :param workers: processes
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for start in range(0, frames, FRAMES_PER_SHARD):
        path = folder / f"{name}-{start // FRAMES_PER_SHARD:04d}.npz"
        if not path.exists():
            jobs.append(_Job(path, min(FRAMES_PER_SHARD, frames - start), TRAIN_SEEDS[first_seed + start],
                             settings.seed, scenes, settings.model.chunk_steps, policy))
    if not jobs:
        return
    with spawn_pool(workers) as pool, \
            tqdm(total=sum(job.frames for job in jobs), desc=f"collect {name}", unit="frame") as progress:
        for done in pool.imap_unordered(_collect_shard, jobs):
            progress.update(done)


def spawn_pool(workers: int, start: Callable[..., None] | None = None, *arguments: Any) -> Pool:
    """Processes of one thread each, for products and for the software renderer, as many as there are cores.

    :param start: what each calls first, with ``arguments``
    """
    # Read when torch is imported, so before the processes run anything.
    os.environ.update(OMP_NUM_THREADS="1", LP_NUM_THREADS="1")
    return multiprocessing.get_context("spawn").Pool(workers, start, arguments)


def _collect_shard(job: _Job) -> int:
    # Not the stream that draws the scene of the same number.
    rng = np.random.default_rng((job.seed, job.first_scene))
    writer, seed = ShardWriter(job.chunk_steps), job.first_scene
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
    return mix_layout(scenes, name, varied=bool(rng.random() < scenes.varied))


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
        writer.add(tabletop, draw_tasks(tabletop, task, job.scenes.kinds, rng), image)
        if infer is None or (not chunk and rng.random() < _EXPERT_SHARE):
            action = disturb(act(tabletop.state(), task, tabletop.layout), noise, rng)
        else:
            chunk = chunk or list(infer(image, task.instruction)[:int(rng.integers(1, 4))])
            action = chunk.pop(0)
        tabletop.step(action)
        lingering += tabletop.succeeded(task)


def draw_tasks(tabletop: Tabletop, own: Task, kinds: Mapping[str, float], rng: np.random.Generator) -> list[Task]:
    """What is asked of a frame: what the robot was doing, then others, repeated where the scene allows too few.

    No side of two blocks of which one is in the air is asked for: where it came from cannot be seen.

    :param own: what the robot was doing
    :param kinds: weight of each kind among the others
    """
    state, tasks = tabletop.state(), [own]
    lifted = {name.split("_")[0] for name in state.blocks if is_lifted(state, name, tabletop.layout)}
    for _ in range(_MOST_DRAWS):
        task = draw_task(tabletop.scene, kinds, rng)
        if task not in tasks and not (task.side and task.color in lifted):
            tasks.append(task)
        if len(tasks) == INSTRUCTIONS_PER_FRAME:
            break
    return list(itertools.islice(itertools.cycle(tasks), INSTRUCTIONS_PER_FRAME))


def disturb(action: np.ndarray, noise_m: float, rng: np.random.Generator) -> np.ndarray:
    """An action made worse, so that the expert is seen to recover: noise in half of the steps, a wrong grip in few.

    :param action: (7,) m, rad and gripper
    :param noise_m: standard deviation of the noise along each axis
    """
    worse = action.copy()
    if rng.random() < 0.5:
        worse[:3] += noise_m * rng.normal(size=3)
        worse[5] += noise_m * _NOISE_RAD_PER_M * rng.normal()
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
