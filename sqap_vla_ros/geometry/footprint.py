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

"""Frames and radii to the visual tokens that show the robot.

The protected shape is a disc at every frame and, as an option, between consecutive frames every disc whose centre and
radius lie on the straight line between theirs: the convex hull of the two discs, the picture of a capsule. It is
compared with the token cells in camera pixels, where the discs are round. A token is protected when shape and cell have
area in common; touching is not enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from sqap_vla_ros.data import RobotFootprint
from sqap_vla_ros.errors import InputError
from sqap_vla_ros.geometry.camera import Camera
from sqap_vla_ros.geometry.image_map import ImageMap
from sqap_vla_ros.geometry.sphere import project_spheres

# Where a segment is looked at that is not in the picture from end to end.
SEGMENT_SHARES = np.linspace(0.0, 1.0, 17)[1:-1]
CELL_CORNERS = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])


def project_footprint(camera: Camera, frames: Sequence[str], positions: np.ndarray,
                      radii_m: Sequence[float] | np.ndarray, *, joined: bool = True) -> RobotFootprint:
    """Where the frames' spheres are in the picture.

    One disc per frame, as long as all of them are in the picture or near it. Where a segment leaves the picture, or a
    sphere is only partly before the camera, discs between the frames stand for what the picture shows of the segment,
    under the name of the frame before them; a disc without place or radius separates those that are not to be joined.

    :param camera: the camera that took it
    :param frames: P names, in the order in which they are joined
    :param positions: (P, 3) origins in the camera's optical frame, m
    :param radii_m: (P,) radius of each sphere, m
    :param joined: whether the segments between consecutive frames are protected too
    :raises InputError: when a position is not finite or the lengths differ
    """
    positions = np.asarray(positions, dtype=np.float64)
    radii = np.asarray(radii_m, dtype=np.float64)
    if positions.shape != (len(frames), 3) or radii.shape != (len(frames),):
        raise InputError(f"{len(frames)} frames came with positions of shape {positions.shape} and radii of shape "
                         f"{radii.shape}; give one (x, y, z) and one radius per frame")
    for name, position in zip(frames, positions, strict=True):
        if not np.isfinite(position).all():
            raise InputError(f"the position of frame '{name}' is not finite: {position.tolist()}; check its transform")
    discs = list(zip(frames, *project_spheres(camera, positions, radii), strict=True))
    rows: list[_Disc] = []
    for index, disc in enumerate(discs):
        between: list[_Disc] = []
        if index > 0 and joined and not (discs[index - 1][3] and disc[3]):
            between = _look_between(camera, frames[index - 1], positions[index - 1:index + 1],
                                    radii[index - 1:index + 1])
        for following in (*between, disc):
            if rows and rows[-1][2] > 0.0 and following[2] > 0.0 and not (joined and rows[-1][3] and following[3]):
                rows.append((following[0], np.full(2, np.nan), 0.0, False))
            rows.append(following)
    names, centers_px, radii_px, _ = zip(*rows, strict=True) if rows else ((), (), (), ())
    return RobotFootprint(names, np.reshape(centers_px, (-1, 2)), np.array(radii_px, dtype=np.float64))


# Name, (2,) centre in px, radius in px, and whether the centre is the projected one.
_Disc = tuple[str, np.ndarray, float, bool]


def _look_between(camera: Camera, name: str, ends: np.ndarray, radii_m: np.ndarray) -> list[_Disc]:
    # What the picture shows of the spheres between two, without the ends and without those that hold the camera.
    if not radii_m.all():
        return []
    centers, radii = (values[0] + np.multiply.outer(SEGMENT_SHARES, values[1] - values[0])
                      for values in (ends, radii_m))
    outside = np.linalg.norm(centers + camera.shift_m, axis=1) > radii
    found = zip(*project_spheres(camera, centers[outside], radii[outside]), strict=True)
    return [(name, *disc) for disc in found if disc[1] > 0.0]


def token_mask(footprint: RobotFootprint, image_map: ImageMap, grid: tuple[int, int], model_size: int,
               picture_px: tuple[int, int] | None = None) -> np.ndarray:
    """Which visual tokens show a protected part.

    Frames with radius 0 protect nothing, and neither do the segments that end in one.

    :param footprint: discs in camera pixels
    :param image_map: camera pixels to model pixels
    :param grid: rows and columns of the token grid, which tiles the model's picture
    :param model_size: side of the model's square picture, px
    :param picture_px: width and height of the camera's picture, so that tokens which show nothing of it, in the margins
        of a letterbox, are not protected; None when it fills the model's picture
    :return: (rows * columns,) bool, row by row from the top left
    """
    cells = _cells_in_camera(image_map, grid, model_size)
    mask = np.zeros(len(cells), dtype=bool)
    discs = list(zip(footprint.centers_px, footprint.radii_px, strict=True))
    for center, radius in discs:
        if radius > 0.0:
            mask |= _disc_overlaps(center, radius, cells)
    for (start, start_radius), (end, end_radius) in pairwise(discs):
        length = float(np.hypot(*(end - start)))
        # Without this, one disc holds the other and there is no hull to add (also where a centre is NaN).
        if start_radius > 0.0 and end_radius > 0.0 and length > abs(start_radius - end_radius):
            mask |= _polygon_overlaps(_tangent_hull(start, start_radius, end, end_radius, length), cells)
    if picture_px is not None:
        mask &= _polygon_overlaps((CELL_CORNERS + 0.5) * picture_px - 0.5, cells)
    return mask


def _cells_in_camera(image_map: ImageMap, grid: tuple[int, int], model_size: int) -> np.ndarray:
    # Corners of every cell, in order around it: (N, 4, 2) camera px.
    rows, columns = grid
    row, column = np.divmod(np.arange(rows * columns), columns)
    side = np.array([model_size / columns, model_size / rows])
    middle = (np.stack((column, row), axis=1) + 0.5) * side - 0.5
    return image_map.inverse().apply(middle[:, None] + CELL_CORNERS * side)


def _disc_overlaps(center: np.ndarray, radius: float, cells: np.ndarray) -> np.ndarray:
    edges = np.roll(cells, -1, axis=1) - cells
    offset = center - cells
    along = np.clip((offset * edges).sum(-1) / (edges * edges).sum(-1), 0.0, 1.0)
    distance = np.linalg.norm(offset - along[..., None] * edges, axis=-1).min(axis=1)
    side = edges[..., 0] * offset[..., 1] - edges[..., 1] * offset[..., 0]
    inside = (side > 0.0).all(axis=1) | (side < 0.0).all(axis=1)
    return inside | (distance < radius)


def _tangent_hull(start: np.ndarray, start_radius: float, end: np.ndarray, end_radius: float,
                  length: float) -> np.ndarray:
    # The four points where the outer tangents touch the two discs, in order around the hull: (4, 2).
    along = (end - start) / length
    across = np.array([-along[1], along[0]])
    lean = (start_radius - end_radius) / length
    spread = np.sqrt(1.0 - lean * lean)
    left, right = lean * along + spread * across, lean * along - spread * across
    return np.stack((start + start_radius * left, end + end_radius * left,
                     end + end_radius * right, start + start_radius * right))


def _polygon_overlaps(polygon: np.ndarray, cells: np.ndarray) -> np.ndarray:
    # Separating axes: two convex shapes are apart when their shadows across some edge of either are.
    overlap = np.ones(len(cells), dtype=bool)
    shape_edges = np.roll(polygon, -1, axis=0) - polygon
    cell_edges = cells[0, 1:3] - cells[0, 0:2]
    for edge in (*shape_edges, *cell_edges):
        normal = np.array([-edge[1], edge[0]])
        if not normal.any():
            continue
        shape_shadow, cell_shadow = polygon @ normal, cells @ normal
        overlap &= (cell_shadow.max(axis=1) > shape_shadow.min()) & (cell_shadow.min(axis=1) < shape_shadow.max())
    return overlap
