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

"""Camera pixels to model pixels as one affine map, whatever is done to a picture on the way.

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


def scale_map(width: int, height: int, new_width: int, new_height: int) -> ImageMap:
    """A picture resized, each side by itself; all in px."""
    across, down = new_width / width, new_height / height
    return ImageMap(np.array([[across, 0.0, 0.5 * across - 0.5], [0.0, down, 0.5 * down - 0.5]]))


def crop_map(left: int, top: int) -> ImageMap:
    """A picture without its first ``left`` columns and ``top`` rows; negative numbers add some."""
    return ImageMap(np.array([[1.0, 0.0, -left], [0.0, 1.0, -top]]))


def turn_map(width: int, height: int, quarter_turns: int) -> ImageMap:
    """A picture turned anticlockwise by right angles, as ``numpy.rot90`` does.

    :param width: before, px
    :param height: before, px
    :param quarter_turns: how many; negative ones go clockwise
    """
    return ImageMap(np.array([
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[0.0, 1.0, 0.0], [-1.0, 0.0, width - 1.0]],
        [[-1.0, 0.0, width - 1.0], [0.0, -1.0, height - 1.0]], [[0.0, -1.0, height - 1.0], [1.0, 0.0, 0.0]],
    ][quarter_turns % 4]))


def resize_map(width: int, height: int, size: int) -> ImageMap:
    """The whole picture squashed to a square.

    :param width: of the camera's picture, px
    :param height: of the camera's picture, px
    :param size: side of the square, px
    """
    return scale_map(width, height, size, size)


def resize_crop_map(width: int, height: int, size: int) -> ImageMap:
    """The shorter side resized to ``size``, and the middle of the longer.

    The longer side is cut to whole pixels and the middle rounded to even, as torchvision's Resize and CenterCrop do.

    :param width: of the camera's picture, px
    :param height: of the camera's picture, px
    :param size: side of the square, px
    """
    short = min(width, height)
    new_width, new_height = size * width // short, size * height // short
    return scale_map(width, height, new_width, new_height).then(
        crop_map(round((new_width - size) / 2), round((new_height - size) / 2)))


def zoom_map(size: int, area_ratio: float) -> ImageMap:
    """The middle of a square enlarged to the whole, as TensorFlow's ``crop_and_resize`` does it for OpenVLA.

    There the outermost pixel *centres* come to lie on each other, not the outermost edges.

    :param size: side of the square before and after, px
    :param area_ratio: share of the area that the middle has, above 0 to 1
    """
    share = area_ratio**0.5
    shift = -0.5 * (1.0 - share) * (size - 1) / share
    return ImageMap(np.array([[1.0 / share, 0.0, shift], [0.0, 1.0 / share, shift]]))
