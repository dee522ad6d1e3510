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

"""The circle around a sphere's picture, against rays through every pixel."""

import numpy as np
import pytest

from sqap_vla_ros.geometry.camera import Camera
from sqap_vla_ros.geometry.sphere import project_spheres

RATIONAL = "rational_polynomial"


def ideal(focal=200.0, width=224, height=224):
    matrix = np.array([[focal, 0, width / 2 - 0.5], [0, focal, height / 2 - 0.5], [0, 0, 1]])
    return Camera(matrix, np.zeros(5), "plumb_bob", width, height)


def fisheye(focal, width, height):
    matrix = np.array([[focal, 0, width / 2 - 0.5], [0, focal, height / 2 - 0.5], [0, 0, 1]])
    return Camera(matrix, np.zeros(4), "equidistant", width, height)


def pixels_of(camera):
    """The centre of every third pixel, (P, 2)."""
    return np.stack(np.meshgrid(np.arange(1, camera.width, 3.0), np.arange(1, camera.height, 3.0)), -1).reshape(-1, 2)


def rays_of(camera, pixels):
    """Unit rays of an undistorted camera; NaN outside the field."""
    x, y = ((pixels - camera.matrix[:2, 2]) / camera.matrix[[0, 1], [0, 1]]).T
    if camera.model != "equidistant":
        rays = np.stack((x, y, np.ones_like(x)), axis=1)
        return rays / np.linalg.norm(rays, axis=1, keepdims=True)
    angle = np.hypot(x, y)
    angle[angle >= camera.field_rad] = np.nan
    return np.stack((x * np.sinc(angle / np.pi), y * np.sinc(angle / np.pi), np.cos(angle)), axis=1)


def hits(rays, center, radius):
    """Which rays meet a sphere that does not hold the camera."""
    along = rays @ center
    return (along > 0) & (along**2 >= center @ center - radius**2)


def one(camera, center, radius_m):
    (middle,), (radius,), (whole,) = project_spheres(camera, np.array([center]), np.array([radius_m]))
    return middle, radius, whole


def test_sphere_on_the_axis_has_the_radius_of_its_tangent_cone():
    # Tangent half-angle asin(0.05 / 0.5); the picture's radius is its tangent times the focal length.
    middle, radius, whole = one(ideal(), [0, 0, 0.5], 0.05)
    assert radius == pytest.approx(200 * np.tan(np.arcsin(0.1)), abs=1e-9)
    np.testing.assert_allclose(middle, [111.5, 111.5])
    assert whole


def test_sphere_off_the_axis_is_bounded_at_its_far_end():
    center = np.array([0.3, 0.2, 0.5])
    angle, half = np.arctan2(np.hypot(0.3, 0.2), 0.5), np.arcsin(0.05 / np.linalg.norm(center))
    _, radius, _ = one(ideal(), center, 0.05)
    assert radius == pytest.approx(200 * (np.tan(angle + half) - np.tan(angle)), abs=1e-9)


@pytest.mark.parametrize(("model", "distortion"), [
    ("plumb_bob", [-0.28, 0.09, 0.001, -0.002, 0.01]), (RATIONAL, [0.3, -0.1, 0.0, 0.0, 0.01, 0.5, 0.02, 0.01]),
    ("equidistant", [-0.02, 0.01, 0.003, -0.001])])
def test_no_point_of_a_sphere_projects_outside_its_circle(model, distortion):
    rng = np.random.default_rng(7)
    matrix = np.array([[300.0, 0, 320], [0, 260.0, 240], [0, 0, 1]])
    camera = Camera(matrix, np.array(distortion), model, 640, 480)
    angle, turn = rng.uniform(0, 0.6 * camera.field_rad, 40), rng.uniform(-np.pi, np.pi, 40)
    depth = rng.uniform(0.35, 5.0, 40)
    centers = np.stack((np.tan(angle) * np.cos(turn), np.tan(angle) * np.sin(turn), np.ones(40)), axis=1)
    centers *= depth[:, None]
    radii_m = rng.uniform(0.01, 0.08, 40)
    middles, radii, whole = project_spheres(camera, centers, radii_m)
    assert whole.all()
    np.testing.assert_array_equal(middles, camera.project(centers)[0])
    surface = rng.normal(size=(2000, 1, 3))
    surface = centers + surface / np.linalg.norm(surface, axis=-1, keepdims=True) * radii_m[:, None]
    pixels, _ = camera.project(surface.reshape(-1, 3))
    reach = np.linalg.norm(pixels.reshape(*surface.shape[:2], 2) - middles, axis=-1).max(axis=0)
    assert (reach <= radii * 1.002).all()
    assert (reach >= radii * 0.95).all()


