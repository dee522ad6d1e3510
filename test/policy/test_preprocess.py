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

"""Pictures and state to tensors, and actions to metres."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sqap_vla_ros.errors import InputError
from sqap_vla_ros.knobs import ModelKnobs
from sqap_vla_ros.models.pictures import prepare_picture
from sqap_vla_ros.models.vla import ActionSpec, ImageSpec
from sqap_vla_ros.policy.preprocess import prepare_pictures, prepare_state, scale_actions, unnormalize_actions

HALF = (0.5, 0.5, 0.5)
SPEC = ImageSpec(56, "letterbox", (HALF, (0.4, 0.4, 0.4)), (HALF, HALF))
MODEL = SimpleNamespace(image_spec=SPEC, cameras=("main", "wrist"), pictures="bridge", state_size=3)


def pictures(*sizes):
    rng = np.random.default_rng(0)
    return tuple(rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in sizes)


def test_pictures_stand_one_behind_the_other_each_with_its_map():
    images = pictures((60, 40), (33, 50))
    pixels, maps = prepare_pictures(images, MODEL)
    assert pixels.shape == (1, 2 * 2 * 3, 56, 56) and pixels.dtype == torch.float32
    for index, rgb in enumerate(images):
        expected, image_map = prepare_picture(rgb, SPEC, "bridge")
        assert torch.equal(pixels[:, 6 * index:6 * index + 6], expected)
        np.testing.assert_array_equal(maps[index].matrix, image_map.matrix)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_pictures_is_refused_with_the_cameras_names(count):
    with pytest.raises(InputError, match=rf"came with {count} pictures, and the model sees 2; .*: main, wrist$"):
        prepare_pictures(pictures(*[(8, 8)] * count), MODEL)


def test_a_state_becomes_a_tensor_of_its_own():
    state = np.array([1, 2.5, -3])
    found = prepare_state(state, MODEL)
    state[0] = 7
    assert found.dtype == torch.float64 and found.tolist() == [1.0, 2.5, -3.0]
    assert prepare_state(None, SimpleNamespace(state_size=0)) is None


@pytest.mark.parametrize(("state", "size", "words"), [
    (None, 3, "came without a robot state, and the model reads one of 3 numbers"),
    (np.zeros(3), 0, "came with a robot state, and the model reads none"),
    (np.zeros(4), 3, r"must be 3 numbers in a row, got shape \(4,\)"),
    (np.zeros((1, 3)), 3, r"got shape \(1, 3\)"),
    (np.array([0, np.nan, 1]), 3, r"must be finite, got \[0.0, nan, 1.0\]")])
def test_states_that_do_not_fit(state, size, words):
    with pytest.raises(InputError, match=words):
        prepare_state(state, SimpleNamespace(state_size=size))


def test_actions_reach_their_bounds_and_the_gripper_stays():
    spec = ActionSpec(3, (-0.02, 0.0, -0.3), (0.04, 0.5, 1.0), (True, True, False))
    actions = np.array([[-1, -1, 0.25], [1, 1, 1], [0, 0.5, 0]], dtype=np.float32)
    found = unnormalize_actions(actions, spec)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [[-0.02, 0.0, 0.25], [0.04, 0.5, 1.0], [0.01, 0.375, 0.0]], atol=1e-12)


def test_actions_beyond_the_bounds_and_not_finite_pass_through():
    spec = ActionSpec(1, (-1.0, 0.0), (3.0, 1.0), (True, True))
    np.testing.assert_allclose(unnormalize_actions(np.array([[2.0, np.nan]]), spec), [[5.0, np.nan]])


def test_a_controllers_inputs_become_metres_and_radians():
    steps = np.ones((2, 7))
    assert scale_actions(steps, ModelKnobs()) is steps
    scaled = scale_actions(steps, ModelKnobs(meters_per_unit=0.05, radians_per_unit=0.5))
    np.testing.assert_allclose(scaled, [[0.05, 0.05, 0.05, 0.5, 0.5, 0.5, 1.0]] * 2)
