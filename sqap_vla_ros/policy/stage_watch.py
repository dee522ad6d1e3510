"""Durations of the stages of one inference."""

from __future__ import annotations

import time

import torch


class StageWatch:
    """Consecutive stages, from its making on; a GPU is waited for so that its work counts where it was asked for.

    :param device: where the work is done
    """

    def __init__(self, device: torch.device) -> None:
        self.milliseconds: dict[str, float] = {}
        self._device = device
        self._began = time.perf_counter()

    def end(self, stage: str) -> None:
        """The stage of this name ends now, and the next one begins."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.milliseconds[stage] = 1e3 * (now - self._began)
        self._began = now
