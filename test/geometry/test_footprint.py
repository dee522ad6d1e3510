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

"""Which cells a footprint protects, against shapes sampled point by point."""

from itertools import pairwise

import numpy as np
import pytest

from sqap_vla_ros.data import RobotFootprint
from sqap_vla_ros.errors import InputError
from sqap_vla_ros.geometry.camera import Camera
from sqap_vla_ros.geometry.footprint import project_footprint, token_mask
from sqap_vla_ros.geometry.image_map import (
    ImageMap,
    crop_map,
    resize_crop_map,
    resize_map,
    turn_map,
    zoom_map,
)

CAMERA = Camera(np.array([[200.0, 0, 111.5], [0, 200.0, 111.5], [0, 0, 1]]), np.zeros(5), "plumb_bob", 224, 224)
SAME = resize_map(224, 224, 224)
GRID = (16, 16)
# 640 x 480 px with 80 rows of margin above and below.
LETTERBOX = crop_map(0, -80).then(resize_crop_map(640, 640, 224))


def discs(*values):
    centers = np.array([[u, v] for u, v, _ in values], dtype=float)
    radii = np.array([radius for *_, radius in values], dtype=float)
    return RobotFootprint(tuple(f"f{index}" for index in range(len(values))), centers, radii)


def tokens(mask):
    return set(map(int, np.flatnonzero(mask)))


def sampled_tokens(footprint, image_map, grid, size):
    """Cells hit by a dense cloud of points of the shape, without any geometry of cells."""
    turn = np.linspace(0, 2 * np.pi, 301)
    circle = np.stack((np.cos(turn), np.sin(turn)), axis=1)
    pairs = list(zip(footprint.centers_px, footprint.radii_px, strict=True))
    cloud = [center + share * radius * circle for center, radius in pairs if radius > 0
             for share in np.linspace(0, 1, 60)]
    for (start, r0), (end, r1) in pairwise(pairs):
        if r0 > 0 and r1 > 0:
            for t in np.linspace(0, 1, 250):
                center, radius = start + t * (end - start), r0 + t * (r1 - r0)
                cloud += [center + radius * circle, center[None]]
    cells = np.floor((image_map.apply(np.concatenate(cloud)) + 0.5) / size * [grid[1], grid[0]]).astype(int)
    cells = cells[((cells >= 0) & (cells < [grid[1], grid[0]])).all(axis=1)]
    return set((cells[:, 1] * grid[1] + cells[:, 0]).tolist())


def test_a_disc_within_a_cell_protects_that_cell_alone():
    # Token (row 3, column 5) covers 69.5 to 83.5 across and 41.5 to 55.5 down.
    assert tokens(token_mask(discs((76.5, 48.5, 6.9)), SAME, GRID, 224)) == {3 * 16 + 5}


def test_a_disc_protects_a_neighbour_only_beyond_the_border():
    touching, beyond = discs((76.5, 48.5, 7.0)), discs((76.5, 48.5, 7.01))
    assert tokens(token_mask(touching, SAME, GRID, 224)) == {53}
    assert tokens(token_mask(beyond, SAME, GRID, 224)) == {53, 52, 54, 37, 69}


def test_a_disc_reaches_round_a_corner_only_when_it_is_that_near():
    # The corner is 7 sqrt(2) = 9.8995 px from the middle of the cell.
    assert 36 not in tokens(token_mask(discs((76.5, 48.5, 9.89)), SAME, GRID, 224))
    assert {36, 38, 68, 70} <= tokens(token_mask(discs((76.5, 48.5, 9.91)), SAME, GRID, 224))


def test_a_disc_off_the_picture_protects_what_it_covers():
    assert tokens(token_mask(discs((-10.5, 6.5, 10.5)), SAME, GRID, 224)) == {0}
    assert not token_mask(discs((-10.5, 6.5, 9.9)), SAME, GRID, 224).any()
    assert token_mask(discs((-1000.0, 100.0, 2000.0)), SAME, GRID, 224).all()


def test_a_segment_joins_consecutive_frames():
    mask = token_mask(discs((6.5, 6.5, 2.0), (216.5, 6.5, 2.0)), SAME, GRID, 224)
    assert tokens(mask) == set(range(16))


