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

"""Affine maps between pictures."""

import cv2
import numpy as np
import pytest
from PIL import Image

from sqap_vla_ros.geometry.image_map import (
    ImageMap,
    crop_map,
    resize_crop_map,
    resize_map,
    scale_map,
    turn_map,
    zoom_map,
)


def blob(width=640, height=480, left=300, top=100):
    """A bright rectangle and the centre of its mass."""
    picture = np.zeros((height, width), np.float32)
    picture[top:top + 41, left:left + 61] = 1.0
    return picture, (left + 30.0, top + 20.0)


def center_of(picture):
    rows, columns = np.mgrid[:picture.shape[0], :picture.shape[1]]
    return np.array([(columns * picture).sum(), (rows * picture).sum()]) / picture.sum()


def resized(picture, width, height):
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def test_resize_keeps_the_picture_borders():
    image_map = resize_map(640, 480, 224)
    corners = np.array([[-0.5, -0.5], [639.5, 479.5], [319.5, 239.5]])
    np.testing.assert_allclose(image_map.apply(corners), [[-0.5, -0.5], [223.5, 223.5], [111.5, 111.5]], atol=1e-12)


def test_resize_to_the_same_size_is_the_identity():
    np.testing.assert_array_equal(resize_map(224, 224, 224).matrix, [[1, 0, 0], [0, 1, 0]])


def test_resize_agrees_with_a_resized_picture():
    picture, center = blob()
    small = cv2.resize(picture, (224, 224), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(resize_map(640, 480, 224).apply(center), center_of(small), atol=0.02)
    stretched = resized(picture, 500, 300)
    np.testing.assert_allclose(scale_map(640, 480, 500, 300).apply(center), center_of(stretched), atol=0.02)


def test_crop_agrees_with_a_slice():
    picture, center = blob()
    np.testing.assert_allclose(crop_map(120, 35).apply(center), center_of(picture[35:, 120:]), atol=1e-4)


@pytest.mark.parametrize("turns", range(-3, 5))
def test_turns_agree_with_numpy(turns):
    picture, center = blob()
    np.testing.assert_allclose(turn_map(640, 480, turns).apply(center), center_of(np.rot90(picture, turns)), atol=1e-3)
    assert np.linalg.det(turn_map(640, 480, turns).matrix[:, :2]) == pytest.approx(1.0)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (480, 640), (641, 479), (480, 480), (300, 451)])
def test_resize_and_crop_agree_with_what_torchvision_documents(width, height):
    picture, center = blob(width, height, 100, 190)
    across, down = (224, int(224 * height / width)) if width <= height else (int(224 * width / height), 224)
    left, top = round((across - 224) / 2), round((down - 224) / 2)
    cut = resized(picture, across, down)[top:top + 224, left:left + 224]
    assert cut.shape == (224, 224)
    np.testing.assert_allclose(resize_crop_map(width, height, 224).apply(center), center_of(cut), atol=0.02)


def test_zoom_puts_corner_centres_on_corner_centres():
    # Sample i of the result is taken at 223 (1 - s) / 2 + i s, s = sqrt(0.9), of the source.
    share, target = 0.9**0.5, np.array([[0, 0], [223, 223], [111.5, 111.5], [17, 200]], dtype=float)
    source = 223 * (1 - share) / 2 + target * share
    np.testing.assert_allclose(zoom_map(224, 0.9).apply(source), target, atol=1e-9)
    np.testing.assert_allclose(zoom_map(224, 1.0).matrix, [[1, 0, 0], [0, 1, 0]], atol=1e-12)


def test_composition_and_inverse():
    rng = np.random.default_rng(0)
    first, second = (ImageMap(rng.normal(size=(2, 3))) for _ in range(2))
    points = rng.normal(size=(50, 2)) * 100
    np.testing.assert_allclose(first.then(second).apply(points), second.apply(first.apply(points)), atol=1e-9)
    np.testing.assert_allclose(first.inverse().apply(first.apply(points)), points, atol=1e-9)
    np.testing.assert_allclose(first.then(first.inverse()).matrix, [[1, 0, 0], [0, 1, 0]], atol=1e-12)
