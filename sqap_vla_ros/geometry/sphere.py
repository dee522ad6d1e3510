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

"""What a camera sees of a sphere, as one circle in its picture.

The rays that touch a sphere form a cone, and its cut with the picture is an ellipse, bent by distortion. While all of
it is near the picture, the circle is drawn around the projected centre; without distortion the point of the silhouette
farthest from the optical axis decides its radius. Beside or behind the camera the ellipse grows without bounds, and
such a circle would cover everything: there it is drawn around what the picture shows.
"""

from __future__ import annotations

import numpy as np

from sqap_vla_ros.geometry.camera import Camera

# Odd, so that both ends of the ellipse's long axis are among them.
SILHOUETTE_SAMPLES = 65
# Largest radius tried for a circle whose edge is nearly straight in the picture, px.
MAX_RADIUS_PX = 1e5
CIRCLES_TRIED = 64
GRID_SAMPLES = 33


def project_spheres(camera: Camera, centers: np.ndarray,
                    radii_m: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The circles that hold the pictures of some spheres.

    A sphere is whole when all of its silhouette lies within the picture enlarged by its own size on every side; then
    the circle's centre is the projected one. A camera inside a sphere gets a circle that holds the whole picture, if
    the sphere's centre is before it.

    :param centers: (P, 3) in the optical frame, m
    :param radii_m: (P,), m
    :return: (P, 2) centres, px, NaN where the picture shows nothing of a sphere that is not whole; (P,) radii, px, 0
        there, at most what covers the picture; and (P,) bool, which are whole
    """
    centers = np.asarray(centers, dtype=np.float64).reshape(-1, 3)
    # All points of all outlines at once: NumPy takes longer to begin than to go on.
    middles = camera.project(centers)[0]
    outlines = [_trace_outline(center + camera.shift_m, float(radius_m), camera.field_rad)
                for center, radius_m in zip(centers, radii_m, strict=True)]
    ends = np.cumsum([0 if outline is None else len(outline) for outline in outlines], dtype=int)
    pixels = camera.project_clamped(np.concatenate([outline for outline in outlines if outline is not None]
                                                   or [np.zeros((0, 3))]))
    circles = [_draw_circle(camera, center + camera.shift_m, middle, None if outline is None else part)
               for center, middle, outline, part in zip(centers, middles, outlines, np.split(pixels, ends[:-1]),
                                                        strict=True)] if len(centers) else []
    places, radii, whole = zip(*circles, strict=True) if circles else ((), (), ())
    return np.reshape(places, (-1, 2)), np.array(radii, dtype=np.float64), np.array(whole, dtype=bool)


def _draw_circle(camera: Camera, place: np.ndarray, middle: np.ndarray,
                 pixels: np.ndarray | None) -> tuple[np.ndarray, float, bool]:
    # Around the outline of one sphere in the picture; None where the camera is in the sphere.
    size = np.array([camera.width, camera.height], dtype=np.float64)
    if pixels is None:
        known = bool(np.isfinite(middle).all())
        return middle, _covering_radius(size, middle) if known else 0.0, False
    if (np.isfinite(middle).all() and len(pixels) == SILHOUETTE_SAMPLES
            and (pixels > -size - 0.5).all() and (pixels < 2.0 * size - 0.5).all()):
        radius = float(np.linalg.norm(pixels - middle, axis=1).max())
        return middle, min(radius, _covering_radius(size, middle)), True
    pixels = _clip(pixels, np.full(2, -0.5), size - 0.5)
    if len(pixels) == 0:
        return np.full(2, np.nan), 0.0, False
    return (*_enclose(pixels, size, camera.matrix, place[:2]), False)


def _covering_radius(size: np.ndarray, middle: np.ndarray) -> float:
    # Of the circle that reaches the corner of the picture farthest from its middle.
    return float(np.linalg.norm(np.maximum(middle + 0.5, size - 0.5 - middle)))


def _enclose(pixels: np.ndarray, size: np.ndarray, matrix: np.ndarray, aside: np.ndarray) -> tuple[np.ndarray, float]:
    # Of circles around all pixels, with centres on the line from the principal point to the sphere's side, the one
    # that covers least of the picture: a small one around a small outline, a large one along a nearly straight edge.
    line = matrix[:2, :2] @ (aside if aside.any() else np.array([1.0, 0.0]))
    line = line / np.linalg.norm(line)
    start = ((pixels - matrix[:2, 2]) @ line).min()
    steps = start + np.geomspace(1.0, MAX_RADIUS_PX, CIRCLES_TRIED)
    middles = matrix[:2, 2] + steps[:, None] * line
    squares = ((pixels - middles[:, None]) ** 2).sum(axis=-1).max(axis=1)
    across, down = (((np.linspace(-0.5, length - 0.5, GRID_SAMPLES) - middles[:, axis, None]) ** 2)
                    for axis, length in enumerate(size))
    best = (across[:, :, None] + down[:, None, :] <= squares[:, None, None]).sum(axis=(1, 2)).argmin()
    return middles[best], float(np.sqrt(squares[best]))


def _trace_outline(center: np.ndarray, radius_m: float, field_rad: float) -> np.ndarray | None:
    """Directions around what the camera's field shows of a sphere, in order; (0, 3) for nothing, None for the whole.

    With the angle a of the centre from the axis and the half-angle h of the cone, the cosine of the angle between the
    axis and the touching ray at turn t is cos a cos h - sin a sin h cos t. Where the field cuts the cone, the field's
    border closes the outline, on the sphere's side of the axis.
    """
    distance = float(np.linalg.norm(center))
    if distance <= radius_m or distance == 0.0:
        return None
    sight, half_sine = center / distance, radius_m / distance
    sine, half_cosine = float(np.hypot(sight[0], sight[1])), np.sqrt(1.0 - half_sine**2)
    aside = np.append(sight[:2] / sine, 0.0) if sine > 1e-12 else np.array([1.0, 0.0, 0.0])
    across = np.array([-aside[1], aside[0], 0.0])
    # across x sight, written out: NumPy takes longer to arrange it than for all the rest.
    outward = np.array([across[1] * sight[2], -across[0] * sight[2], across[0] * sight[1] - across[1] * sight[0]])
    reach, spread = sight[2] * half_cosine - np.cos(field_rad), sine * half_sine
    if reach <= -spread:
        # No touching ray is in the field: the sphere is beside it, or holds all of it.
        return None if field_rad + np.arctan2(sine, sight[2]) < np.arcsin(half_sine) else np.zeros((0, 3))
    first = float(np.arccos(min(reach / spread, 1.0))) if spread > 0.0 else 0.0
    turn = np.linspace(first, 2.0 * np.pi - first, SILHOUETTE_SAMPLES)[:, None]
    ring = half_cosine * sight + half_sine * (np.cos(turn) * outward + np.sin(turn) * across)
    if first == 0.0:
        return ring
    # From the last touching ray over the sphere's own side to the first.
    last, opening = np.arctan2(ring[[-1, 0]] @ across, ring[[-1, 0]] @ aside)
    around = np.linspace(last, opening, SILHOUETTE_SAMPLES)[:, None]
    border = np.sin(field_rad) * (np.cos(around) * aside + np.sin(around) * across)
    border[:, 2] = np.cos(field_rad)
    return np.concatenate((ring, border))


def _clip(polygon: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    # The part of a polygon in a rectangle, side by side (Sutherland and Hodgman, CACM 17, 1974): (V, 2) to (V', 2).
    for axis in (0, 1):
        for bound, sign in ((low[axis], 1.0), (high[axis], -1.0)):
            following = np.roll(polygon, -1, axis=0)
            beyond, beyond_next = (sign * (bound - ends[:, axis]) for ends in (polygon, following))
            crossing = (beyond > 0.0) != (beyond_next > 0.0)
            share = beyond / np.where(crossing, beyond - beyond_next, 1.0)
            cut = polygon + np.where(crossing, share, 0.0)[:, None] * (following - polygon)
            stays = np.stack((beyond <= 0.0, crossing), axis=1).ravel()
            polygon = np.stack((polygon, cut), axis=1).reshape(-1, 2)[stays]
    return polygon
