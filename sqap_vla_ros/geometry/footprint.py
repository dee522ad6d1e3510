"""Frames and radii to the visual tokens that show the robot.

The protected shape is a disc at every frame and, between consecutive frames, every disc whose centre and radius lie
on the straight line between theirs: the convex hull of the two discs. It is compared with the token cells in camera
pixels, where the discs are round. A token is protected when shape and cell have area in common; touching is not enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from sqap_vla_ros.data import RobotFootprint
from sqap_vla_ros.errors import InputError
from sqap_vla_ros.geometry.camera import Camera
from sqap_vla_ros.geometry.image_map import ImageMap

CELL_CORNERS = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])


def project_footprint(camera: Camera, frames: Sequence[str], positions: np.ndarray,
                      radii_m: Sequence[float] | np.ndarray) -> RobotFootprint:
    """Where the frames' spheres are in the picture.

    :param camera: the camera that took it
    :param frames: P names, in the order in which they are joined
    :param positions: (P, 3) origins in the camera's optical frame, m
    :param radii_m: (P,) radius of each sphere, m
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
    centers_px, _ = camera.project(positions)
    return RobotFootprint(tuple(frames), centers_px, camera.sphere_radius_px(positions, radii))


def token_mask(footprint: RobotFootprint, image_map: ImageMap, grid: tuple[int, int], model_size: int) -> np.ndarray:
    """Which visual tokens show a protected part.

    Frames with radius 0 protect nothing, and neither do the segments that end in one.

    :param footprint: discs in camera pixels
    :param image_map: camera pixels to model pixels
    :param grid: rows and columns of the token grid, which tiles the model's picture
    :param model_size: side of the model's square picture, px
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
