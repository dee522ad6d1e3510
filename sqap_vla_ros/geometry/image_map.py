"""Camera pixels to model pixels as one affine map.

The centre of the first pixel is at (0, 0) in both pictures, so a picture of width W covers -0.5 to W - 0.5 and a
resize by s maps u to (u + 0.5) s - 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class ImageMap:
    """An invertible affine map of the picture plane.

    :param matrix: (2, 3) float64; (u', v') = matrix @ (u, v, 1)
    """

    matrix: np.ndarray

    def apply(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) pixels of the source to (..., 2) pixels of the target."""
        return np.asarray(points, dtype=np.float64) @ self.matrix[:, :2].T + self.matrix[:, 2]

    def then(self, following: ImageMap) -> ImageMap:
        """Compose: first this map, then ``following``."""
        linear = following.matrix[:, :2] @ self.matrix[:, :2]
        return ImageMap(np.column_stack((linear, following.apply(self.matrix[:, 2]))))

    def inverse(self) -> ImageMap:
        """From the target back to the source."""
        linear = np.linalg.inv(self.matrix[:, :2])
        return ImageMap(np.column_stack((linear, -linear @ self.matrix[:, 2])))


def resize_map(width: int, height: int, size: int) -> ImageMap:
    """The whole picture squashed to a square.

    :param width: of the camera's picture, px
    :param height: of the camera's picture, px
    :param size: side of the square, px
    """
    across, down = size / width, size / height
    return ImageMap(np.array([[across, 0.0, 0.5 * across - 0.5], [0.0, down, 0.5 * down - 0.5]]))
