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

"""Labelled pictures on disk: written in shards by many processes, read as one set.

Every frame carries the expert's answer to several instructions its scene allows, so any of them can be asked of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sqap_vla_ros.simulation.expert import find_target, plan
from sqap_vla_ros.simulation.tabletop import Tabletop
from sqap_vla_ros.simulation.tasks import Task
from sqap_vla_ros.training.instructions import encode_task

MOST_BLOCKS = 6
_LABELS = ("codes", "chunks", "targets", "blocks", "yaws", "pixels", "gripper")
_LARGEST_SHARE = 0.6


class ShardWriter:
    """Collects frames in memory and writes them as one shard, whole or not at all.

    :param chunk_steps: steps of the expert's plan that are kept
    """

    def __init__(self, chunk_steps: int) -> None:
        self._chunk_steps = chunk_steps
        self._images: list[np.ndarray] = []
        self._labels: dict[str, list[np.ndarray]] = {name: [] for name in _LABELS}

    def __len__(self) -> int:
        return len(self._images)

    def add(self, tabletop: Tabletop, tasks: Sequence[Task], image: np.ndarray) -> None:
        """Label what ``tabletop`` shows now.

        :param tasks: what is asked of it; the first is what the robot was doing
        """
        state, names = tabletop.state(), tuple(tabletop.state().blocks)
        blocks = np.zeros((MOST_BLOCKS, 3), np.float32)
        blocks[:len(names)] = [state.blocks[name] for name in names]
        yaws = np.zeros(MOST_BLOCKS, np.float32)
        yaws[:len(names)] = [state.yaws[name] for name in names]
        targets = np.array([[names.index(find_target(state, task, tabletop.layout)),
                             names.index(task.other) if task.other else -1] for task in tasks], np.int8)
        chunks = np.array([plan(state, task, tabletop.layout, self._chunk_steps) for task in tasks], np.float32)
        self._images.append(image)
        values: tuple[np.ndarray, ...] = (
            np.array([encode_task(task) for task in tasks], np.int8), chunks, targets, blocks, yaws,
            project_to_pixels(tabletop, blocks), np.array([*state.tcp, state.opening, state.yaw], np.float32))
        for name, value in zip(_LABELS, values, strict=True):
            self._labels[name].append(value)

    def write(self, path: Path) -> None:
        """Write the labels to ``path`` (.npz) after the pictures beside it (.npy): labels mean a whole shard."""
        # Of two processes that write the same shard, one left over from a killed run, either gives a whole one.
        unfinished = path.with_name(f"{path.stem}.{os.getpid()}.part")
        with unfinished.open("wb") as file:
            np.save(file, np.stack(self._images))
        os.replace(unfinished, path.with_suffix(".npy"))
        labels: dict[str, Any] = {name: np.stack(values) for name, values in self._labels.items()}
        with unfinished.open("wb") as file:
            np.savez(file, **labels)
        os.replace(unfinished, path)


def project_to_pixels(tabletop: Tabletop, points: np.ndarray) -> np.ndarray:
    """(P, 3) points in the base frame to (P, 2) pixels of the camera."""
    position, rotation = tabletop.camera_pose()
    return tabletop.camera().project((points - position) @ rotation)[0].astype(np.float32)


@dataclass(frozen=True)
class Batch:
    """Frames as tensors on one device, save for ``codes``: B frames, M instructions each, P blocks at most.

    :param images: (B, H, W, 3) uint8
    :param codes: (B, M, 4) int64 on the CPU, see :func:`~sqap_vla_ros.training.instructions.encode_task`
    :param chunks: (B, M, T, 7) float32, the expert's plan for each instruction: m, rad, gripper 0..1
    :param targets: (B, M, 2) int64, which blocks an instruction names; -1 for no second one
    :param blocks: (B, P, 3) float32, m
    :param yaws: (B, P) float32, rad
    :param pixels: (B, P, 2) float32, where the blocks' centres are in the picture
    :param gripper: (B, 5) float32, tool centre point and opening, m, and yaw, rad
    """

    images: Tensor
    codes: Tensor
    chunks: Tensor
    targets: Tensor
    blocks: Tensor
    yaws: Tensor
    pixels: Tensor
    gripper: Tensor


class FrameSet:
    """All whole shards of a folder; pictures stay on disk, or move to the GPU when they fit, which it says.

    :param folder: where the shards are
    :param device: where batches go
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        paths = sorted(folder.glob("*.npz"))
        self._device = device
        self._shards = [np.load(path.with_suffix(".npy"), mmap_mode="r") for path in paths]
        labels = [np.load(path) for path in paths]
        # Codes are looked up on the CPU, without waiting for the device.
        self._labels = {name: torch.from_numpy(np.concatenate([shard[name] for shard in labels]))
                        .to("cpu" if name == "codes" else device) for name in _LABELS} if paths else {}
        self._starts = np.cumsum([0] + [len(images) for images in self._shards])
        self._resident: Tensor | None = None
        if device.type == "cuda" and paths:
            self._resident = self._move_pictures()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, indices: np.ndarray) -> Batch:
        """Read the frames at ``indices``."""
        chosen = torch.from_numpy(indices)
        labels = {name: values[chosen.to(values.device)] for name, values in self._labels.items()}
        for name in ("codes", "targets"):
            labels[name] = labels[name].long()
        images = self._read(indices) if self._resident is None else self._resident[chosen.to(self._device)]
        return Batch(images, **labels)

    def _move_pictures(self) -> Tensor | None:
        torch.cuda.empty_cache()
        size, free = sum(images.nbytes for images in self._shards), torch.cuda.mem_get_info(self._device)[0]
        fits = size < _LARGEST_SHARE * free
        print(f"{len(self)} pictures, {size / 1e9:.1f} GB, {'go to' if fits else 'stay on disk: too much for'} "
              f"the GPU, which has {free / 1e9:.1f} GB free", file=sys.stderr)
        if not fits:
            return None
        pictures = torch.empty((len(self), *self._shards[0].shape[1:]), dtype=torch.uint8, device=self._device)
        for images, start in zip(self._shards, self._starts[:-1], strict=True):
            pictures[start:start + len(images)] = torch.from_numpy(np.array(images)).to(self._device)
        return pictures

    def _read(self, indices: np.ndarray) -> Tensor:
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        places = zip(shards, indices - self._starts[shards], strict=True)
        return torch.from_numpy(np.stack([self._shards[shard][index] for shard, index in places])).to(self._device)
