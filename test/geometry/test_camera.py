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

"""Projection against OpenCV, and what cannot be projected."""

import cv2
import numpy as np
import pytest

from sqap_vla_ros.errors import InputError
from sqap_vla_ros.geometry.camera import Camera

RATIONAL = "rational_polynomial"


def matrix_of(rng):
    return np.array([[rng.uniform(150, 900), 0, rng.uniform(100, 500)],
                     [0, rng.uniform(150, 900), rng.uniform(80, 400)], [0, 0, 1]])


def ideal(focal=200.0, width=224, height=224):
    matrix = np.array([[focal, 0, width / 2 - 0.5], [0, focal, height / 2 - 0.5], [0, 0, 1]])
    return Camera(matrix, np.zeros(5), "plumb_bob", width, height)


def points_within(rng, field_rad, count=200):
    angle = rng.uniform(0, 0.98 * min(field_rad, 1.3), count)
    turn = rng.uniform(-np.pi, np.pi, count)
    depth = rng.uniform(0.05, 5.0, count)
    across = np.tan(angle) * depth
    return np.stack((across * np.cos(turn), across * np.sin(turn), depth), axis=1)


@pytest.mark.parametrize(("model", "count"), [("", 0), ("plumb_bob", 4), ("plumb_bob", 5), (RATIONAL, 8)])
def test_pinhole_models_agree_with_opencv_on_random_cameras(model, count):
    rng = np.random.default_rng(count)
    worst, seen = 0.0, 0
    for _ in range(50):
        distortion = rng.uniform(-0.25, 0.25, count) * np.array([1, 1, 0.02, 0.02, 0.3, 1, 0.5, 0.3])[:count]
        camera = Camera(matrix_of(rng), distortion, model, 640, 480)
        points = points_within(rng, camera.field_rad)
        pixels, depth = camera.project(points)
        reference, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), camera.matrix, distortion)
        worst = max(worst, np.abs(pixels - reference[:, 0]).max())
        seen += np.isfinite(pixels).all(axis=1).sum()
        np.testing.assert_array_equal(depth, points[:, 2])
    assert seen == 50 * 200
    assert worst < 1e-6


def test_equidistant_agrees_with_opencv_on_random_cameras():
    rng = np.random.default_rng(3)
    worst = 0.0
    for _ in range(50):
        distortion = rng.uniform(-0.05, 0.05, 4)
        camera = Camera(matrix_of(rng), distortion, "equidistant", 640, 480)
        points = points_within(rng, camera.field_rad)
        pixels, _ = camera.project(points)
        reference, _ = cv2.fisheye.projectPoints(points[:, None], np.zeros(3), np.zeros(3), camera.matrix, distortion)
        worst = max(worst, np.abs(pixels - reference[:, 0]).max())
    assert worst < 1e-6


def test_points_behind_the_camera_are_not_projectable():
    camera = ideal()
    pixels, depth = camera.project(np.array([[0.1, 0.0, -1.0], [0.1, 0.0, 0.0], [0.0, 0.0, 0.0], [0.1, 0.0, 1.0]]))
    assert np.isnan(pixels[:3]).all()
    np.testing.assert_allclose(pixels[3], [131.5, 111.5])
    np.testing.assert_array_equal(depth, [-1, 0, 0, 1])


