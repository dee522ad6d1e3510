"""Pictures to pixels and actions to metres."""

import numpy as np
import pytest
import torch
from PIL import Image

from sqap_vla_ros.errors import InputError
from sqap_vla_ros.models.vla import ActionSpec, ImageSpec
from sqap_vla_ros.policy.preprocess import prepare_image, unnormalize_actions

HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
ONE_TOWER = ImageSpec(224, "resize-naive", (HALF,), (HALF,))
TWO_TOWERS = ImageSpec(224, "resize-naive", (IMAGENET[0], HALF), (IMAGENET[1], HALF))


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_picture_of_the_right_size_is_not_resampled():
    rgb = picture(224, 224)
    pixels, image_map = prepare_image(rgb, ONE_TOWER)
    expected = (rgb.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    assert pixels.dtype == torch.float32
    np.testing.assert_array_equal(pixels.numpy(), expected)
    np.testing.assert_array_equal(image_map.matrix, [[1, 0, 0], [0, 1, 0]])


def test_other_sizes_are_squashed_as_pil_does():
    rgb = picture(120, 333)
    pixels, image_map = prepare_image(rgb, ONE_TOWER)
    resized = np.asarray(Image.fromarray(rgb).resize((224, 224), Image.Resampling.BICUBIC))
    same, _ = prepare_image(resized, ONE_TOWER)
    assert torch.equal(pixels, same)
    np.testing.assert_allclose(image_map.apply([332.5, 119.5]), [223.5, 223.5])


def test_every_tower_has_its_own_normalisation():
    rgb = picture(224, 224)
    pixels, _ = prepare_image(rgb, TWO_TOWERS)
    assert pixels.shape == (1, 6, 224, 224)
    share = rgb.transpose(2, 0, 1) / 255.0
    for channel in range(3):
        expected = (share[channel] - IMAGENET[0][channel]) / IMAGENET[1][channel]
        np.testing.assert_allclose(pixels[0, channel].numpy(), expected, atol=1e-6)
        np.testing.assert_allclose(pixels[0, 3 + channel].numpy(), 2 * share[channel] - 1, atol=1e-6)


def test_memory_layout_does_not_matter_and_the_picture_is_left_alone():
    rgb = picture(224, 448)
    turned = rgb[:, ::-2]
    kept = turned.copy()
    assert torch.equal(prepare_image(turned, ONE_TOWER)[0], prepare_image(np.ascontiguousarray(turned), ONE_TOWER)[0])
    pixels, _ = prepare_image(turned, ONE_TOWER)
    pixels.zero_()
    np.testing.assert_array_equal(turned, kept)
    locked = picture(224, 224)
    locked.setflags(write=False)
    assert prepare_image(locked, ONE_TOWER)[0].shape == (1, 3, 224, 224)


@pytest.mark.parametrize(("rgb", "came"), [
    (np.zeros((224, 224), np.uint8), r"uint8 \(224, 224\)"), (np.zeros((224, 224, 4), np.uint8), r"\(224, 224, 4\)"),
    (np.zeros((224, 224, 3), np.float32), "float32"), (np.zeros((0, 224, 3), np.uint8), r"\(0, 224, 3\)"),
    (None, "NoneType")])
def test_what_is_no_picture_is_refused(rgb, came):
    with pytest.raises(InputError, match=f"must be a uint8 array of shape .*got .*{came}"):
        prepare_image(rgb, ONE_TOWER)


def test_actions_reach_their_bounds_and_the_gripper_stays():
    spec = ActionSpec(3, (-0.02, 0.0, -0.3), (0.04, 0.5, 1.0), (True, True, False))
    actions = np.array([[-1, -1, 0.25], [1, 1, 1], [0, 0.5, 0]], dtype=np.float32)
    found = unnormalize_actions(actions, spec)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [[-0.02, 0.0, 0.25], [0.04, 0.5, 1.0], [0.01, 0.375, 0.0]], atol=1e-12)


def test_actions_beyond_the_bounds_and_not_finite_pass_through():
    spec = ActionSpec(1, (-1.0, 0.0), (3.0, 1.0), (True, True))
    np.testing.assert_allclose(unnormalize_actions(np.array([[2.0, np.nan]]), spec), [[5.0, np.nan]])
