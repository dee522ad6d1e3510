"""Affine maps between pictures."""

import cv2
import numpy as np

from sqap_vla_ros.geometry.image_map import ImageMap, resize_map


def test_resize_keeps_the_picture_borders():
    image_map = resize_map(640, 480, 224)
    corners = np.array([[-0.5, -0.5], [639.5, 479.5], [319.5, 239.5]])
    np.testing.assert_allclose(image_map.apply(corners), [[-0.5, -0.5], [223.5, 223.5], [111.5, 111.5]], atol=1e-12)


def test_resize_to_the_same_size_is_the_identity():
    np.testing.assert_array_equal(resize_map(224, 224, 224).matrix, [[1, 0, 0], [0, 1, 0]])


def test_resize_agrees_with_a_resized_picture():
    # The centre of mass of a blob moves with the map.
    picture = np.zeros((480, 640), np.float32)
    picture[100:141, 300:361] = 1.0
    small = cv2.resize(picture, (224, 224), interpolation=cv2.INTER_AREA)
    rows, columns = np.mgrid[:224, :224]
    found = np.array([(columns * small).sum(), (rows * small).sum()]) / small.sum()
    np.testing.assert_allclose(resize_map(640, 480, 224).apply([330.0, 120.0]), found, atol=0.02)


def test_composition_and_inverse():
    rng = np.random.default_rng(0)
    first, second = (ImageMap(rng.normal(size=(2, 3))) for _ in range(2))
    points = rng.normal(size=(50, 2)) * 100
    np.testing.assert_allclose(first.then(second).apply(points), second.apply(first.apply(points)), atol=1e-9)
    np.testing.assert_allclose(first.inverse().apply(first.apply(points)), points, atol=1e-9)
    np.testing.assert_allclose(first.then(first.inverse()).matrix, [[1, 0, 0], [0, 1, 0]], atol=1e-12)