def test_a_frame_that_cannot_be_projected_protects_nothing():
    lost = discs((6.5, 6.5, 2.0), (np.nan, np.nan, 0.0), (216.5, 6.5, 2.0))
    assert tokens(token_mask(lost, SAME, GRID, 224)) == {0, 15}
    assert not token_mask(discs((76.5, 48.5, 0.0)), SAME, GRID, 224).any()


@pytest.mark.parametrize("seed", range(4))
def test_random_footprints_agree_with_sampled_shapes(seed):
    # Exact geometry may only add cells that the shape enters by less than the sampling distance.
    rng = np.random.default_rng(seed)
    turn = rng.uniform(-np.pi, np.pi)
    rotated = ImageMap(np.array([[np.cos(turn), -np.sin(turn), 110], [np.sin(turn), np.cos(turn), 115]]))
    centred = ImageMap(np.array([[1.0, 0, -320], [0, 1.2, -240]])).then(rotated)
    for image_map, width, height in ((resize_map(640, 480, 224), 640, 480), (SAME, 224, 224), (centred, 640, 480)):
        rows = [(rng.uniform(-0.1, 1.1) * width, rng.uniform(-0.1, 1.1) * height, rng.uniform(2, 40)) for _ in range(3)]
        footprint = discs(*rows)
        wider = RobotFootprint(footprint.frames, footprint.centers_px, footprint.radii_px + 0.7)
        for grid in (GRID, (8, 12)):
            found = tokens(token_mask(footprint, image_map, grid, 224))
            assert sampled_tokens(footprint, image_map, grid, 224) <= found
            assert found <= sampled_tokens(wider, image_map, grid, 224)


def test_one_disc_inside_the_other_adds_no_hull():
    big, small = (100.0, 100.0, 40.0), (110.0, 100.0, 5.0)
    np.testing.assert_array_equal(token_mask(discs(big, small), SAME, GRID, 224),
                                  token_mask(discs(big), SAME, GRID, 224))


def test_footprint_from_frames():
    positions = np.array([[0, 0, 0.5], [0.1, 0, 0.5], [0.1, 0.02, 0.4]])
    footprint = project_footprint(CAMERA, ["hand", "left", "right"], positions, [0.05, 0.0, 0.02])
    assert footprint.frames == ("hand", "left", "right")
    np.testing.assert_allclose(footprint.centers_px, [[111.5, 111.5], [151.5, 111.5], [161.5, 121.5]])
    np.testing.assert_allclose(footprint.radii_px[:2], [200 * np.tan(np.arcsin(0.1)), 0])


def test_a_frame_behind_the_camera_has_no_disc():
    footprint = project_footprint(CAMERA, ["hand", "finger"], np.array([[0, 0, 0.5], [0, 0, -0.5]]), [0.05, 0.05],
                                  joined=False)
    assert footprint.frames == ("hand", "finger")
    np.testing.assert_allclose(footprint.centers_px, [[111.5, 111.5], [np.nan, np.nan]])
    np.testing.assert_allclose(footprint.radii_px, [200 * np.tan(np.arcsin(0.1)), 0])
    nothing = project_footprint(CAMERA, [], np.zeros((0, 3)), [])
    assert (nothing.frames, nothing.centers_px.shape, nothing.radii_px.shape) == ((), (0, 2), (0,))


def test_segments_are_an_option():
    positions, radii = np.array([[-0.2, 0, 0.5], [0.2, 0, 0.5]]), [0.02, 0.02]
    joined, apart = (project_footprint(CAMERA, ["a", "b"], positions, radii, joined=joined) for joined in (True, False))
    assert joined.frames == ("a", "b")
    # The first and the last disc are 8 px wide, 80 px left and right of the middle.
    whole = tokens(token_mask(joined, SAME, GRID, 224))
    assert whole == {row * 16 + column for row in (7, 8) for column in range(1, 15)}
    ends = tokens(token_mask(apart, SAME, GRID, 224))
    assert ends == {row * 16 + column for row in (7, 8) for column in (1, 2, 13, 14)}


