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
    radii = camera.sphere_radius_px(np.array([[0.1, 0.0, -1.0], [0.1, 0.0, 0.0]]), np.array([0.05, 0.5]))
    np.testing.assert_array_equal(radii, [0, 0])


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


def test_sphere_on_the_axis_has_the_radius_of_its_tangent_cone():
    # Tangent half-angle asin(0.05 / 0.5); the picture's radius is its tangent times the focal length.
    radius = ideal().sphere_radius_px(np.array([[0, 0, 0.5]]), np.array([0.05]))
    assert radius[0] == pytest.approx(200 * np.tan(np.arcsin(0.1)), abs=1e-9)


def test_sphere_off_the_axis_is_bounded_at_its_far_end():
    center = np.array([[0.3, 0.2, 0.5]])
    angle, half = np.arctan2(np.hypot(0.3, 0.2), 0.5), np.arcsin(0.05 / np.linalg.norm(center))
    radius = ideal().sphere_radius_px(center, np.array([0.05]))
    assert radius[0] == pytest.approx(200 * (np.tan(angle + half) - np.tan(angle)), abs=1e-9)


@pytest.mark.parametrize(("model", "distortion"), [
    ("plumb_bob", [-0.28, 0.09, 0.001, -0.002, 0.01]), (RATIONAL, [0.3, -0.1, 0.0, 0.0, 0.01, 0.5, 0.02, 0.01]),
    ("equidistant", [-0.02, 0.01, 0.003, -0.001])])
def test_no_point_of_a_sphere_projects_outside_its_circle(model, distortion):
    rng = np.random.default_rng(7)
    matrix = np.array([[300.0, 0, 320], [0, 260.0, 240], [0, 0, 1]])
    camera = Camera(matrix, np.array(distortion), model, 640, 480)
    centers = points_within(rng, 0.6 * camera.field_rad, 40) + np.array([0, 0, 0.3])
    radii_m = rng.uniform(0.01, 0.08, 40)
    radii_px = camera.sphere_radius_px(centers, radii_m)
    middle, _ = camera.project(centers)
    surface = rng.normal(size=(2000, 1, 3))
    surface = centers + surface / np.linalg.norm(surface, axis=-1, keepdims=True) * radii_m[:, None]
    pixels, _ = camera.project(surface.reshape(-1, 3))
    reach = np.linalg.norm(pixels.reshape(*surface.shape[:2], 2) - middle, axis=-1).max(axis=0)
    assert (reach <= radii_px * 1.005).all()
    assert (reach >= radii_px * 0.95).all()


def test_radius_never_exceeds_what_covers_the_picture():
    camera = ideal()
    centers = np.array([[0, 0, 0.03], [0.0, 0.05, 0.02]])
    radii = camera.sphere_radius_px(centers, np.array([0.05, 0.05]))
    middle, _ = camera.project(centers)
    farthest = np.hypot(112, np.abs(middle[:, 1] - 111.5) + 112)
    np.testing.assert_allclose(radii, farthest)


def test_fisheye_sphere_at_the_rim_keeps_a_bounded_circle():
    camera = Camera(np.array([[100.0, 0, 320], [0, 100.0, 240], [0, 0, 1]]), np.zeros(4), "equidistant", 640, 480)
    angle = np.deg2rad(86)
    center = np.array([[0.5 * np.sin(angle), 0, 0.5 * np.cos(angle)]])
    radius = camera.sphere_radius_px(center, np.array([0.05]))
    # Across the line to the rim it spans 0.1 / sin(86 deg) rad of the circle of radius 100 * 86 deg.
    assert radius[0] == pytest.approx(100 * angle * 0.1 / np.sin(angle), rel=5e-3)


@pytest.mark.parametrize(("change", "words"), [
    ({"matrix": np.zeros((3, 3))}, "not calibrated"), ({"matrix": np.eye(2)}, "shape"),
    ({"matrix": np.full((3, 3), np.nan)}, "not finite"), ({"model": "thin_prism"}, "plumb_bob"),
    ({"distortion": np.zeros(3)}, "3 coefficients"), ({"width": 0}, "positive"),
    ({"model": "equidistant", "distortion": np.zeros(0)}, "takes 4")])
def test_unusable_calibration_is_refused_with_a_sentence(change, words):
    values = {"matrix": np.eye(3), "distortion": np.zeros(5), "model": "plumb_bob", "width": 64, "height": 48}
    with pytest.raises(InputError, match=words):
        Camera(**{**values, **change})
