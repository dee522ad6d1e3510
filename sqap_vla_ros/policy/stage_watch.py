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