@pytest.mark.parametrize("camera", [ideal(200.0, 224, 224), ideal(150.0, 320, 180), fisheye(100.0, 224, 224),
                                    fisheye(60.0, 224, 224)], ids=["60 deg", "94 deg", "fisheye", "round fisheye"])
def test_wherever_a_sphere_is_its_circle_covers_what_shows_of_it_and_little_more(camera):
    rng = np.random.default_rng(1)
    pixels = pixels_of(camera)
    rays = rays_of(camera, pixels)
    excess, seen, partly, hidden = [], 0, 0, 0
    for _ in range(600):
        # Beside, before and behind the camera, down to a tenth of the radius from its surface.
        radius_m = rng.uniform(0.02, 0.1)
        sight = rng.normal(size=3)
        center = sight / np.linalg.norm(sight) * radius_m * rng.uniform(1.1, 8.0)
        middle, radius, whole = one(camera, center, radius_m)
        truth = hits(rays, center, radius_m)
        away = np.linalg.norm(pixels - middle, axis=1)
        assert not (truth & ~(away <= radius + 0.5)).any()
        assert (radius > 0.0) or not truth.any()
        seen += truth.any()
        partly += truth.any() and not whole
        hidden += radius == 0.0
        excess.append(((away <= radius) & ~truth).mean())
    assert seen > 80 and partly > 20 and hidden > 100
    assert np.mean(excess) < 0.03
    assert np.quantile(excess, 0.98) < 0.25


def test_what_the_picture_does_not_show_does_not_cover_it():
    camera = ideal()
    # Beside the camera, almost in its own plane; then behind it.
    for center in ([0.5, 0.0, 0.02], [0.5, 0.1, 0.0], [0.0, 0.1, -0.5], [0.0, 0.0, -0.06]):
        middle, radius, whole = one(camera, center, 0.05)
        assert np.isnan(middle).all() and radius == 0.0 and not whole


def test_a_sphere_whose_centre_is_behind_the_camera_shows_its_near_side():
    # Tangent cone 73 degrees wide around a sight at 101 degrees: its near edge is at 28, of a picture up to 29.
    camera, center = ideal(), np.array([0.0, 0.052, -0.01])
    half, angle = np.arcsin(0.0507 / np.linalg.norm(center)), np.arctan2(0.052, -0.01)
    middle, radius, whole = one(camera, center, 0.0507)
    edge = 111.5 + 200 * np.tan(angle - half)
    assert edge < 223.5 and not whole
    assert middle[1] - radius == pytest.approx(edge, abs=1.0)
    assert middle[0] == pytest.approx(111.5)


def test_a_camera_inside_a_sphere_sees_nothing_else():
    camera = ideal()
    centers = np.array([[0, 0, 0.03], [0.0, 0.05, 0.02], [0.0, 0.0, -0.03]])
    middles, radii, whole = project_spheres(camera, centers, np.full(3, 0.06))
    np.testing.assert_allclose(radii, [112 * 2**0.5, np.hypot(112, middles[1, 1] + 0.5), 0.0])
    assert not whole.any()


def test_fisheye_sphere_at_the_rim_keeps_a_small_circle():
    camera, angle = fisheye(100.0, 640, 480), np.deg2rad(86)
    middle, radius, _ = one(camera, [0.5 * np.sin(angle), 0, 0.5 * np.cos(angle)], 0.05)
    # Across the line to the rim it spans 0.1 / sin(86 deg) rad of the circle of radius 100 * 86 deg.
    assert radius == pytest.approx(100 * angle * 0.1 / np.sin(angle), rel=0.1)
    assert np.linalg.norm(middle - camera.matrix[:2, 2]) == pytest.approx(100 * angle, rel=0.03)


def test_the_second_camera_of_a_stereo_pair_sees_it_from_its_own_place():
    projection = np.array([[200.0, 0, 111.5, -200 * 0.1], [0, 200.0, 111.5, 0], [0, 0, 1, 0]])
    second = Camera.rectified(projection, 224, 224)
    found, expected = one(second, [0.13, 0.02, 0.5], 0.05), one(ideal(), [0.03, 0.02, 0.5], 0.05)
    np.testing.assert_allclose(found[0], expected[0])
    assert found[1:] == pytest.approx(expected[1:])


def test_no_spheres_have_no_circles():
    middles, radii, whole = project_spheres(ideal(), np.zeros((0, 3)), np.zeros(0))
    assert (middles.shape, radii.shape, whole.shape) == ((0, 2), (0,), (0,))
