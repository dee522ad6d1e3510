"""What the float model did on one stored observation, kept beside its compressed self, which is compared with it.

A robot's computer that multiplies wrongly, a damaged file or a rule that drops what matters show in this number before
the arm moves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sqap_vla_ros.errors import CheckpointError, InputError
from sqap_vla_ros.policy.observations import StoredObservation, read_picture

PICTURE_FILE = "reference_{}.png"


@dataclass(frozen=True)
class Reference:
    """An observation and what the float model made of it, with every visual token.

    :param observation: what was seen and asked for
    :param actions: (T, D) float64, normalised
    """

    observation: StoredObservation
    actions: np.ndarray

    def measure_sqnr_db(self, actions: np.ndarray) -> float:
        """Signal to noise of other actions on the same observation; infinite where they are the same.

        :param actions: (T, D), normalised
        :raises CheckpointError: when they are of another shape
        """
        if actions.shape != self.actions.shape:
            raise CheckpointError(f"the reference has actions of shape {self.actions.shape}, and the model gives "
                                  f"{actions.shape}; compress the checkpoint again")
        noise = float(np.square(actions - self.actions).sum())
        signal = float(np.square(self.actions).sum())
        return math.inf if noise == 0.0 else 10 * math.log10(max(signal, 1e-300) / noise)

    def write(self, folder: Path) -> tuple[dict[str, Any], dict[str, Path]]:
        """Write the pictures.

        :param folder: where to
        :return: plain values of all else, and the pictures' files by name
        """
        files = {}
        for index, rgb in enumerate(self.observation.images):
            name = PICTURE_FILE.format(index)
            files[name] = folder / name
            files[name].write_bytes(cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes())
        state = self.observation.state
        return {"images": list(files), "instruction": self.observation.instruction,
                "state": None if state is None else state.tolist(), "actions": self.actions.tolist()}, files


def read_reference(folder: Path, values: Mapping[str, Any]) -> Reference:
    """Inverse of :meth:`Reference.write`.

    :param folder: with the pictures
    :param values: as it returned them
    :raises CheckpointError: for values or pictures of no use
    """
    try:
        images = tuple(read_picture(folder / name) for name in values["images"])
        state = None if values["state"] is None else np.array(values["state"], dtype=np.float64)
        actions = np.array(values["actions"], dtype=np.float64)
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise CheckpointError(f"the reference in '{folder}' is not usable: {error}") from error
    return Reference(StoredObservation(images, str(values["instruction"]), f"'{folder}'", state), actions)
