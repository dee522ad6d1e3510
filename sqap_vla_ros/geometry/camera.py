"""Metres to pixels: a pinhole or fisheye camera with the distortion models that ROS names.

A distortion polynomial is only true up to the angle where it folds back; beyond it points far off to the side
would reappear inside the picture, so they count as not projectable, like points behind the camera.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sqap_vla_ros.errors import InputError

# Allowed numbers of coefficients: sensor_msgs/CameraInfo and the models of REP-104; '' is an ideal pinhole.
COEFFICIENT_COUNTS = {"": (0,), "plumb_bob": (0, 4, 5), "rational_polynomial": (0, 8), "equidistant": (4,)}
SILHOUETTE_SAMPLES = 32


@dataclass(frozen=True, eq=False)
class Camera:
    """A calibrated camera; the optical frame has z forward, x right, y down (REP-103).

    :param matrix: (3, 3) float64 K of the picture in use, px
    :param distortion: coefficients in OpenCV's order: plumb_bob k1 k2 p1 p2 k3, rational_polynomial
        k1 k2 p1 p2 k3 k4 k5 k6, equidistant k1 k2 k3 k4; empty for none
    :param model: one of ``COEFFICIENT_COUNTS``
    :param width: picture width, px
    :param height: picture height, px
    :raises InputError: when the calibration cannot be used
    """

    matrix: np.ndarray
    distortion: np.ndarray
    model: str
    width: int
    height: int

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
        if not (np.isfinite(self.matrix).all() and np.isfinite(self.distortion).all()):
            raise InputError("the camera's calibration has a value that is not finite; calibrate it again")
        if self.matrix[0, 0] <= 0.0 or self.matrix[1, 1] <= 0.0:
            raise InputError(f"the camera is not calibrated: its focal lengths are {self.matrix[0, 0]:g} and "
                             f"{self.matrix[1, 1]:g} px; publish a camera_info with K filled in")
        if self.width <= 0 or self.height <= 0:
            raise InputError(f"the camera's picture is {self.width} x {self.height} px; both must be positive")

    @cached_property
    def field_rad(self) -> float:
        """Largest angle from the optical axis at which the distortion still grows, just under pi/2 at most, rad."""
        limit = np.pi / 2
        if self.model == "equidistant":
            k1, k2, k3, k4 = self.distortion
            limit = min(limit, np.sqrt(_first_positive_root([9 * k4, 7 * k3, 5 * k2, 3 * k1, 1.0])))
        else:
            # d/dr of r N(s)/D(s), s = r^2, vanishes where (N + 2 s N') D - 2 s N D' does; D = 0 is a pole.
            k1, k2, _, _, k3, k4, k5, k6 = self._radial_and_tangential
            numerator, denominator = np.poly1d([k3, k2, k1, 1.0]), np.poly1d([k6, k5, k4, 1.0])
            twice_s = np.poly1d([2.0, 0.0])
            slope = (numerator + twice_s * numerator.deriv()) * denominator - twice_s * numerator * denominator.deriv()
            limit = min(limit, np.arctan(np.sqrt(min(_first_positive_root(slope.coeffs),
                                                     _first_positive_root(denominator.coeffs)))))
        return float(limit * (1.0 - 1e-6))

    @property
    def _radial_and_tangential(self) -> np.ndarray:
        return np.concatenate((self.distortion, np.zeros(8 - self.distortion.size)))

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points to pixels.

        :param points: (P, 3) in the optical frame, m
        :return: (P, 2) pixels (u, v), NaN where a point is not projectable, and (P,) depth along the axis, m
        """
        points = np.asarray(points, dtype=np.float64)
        angle = np.arctan2(np.hypot(points[:, 0], points[:, 1]), points[:, 2])
        pixels = self._project_clamped(points)
        pixels[~((angle < self.field_rad) & (points[:, 2] > 0.0))] = np.nan
        return pixels, points[:, 2]

    def sphere_radius_px(self, centers: np.ndarray, radii_m: np.ndarray) -> np.ndarray:
        """Radius of the circle around each projected centre that holds the sphere's picture, an ellipse.

        Measured over points of the silhouette, among them the one farthest from the optical axis, which decides
        without distortion. A silhouette that leaves the field is cut off at its border. The radius never exceeds the
        one that covers the whole picture; a camera inside the sphere gets that one.

        :param centers: (P, 3) in the optical frame, m
        :param radii_m: (P,), m
        :return: (P,) px; 0 where the centre is not projectable
        """
        centers = np.asarray(centers, dtype=np.float64)
        radii_m = np.asarray(radii_m, dtype=np.float64)
        middle, _ = self.project(centers)
        distance = np.linalg.norm(centers, axis=1)
        outside = distance > radii_m
        # Tangent points of the rays through the camera: a circle in the plane across the line of sight.
        share = 1.0 - (radii_m / np.where(outside, distance, np.inf)) ** 2
        sight = centers / np.where(distance > 0.0, distance, 1.0)[:, None]
        across = np.stack((-sight[:, 1], sight[:, 0], np.zeros(len(sight))), axis=1)
        on_axis = np.linalg.norm(across, axis=1) < 1e-12
        across[on_axis] = (1.0, 0.0, 0.0)
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        outward = np.cross(across, sight)
        turn = np.arange(SILHOUETTE_SAMPLES) * (2 * np.pi / SILHOUETTE_SAMPLES)
        ring = np.cos(turn)[:, None, None] * outward + np.sin(turn)[:, None, None] * across
        silhouette = centers * share[:, None] + ring * (radii_m * np.sqrt(share))[:, None]
        pixels = self._project_clamped(silhouette.reshape(-1, 3)).reshape(*silhouette.shape[:2], 2)
        radius = np.linalg.norm(pixels - middle, axis=2).max(axis=0)
        corners = np.array([[-0.5, -0.5], [self.width - 0.5, -0.5], [-0.5, self.height - 0.5],
                            [self.width - 0.5, self.height - 0.5]])
        covering = np.linalg.norm(corners[:, None] - middle, axis=2).max(axis=0)
        radius = np.where(outside, np.minimum(radius, covering), covering)
        return np.where(np.isnan(middle).any(axis=1), 0.0, radius)

    def _project_clamped(self, points: np.ndarray) -> np.ndarray:
        # Directions outside the field are moved to its border; (P, 3) m to (P, 2) px.
        across = np.hypot(points[:, 0], points[:, 1])
        angle = np.minimum(np.arctan2(across, points[:, 2]), self.field_rad)
        direction = points[:, :2] / np.where(across > 0.0, across, 1.0)[:, None]
        if self.model == "equidistant":
            k1, k2, k3, k4 = self.distortion
            s = angle**2
            plane = direction * (angle * (1 + s * (k1 + s * (k2 + s * (k3 + s * k4)))))[:, None]
        else:
            k1, k2, p1, p2, k3, k4, k5, k6 = self._radial_and_tangential
            x, y = (direction * np.tan(angle)[:, None]).T
            s = x * x + y * y
            radial = (1 + s * (k1 + s * (k2 + s * k3))) / (1 + s * (k4 + s * (k5 + s * k6)))
            plane = np.stack((x * radial + 2 * p1 * x * y + p2 * (s + 2 * x * x),
                              y * radial + p1 * (s + 2 * y * y) + 2 * p2 * x * y), axis=1)
        return plane @ self.matrix[:2, :2].T + self.matrix[:2, 2]


def _first_positive_root(coefficients: np.ndarray | list[float]) -> float:
    roots = np.roots(coefficients)
    real = roots.real[(np.abs(roots.imag) < 1e-9 * (1.0 + np.abs(roots.real))) & (roots.real > 0.0)]
    return float(real.min()) if real.size else float("inf")
