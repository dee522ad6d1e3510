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

"""Metres to pixels: a pinhole or fisheye camera with the distortion models that ROS names.

A distortion polynomial is only true up to the angle where it folds back; beyond it points far off to the side
would reappear inside the picture, so they count as not projectable, like points behind the camera.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from sqap_vla_ros.errors import InputError
from sqap_vla_ros.geometry.image_map import crop_map, scale_map

# Allowed numbers of coefficients: sensor_msgs/CameraInfo and the models of REP-104; '' is an ideal pinhole.
COEFFICIENT_COUNTS = {"": (0,), "plumb_bob": (0, 4, 5), "rational_polynomial": (0, 8), "equidistant": (4,)}
# Largest tangent of the angle from the axis: at 0.06 degrees from the camera's own plane a pinhole's view ends.
PINHOLE_LIMIT = 1e3


@dataclass(frozen=True, eq=False)
class Camera:
    """A calibrated camera; the optical frame has z forward, x right, y down (REP-103).

    The picture is the raw one, so the calibration is K and D; for a rectified picture see :meth:`rectified`, for one
    that is cut out or binned on the sensor :meth:`windowed`.

    :param matrix: (3, 3) float64 K of the picture in use, px
    :param distortion: coefficients in OpenCV's order: plumb_bob k1 k2 p1 p2 k3, rational_polynomial
        k1 k2 p1 p2 k3 k4 k5 k6, equidistant k1 k2 k3 k4; empty for none
    :param model: one of ``COEFFICIENT_COUNTS``
    :param width: picture width, px
    :param height: picture height, px
    :param shift_m: (3,) added to every point: where the origin of the points' frame is in the camera's own
    :param field_rad: largest angle from the optical axis at which the distortion still grows, below pi/2, rad
    :raises InputError: when the calibration cannot be used
    """

    matrix: np.ndarray
    distortion: np.ndarray
    model: str
    width: int
    height: int
    shift_m: np.ndarray = field(default_factory=lambda: np.zeros(3))
    field_rad: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", np.asarray(self.matrix, dtype=np.float64))
        object.__setattr__(self, "distortion", np.asarray(self.distortion, dtype=np.float64).reshape(-1))
        if self.model not in COEFFICIENT_COUNTS:
            raise InputError(f"distortion model '{self.model}' is not known; known are "
                             f"{', '.join(repr(name) for name in COEFFICIENT_COUNTS)}")
        if self.distortion.size not in COEFFICIENT_COUNTS[self.model]:
            raise InputError(f"distortion model '{self.model}' came with {self.distortion.size} coefficients; it takes "
                             f"{' or '.join(map(str, COEFFICIENT_COUNTS[self.model]))}")
        if self.matrix.shape != (3, 3):
            raise InputError(f"the camera matrix K has shape {self.matrix.shape}; it must be (3, 3)")
        if not all(np.isfinite(values).all() for values in (self.matrix, self.distortion, self.shift_m)):
            raise InputError("the camera's calibration has a value that is not finite; calibrate it again")
        if self.matrix[0, 0] <= 0.0 or self.matrix[1, 1] <= 0.0:
            raise InputError(f"the camera is not calibrated: its focal lengths are {self.matrix[0, 0]:g} and "
                             f"{self.matrix[1, 1]:g} px; publish a camera_info with K filled in")
        if self.width <= 0 or self.height <= 0:
            raise InputError(f"the camera's picture is {self.width} x {self.height} px; both must be positive")
        object.__setattr__(self, "field_rad", self._measure_field())
        if self.field_rad * min(self.matrix[0, 0], self.matrix[1, 1]) < 1.0:
            raise InputError(f"the camera's distortion {self.distortion.tolist()} folds back within a pixel of the "
                             "optical axis; calibrate it again")

    @classmethod
    def rectified(cls, projection: np.ndarray, width: int, height: int) -> Camera:
        """The camera of a rectified picture, P of sensor_msgs/CameraInfo.

        For the second camera of a stereo pair the fourth column says where it is in the frame of the first, and points
        are those of that frame. Are they in the second camera's own, the column has to be 0.

        :param projection: (3, 4) P, px
        :param width: picture width, px
        :param height: picture height, px
        :raises InputError: when it cannot be used
        """
        projection = np.asarray(projection, dtype=np.float64)
        if projection.shape != (3, 4) or not np.array_equal(projection[2], (0.0, 0.0, 1.0, 0.0)):
            raise InputError(f"the projection P is {projection.tolist()}; it must be (3, 4) and end in 0 0 1 0")
        camera = cls(projection[:, :3], np.zeros(0), "", width, height)
        return replace(camera, shift_m=np.linalg.solve(camera.matrix, projection[:, 3]))

    def windowed(self, offset: tuple[int, int], size: tuple[int, int], binning: tuple[int, int]) -> Camera:
        """The camera of a picture cut out and binned on the sensor, as roi and binning of sensor_msgs/CameraInfo say.

        :param offset: columns and rows left out before the region, of the whole picture
        :param size: columns and rows of the region, of the whole picture; (0, 0) for all of it
        :param binning: columns and rows that make one; 0 and 1 for none
        :raises InputError: when nothing is left of the picture
        """
        width, height = size if any(size) else (self.width, self.height)
        across, down = max(binning[0], 1), max(binning[1], 1)
        image_map = crop_map(*offset).then(scale_map(across, down, 1, 1))
        matrix = np.vstack((image_map.matrix, (0.0, 0.0, 1.0))) @ self.matrix
        return replace(self, matrix=matrix, width=width // across, height=height // down)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points to pixels.

        :param points: (P, 3) in the optical frame, m
        :return: (P, 2) pixels (u, v), NaN where a point is not projectable, and (P,) depth along the axis, m
        """
        points = np.asarray(points, dtype=np.float64) + self.shift_m
        angle = np.arctan2(np.hypot(points[:, 0], points[:, 1]), points[:, 2])
        pixels = self.project_clamped(points)
        pixels[~((angle < self.field_rad) & (points[:, 2] > 0.0))] = np.nan
        return pixels, points[:, 2]

    def project_clamped(self, directions: np.ndarray) -> np.ndarray:
        """Directions to pixels, those outside the field moved to its border.

        :param directions: (P, 3) of any length, from the camera itself
        :return: (P, 2) pixels (u, v)
        """
        across = np.hypot(directions[:, 0], directions[:, 1])
        angle = np.minimum(np.arctan2(across, directions[:, 2]), self.field_rad)
        side = directions[:, :2] / np.where(across > 0.0, across, 1.0)[:, None]
        if self.model == "equidistant":
            k1, k2, k3, k4 = self.distortion
            s = angle**2
            plane = side * (angle * (1 + s * (k1 + s * (k2 + s * (k3 + s * k4)))))[:, None]
        else:
            k1, k2, p1, p2, k3, k4, k5, k6 = self._radial_and_tangential
            x, y = (side * np.tan(angle)[:, None]).T
            s = x * x + y * y
            radial = (1 + s * (k1 + s * (k2 + s * k3))) / (1 + s * (k4 + s * (k5 + s * k6)))
            plane = np.stack((x * radial + 2 * p1 * x * y + p2 * (s + 2 * x * x),
                              y * radial + p1 * (s + 2 * y * y) + 2 * p2 * x * y), axis=1)
        return plane @ self.matrix[:2, :2].T + self.matrix[:2, 2]

    @property
    def _radial_and_tangential(self) -> np.ndarray:
        return np.concatenate((self.distortion, np.zeros(8 - self.distortion.size)))

    def _measure_field(self) -> float:
        with np.errstate(all="ignore"):
            if self.model == "equidistant":
                k1, k2, k3, k4 = self.distortion
                end = _first_root([9 * k4, 7 * k3, 5 * k2, 3 * k1, 1.0], (np.pi / 2) ** 2)
                limit = np.sqrt(end)
            else:
                # d/dr of r N(s)/D(s), s = r^2, vanishes where (N + 2 s N') D - 2 s N D' does; D = 0 is a pole.
                k1, k2, _, _, k3, k4, k5, k6 = self._radial_and_tangential
                numerator, denominator = np.poly1d([k3, k2, k1, 1.0]), np.poly1d([k6, k5, k4, 1.0])
                twice_s = np.poly1d([2.0, 0.0])
                slope = ((numerator + twice_s * numerator.deriv()) * denominator
                         - twice_s * numerator * denominator.deriv())
                limit = np.arctan(np.sqrt(min(_first_root(slope.coeffs, PINHOLE_LIMIT**2),
                                              _first_root(denominator.coeffs, PINHOLE_LIMIT**2))))
        return float(limit * (1.0 - 1e-6))


def _first_root(coefficients: np.ndarray | list[float], limit: float) -> float:
    # Smallest root from 0 to the limit, else the limit; highest power first, and the last coefficient is 1.
    scaled = np.asarray(coefficients) * limit ** np.arange(len(coefficients) - 1.0, -1.0, -1.0)
    scaled /= np.abs(scaled).max()
    if not np.isfinite(scaled).all():
        raise InputError("the camera's distortion coefficients are too large to be used; calibrate it again")
    # In units of the limit, a leading coefficient that is nothing beside the largest moves no root up to 1.
    roots = np.roots(scaled[np.argmax(np.abs(scaled) > 1e-15):])
    real = roots.real[(np.abs(roots.imag) <= 1e-9 * np.abs(roots.real)) & (roots.real > 0.0)]
    return float(min(real.min(), 1.0) * limit) if real.size else float(limit)