def tokens_hit(positions, radii_m, steps):
    """Tokens of which some pixel's ray meets a sphere on the way between the frames, and whether it held the camera."""
    pixels = np.stack(np.meshgrid(np.arange(1, 224, 2.0), np.arange(1, 224, 2.0)), -1).reshape(-1, 2)
    rays = np.column_stack(((pixels - 111.5) / 200, np.ones(len(pixels))))
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    hit, within = np.zeros(len(pixels), dtype=bool), False
    for (start, end), (r0, r1) in zip(pairwise(positions), pairwise(radii_m), strict=True):
        for share in np.linspace(0, 1, steps):
            center, radius = start + share * (end - start), r0 + share * (r1 - r0)
            within |= bool(center @ center <= radius**2)
            along = rays @ center
            hit |= (along > 0) & (along**2 >= center @ center - radius**2)
    cells = np.floor((pixels[hit] + 0.5) / 14).astype(int)
    return set((cells[:, 1] * 16 + cells[:, 0]).tolist()), within


def test_a_chain_of_capsules_is_protected_wherever_it_is():
    # Chains that pass before, beside and behind the camera, against rays through the pixels.
    rng = np.random.default_rng(2)
    needed, missed, excess, longer = 0, 0, [], 0
    for _ in range(250):
        positions = rng.normal(size=(3, 3)) * [0.2, 0.2, 0.25] + [0, 0, 0.15]
        radii = rng.uniform(0.015, 0.05, 3)
        truth, within = tokens_hit(positions, radii, 60)
        if within:
            continue
        footprint = project_footprint(CAMERA, ["a", "b", "c"], positions, radii)
        found = tokens(token_mask(footprint, SAME, GRID, 224))
        longer += len(footprint.frames) > 3
        needed += len(truth)
        missed += len(truth - found)
        excess.append(len(found - truth))
    assert longer > 80 and needed > 3000
    # Between the discs of a segment that is partly beside the camera a corner may stay out.
    assert missed <= 0.005 * needed
    assert np.median(excess) <= 12 and np.mean(excess) <= 20


def test_margins_of_a_letterbox_are_not_protected():
    # 640 x 480 stands in rows 2 to 13 of the tokens; the disc reaches over the picture's upper edge.
    footprint, image_map = discs((320.0, 10.0, 60.0)), LETTERBOX
    without, found = (tokens(token_mask(footprint, image_map, GRID, 224, size)) for size in (None, (640, 480)))
    assert {token // 16 for token in without} == {0, 1, 2, 3}
    assert found == {token for token in without if token >= 2 * 16}


@pytest.mark.parametrize("image_map", [
    crop_map(80, 0).then(resize_map(480, 480, 224)), LETTERBOX, resize_crop_map(640, 480, 224),
    turn_map(640, 480, 2).then(resize_map(640, 480, 224)), turn_map(640, 480, 1).then(resize_map(480, 640, 224)),
    resize_map(640, 480, 224).then(zoom_map(224, 0.9))], ids=["crop", "letterbox", "resize-crop", "turned", "quarter",
                                                              "zoomed"])
def test_the_protected_tokens_follow_the_picture_wherever_it_goes(image_map):
    rng = np.random.default_rng(4)
    for _ in range(20):
        center = rng.uniform((160, 80), (480, 400))
        mask = token_mask(discs((*center, 0.5)), image_map, GRID, 224).reshape(GRID)
        column, row = np.floor((image_map.apply(center) + 0.5) / 14).astype(int)
        assert mask[row, column] and mask.sum() <= 4


@pytest.mark.parametrize(("positions", "radii", "words"), [
    ([[0, 0, np.nan]], [0.1], "frame 'hand' is not finite"), ([[0, 0, 1.0]], [0.1, 0.2], "one radius per frame"),
    ([[0, 1.0]], [0.1], "one radius per frame")])
def test_unusable_positions_are_refused(positions, radii, words):
    camera = Camera(np.eye(3), np.zeros(5), "plumb_bob", 8, 8)
    with pytest.raises(InputError, match=words):
        project_footprint(camera, ["hand"], np.array(positions), radii)
