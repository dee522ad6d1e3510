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

"""What the float model did on one stored observation, kept beside its compressed self, which is compared with it.

A computer that multiplies wrongly, or a rule that drops what matters, shows in this number before an arm moves.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.policy.observations import StoredObservation

REFERENCE_FILE = "reference.npz"


@dataclass(frozen=True)
class Reference:
    """An observation and what the float model made of it, with every visual token.

    :param observation: what was seen and asked for
    :param actions: (T, D) float64, normalised
    """

    observation: StoredObservation
    actions: np.ndarray

    def measure_sqnr_db(self, actions: np.ndarray) -> float:
        """Signal to noise of other actions on the same observation, dB; infinite where they are the same.

        :param actions: (T, D), normalised
        :raises CheckpointError: when they are of another shape
        """
        if actions.shape != self.actions.shape:
            raise CheckpointError(f"the reference has actions of shape {self.actions.shape}, and the model gives "
                                  f"{actions.shape}; compress the checkpoint again")
        signal, noise = (float(np.square(values).sum()) for values in (self.actions, actions - self.actions))
        if noise == 0.0:
            return math.inf
        return 10.0 * math.log10(signal / noise) if signal else -math.inf

    def save(self, folder: Path) -> Path:
        """Write ``REFERENCE_FILE`` into a folder."""
        path, state = folder / REFERENCE_FILE, self.observation.state
        images: dict[str, Any] = {f"image_{index}": rgb for index, rgb in enumerate(self.observation.images)}
        np.savez_compressed(path, actions=self.actions, instruction=np.array(self.observation.instruction),
                            state=np.zeros(0) if state is None else state, **images)
        return path


def load_reference(path: Path) -> Reference:
    """Inverse of :meth:`Reference.save`.

    :param path: of the file
    :raises CheckpointError: when it is damaged or of no use
    """
    try:
        with np.load(path) as stored:
            images = tuple(stored[f"image_{index}"] for index in range(len(stored.files) - 3))
            state, instruction, actions = stored["state"], str(stored["instruction"]), stored["actions"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"'{path}', what the float model did, cannot be read: {error}") from error
    return Reference(StoredObservation(images, instruction, f"'{path}'", state if state.size else None), actions)