def test_points_where_the_distortion_folds_back_are_not_projectable():
    # r (1 - 0.3 r^2) grows up to r = 1 / sqrt(0.9), 46.5 degrees, and is 0 again at r = 1.826.
    camera = Camera(ideal().matrix, np.array([-0.3, 0, 0, 0, 0]), "plumb_bob", 224, 224)
    assert camera.field_rad == pytest.approx(np.arctan(1 / np.sqrt(0.9)), abs=1e-5)
    pixels, _ = camera.project(np.array([[1.82, 0, 1.0], [1.06, 0, 1.0], [1.05, 0, 1.0]]))
    assert np.isnan(pixels[:2]).all()
    assert np.isfinite(pixels[2]).all()
    # 1 + s has no positive root but 1 - 0.5 s, the denominator, has a pole at s = 2.
    camera = Camera(ideal().matrix, np.array([0, 0, 0, 0, 0, -0.5, 0, 0]), RATIONAL, 224, 224)
    assert camera.field_rad == pytest.approx(np.arctan(np.sqrt(2)), abs=1e-5)
    camera = Camera(ideal().matrix, np.array([-1 / 3, 0, 0, 0]), "equidistant", 224, 224)
    assert camera.field_rad == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("change", "words"), [
    ({"matrix": np.zeros((3, 3))}, "not calibrated"), ({"matrix": np.eye(2)}, "shape"),
    ({"matrix": np.full((3, 3), np.nan)}, "not finite"), ({"model": "thin_prism"}, "plumb_bob"),
    ({"distortion": np.zeros(3)}, "3 coefficients"), ({"width": 0}, "positive"),
    ({"model": "equidistant", "distortion": np.zeros(0)}, "takes 4"),
    ({"distortion": np.array([-1e20, 0, 0, 0, 0])}, "folds back within a pixel"),
    ({"distortion": np.array([0, 0, 0, 0, 1e300])}, "too large to be used"),
    ({"shift_m": np.array([0.0, np.inf, 0.0])}, "not finite")])
def test_unusable_calibration_is_refused_with_a_sentence(change, words):
    values = {"matrix": np.eye(3), "distortion": np.zeros(5), "model": "plumb_bob", "width": 64, "height": 48}
    with pytest.raises(InputError, match=words):
        Camera(**{**values, **change})


@pytest.mark.parametrize(("model", "count"), [("plumb_bob", 5), (RATIONAL, 8), ("equidistant", 4)])
def test_the_field_ends_where_the_radius_first_stops_to_grow(model, count):
    rng = np.random.default_rng(11)
    ends = 0
    for _ in range(60):
        scale = 10.0 ** rng.uniform(-3, 0.5, count)
        camera = Camera(ideal().matrix, rng.normal(size=count) * scale * np.where(np.isin(np.arange(count), (2, 3))
                        & (model != "equidistant"), 0.0, 1.0), model, 224, 224)
        angle = np.linspace(0, min(camera.field_rad, np.arctan(30)), 20_001)[:-1]
        radius = camera.project_clamped(np.stack((np.sin(angle), 0 * angle, np.cos(angle)), axis=1))[:, 0]
        assert (np.diff(radius) > 0).all()
        if camera.field_rad < 1.5:
            # A hair further on it would shrink, or jump to the other side at a pole.
            further = camera.field_rad * np.array([1.0001, 1.0002])
            object.__setattr__(camera, "field_rad", np.pi)
            near, far = camera.project_clamped(np.stack((np.sin(further), 0 * further, np.cos(further)), axis=1))[:, 0]
            assert far < near or near < 0.0
            ends += 1
    assert ends > 10


@pytest.mark.parametrize(("model", "count"), [("plumb_bob", 5), (RATIONAL, 8), ("equidistant", 4)])
def test_coefficients_of_any_size_give_a_camera_or_a_sentence(model, count):
    rng = np.random.default_rng(12)
    refused = 0
    for index in range(300):
        exponent = rng.uniform(-323, 308, count) if index % 2 else rng.uniform(-323, -2, count)
        distortion = rng.choice([-1.0, 0.0, 1.0], count) * 10.0**exponent
        try:
            camera = Camera(ideal().matrix, distortion, model, 224, 224)
        except InputError:
            refused += 1
            continue
        assert 0.0 < camera.field_rad < np.pi / 2
        assert np.isfinite(camera.project(np.array([[0.0, 0.0, 1.0]]))[0]).all()
    assert 20 < refused < 150
    # A leading coefficient too small to have an inverse.
    camera = Camera(ideal().matrix, np.array([0.01, 0, 0, 5e-324]), "equidistant", 224, 224)
    assert camera.field_rad == pytest.approx(np.pi / 2, abs=1e-5)


