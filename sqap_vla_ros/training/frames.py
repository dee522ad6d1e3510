"""Labelled pictures on disk: written in shards by many processes, read as one memory-mapped set.

Every frame carries the expert's answer to every instruction its scene allows, so any of them can be asked of it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sqap_vla_ros.simulation.expert import plan
from sqap_vla_ros.simulation.tabletop import Tabletop
from sqap_vla_ros.simulation.tasks import COLORS, KINDS, Task
from sqap_vla_ros.training.settings import CHUNK_STEPS

_LABELS = ("chunks", "present", "blocks", "pixels", "gripper", "own")


class ShardWriter:
    """Collects frames in memory and writes them as one shard, whole or not at all."""

    def __init__(self) -> None:
        self._images: list[np.ndarray] = []
        self._labels: dict[str, list[np.ndarray]] = {name: [] for name in _LABELS}

    def __len__(self) -> int:
        return len(self._images)

    def add(self, tabletop: Tabletop, task: Task, image: np.ndarray) -> None:
        """Label what ``tabletop`` shows now; ``task`` is what the robot was doing."""
        state = tabletop.state()
        chunks = np.zeros((len(KINDS), len(COLORS), CHUNK_STEPS, 7), np.float32)
        present = np.zeros(len(COLORS), bool)
        blocks = np.zeros((len(COLORS), 3), np.float32)
        for index, color in enumerate(COLORS):
            if color in state.blocks:
                present[index], blocks[index] = True, state.blocks[color]
                for kind_index, kind in enumerate(KINDS):
                    chunks[kind_index, index] = plan(state, Task(kind, color), tabletop.layout, CHUNK_STEPS)
        self._images.append(image)
        values = (chunks, present, blocks, project_to_pixels(tabletop, blocks),
                  np.array([*state.tcp, state.opening], np.float32),
                  np.array([KINDS.index(task.kind), COLORS.index(task.color)]))
        for name, value in zip(_LABELS, values, strict=True):
            self._labels[name].append(value)

    def write(self, path: Path) -> None:
        """Write the labels to ``path`` (.npz) after the pictures beside it (.npy): labels mean a whole shard."""
        pictures = path.with_suffix(".npy")
        np.save(pictures, np.stack(self._images))
        unfinished = path.with_suffix(".part.npz")
        labels: dict[str, Any] = {name: np.stack(values) for name, values in self._labels.items()}
        np.savez(unfinished, **labels)
        os.replace(unfinished, path)


def project_to_pixels(tabletop: Tabletop, points: np.ndarray) -> np.ndarray:
    """(P, 3) points in the base frame to (P, 2) pixels of the camera."""
    position, rotation = tabletop.camera_pose()
    return tabletop.camera().project((points - position) @ rotation)[0].astype(np.float32)


@dataclass(frozen=True)
class Batch:
    """Frames as arrays; the first dimension is the frame. See :class:`ShardWriter` for the meaning of each."""

    images: np.ndarray
    chunks: np.ndarray
    present: np.ndarray
    blocks: np.ndarray
    pixels: np.ndarray
    gripper: np.ndarray
    own: np.ndarray


class FrameSet:
    """All whole shards of a folder."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(path for path in folder.glob("*.npz") if not path.name.endswith(".part.npz"))
        self._images = [np.load(path.with_suffix(".npy"), mmap_mode="r") for path in paths]
        labels = [np.load(path) for path in paths]
        self._labels = {name: np.concatenate([shard[name] for shard in labels]) for name in _LABELS} if paths else {}
        self._starts = np.cumsum([0] + [len(images) for images in self._images])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, indices: np.ndarray) -> Batch:
        """Read the frames at ``indices``."""
        images = []
        for index in indices:
            shard = int(np.searchsorted(self._starts, index, side="right")) - 1
            images.append(self._images[shard][index - self._starts[shard]])
        return Batch(np.stack(images), **{name: values[indices] for name, values in self._labels.items()})
