"""Which cells a footprint protects, against shapes sampled point by point."""

from itertools import pairwise

import numpy as np
import pytest

from sqap_vla_ros.data import RobotFootprint
from sqap_vla_ros.errors import InputError
from sqap_vla_ros.geometry.camera import Camera
from sqap_vla_ros.geometry.footprint import project_footprint, token_mask
from sqap_vla_ros.geometry.image_map import ImageMap, resize_map

SAME = resize_map(224, 224, 224)
GRID = (16, 16)


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
    camera = Camera(np.array([[200.0, 0, 111.5], [0, 200.0, 111.5], [0, 0, 1]]), np.zeros(5), "plumb_bob", 224, 224)
    footprint = project_footprint(camera, ["hand", "finger"], np.array([[0, 0, 0.5], [0, 0, -0.5]]), [0.05, 0.05])
    assert footprint.frames == ("hand", "finger")
    np.testing.assert_allclose(footprint.centers_px, [[111.5, 111.5], [np.nan, np.nan]])
    np.testing.assert_allclose(footprint.radii_px, [200 * np.tan(np.arcsin(0.1)), 0])


@pytest.mark.parametrize(("positions", "radii", "words"), [
    ([[0, 0, np.nan]], [0.1], "frame 'hand' is not finite"), ([[0, 0, 1.0]], [0.1, 0.2], "one radius per frame"),
    ([[0, 1.0]], [0.1], "one radius per frame")])
def test_unusable_positions_are_refused(positions, radii, words):
    camera = Camera(np.eye(3), np.zeros(5), "plumb_bob", 8, 8)
    with pytest.raises(InputError, match=words):
        project_footprint(camera, ["hand"], np.array(positions), radii)