def test_a_rectified_picture_is_projected_by_p_alone():
    rng = np.random.default_rng(5)
    projection = np.array([[410.0, 0, 318, 0], [0, 405.0, 243, 0], [0, 0, 1, 0]])
    points = points_within(rng, 1.0)
    expected = np.column_stack((points, np.ones(200))) @ projection.T
    pixels, depth = Camera.rectified(projection, 640, 480).project(points)
    np.testing.assert_allclose(pixels, expected[:, :2] / expected[:, 2:], atol=1e-9)
    np.testing.assert_array_equal(depth, points[:, 2])
    # The second camera of a stereo pair, 12 cm to the right, for points in the frame of the first.
    projection[0, 3] = -410.0 * 0.12
    second = Camera.rectified(projection, 640, 480)
    np.testing.assert_allclose(second.shift_m, [-0.12, 0, 0])
    expected = np.column_stack((points, np.ones(200))) @ projection.T
    np.testing.assert_allclose(second.project(points)[0], expected[:, :2] / expected[:, 2:], atol=1e-9)


def test_undistorting_a_pixel_leads_from_k_and_d_to_p():
    # What image_proc rectifies: the raw pixel undistorted by OpenCV is the rectified camera's pixel.
    rng = np.random.default_rng(6)
    raw = Camera(np.array([[500.0, 0, 320], [0, 510.0, 240], [0, 0, 1]]), [-0.2, 0.05, 0.001, -0.001, 0], "plumb_bob",
                 640, 480)
    projection = np.array([[470.0, 0, 322, 0], [0, 480.0, 238, 0], [0, 0, 1, 0]])
    points = points_within(rng, 0.5)
    found = cv2.undistortPoints(raw.project(points)[0][:, None], raw.matrix, raw.distortion, P=projection[:, :3])
    np.testing.assert_allclose(found[:, 0], Camera.rectified(projection, 640, 480).project(points)[0], atol=0.01)


@pytest.mark.parametrize(("projection", "words"), [
    (np.eye(3), "must be \\(3, 4\\)"), (np.zeros((3, 4)), "end in 0 0 1 0"),
    (np.array([[0.0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 1, 0]]), "not calibrated"),
    (np.array([[1.0, 0, 1, np.nan], [0, 1, 1, 0], [0, 0, 1, 0]]), "not finite")])
def test_an_unusable_projection_is_refused_with_a_sentence(projection, words):
    with pytest.raises(InputError, match=words):
        Camera.rectified(projection, 64, 48)


@pytest.mark.parametrize(("model", "distortion"), [
    ("plumb_bob", [-0.28, 0.09, 0.001, -0.002, 0.01]), ("equidistant", [-0.02, 0.01, 0.003, -0.001])])
def test_a_region_and_binning_show_the_same_point_where_the_smaller_picture_has_it(model, distortion):
    camera = Camera(np.array([[500.0, 0, 320], [0, 510.0, 240], [0, 0, 1]]), distortion, model, 640, 480)
    points = points_within(np.random.default_rng(8), 0.5)
    pixels, _ = camera.project(points)
    small = camera.windowed((100, 40), (400, 200), (2, 4))
    assert (small.width, small.height) == (200, 50)
    # The left edge of the region, at 99.5, is the edge -0.5 of the small picture.
    np.testing.assert_allclose(small.project(points)[0], (pixels - [99.5, 39.5]) / [2, 4] - 0.5, atol=1e-9)
    whole = camera.windowed((0, 0), (0, 0), (0, 1))
    np.testing.assert_array_equal(whole.matrix, camera.matrix)
    assert (whole.width, whole.height) == (640, 480)
    with pytest.raises(InputError, match="0 x 48"):
        camera.windowed((0, 0), (3, 48), (4, 1))
    # The second of two rectified cameras keeps its place.
    rectified = Camera.rectified(np.array([[400.0, 0, 320, -40], [0, 400.0, 240, 0], [0, 0, 1, 0]]), 640, 480)
    binned = rectified.windowed((0, 0), (0, 0), (2, 2))
    np.testing.assert_allclose(binned.project(points)[0], (rectified.project(points)[0] + 0.5) / 2 - 0.5, atol=1e-9)
