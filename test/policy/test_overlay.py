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

import numpy as np
import pytest

from sqap_vla_ros.data import RobotFootprint, TokenRule, TokenUse
from sqap_vla_ros.geometry.image_map import resize_map
from sqap_vla_ros.policy.overlay import PRUNED_BRIGHTNESS, RING_COLOR, RULE_COLORS, STRIP_PX, draw_overlay

GREY = np.full((64, 64, 3), 100, dtype=np.uint8)
MAP = resize_map(64, 64, 32)
CELL = 512 // 4
RULES = {0: TokenRule.ATTENTION, 6: TokenRule.ROBOT, 9: TokenRule.COVERAGE, 15: TokenRule.COVERAGE}
TOKENS = TokenUse((4, 4), np.array(list(RULES)), np.array([int(rule) for rule in RULES.values()], dtype=np.int8))
UNPRUNED = TokenUse((4, 4), np.arange(16), np.full(16, int(TokenRule.UNPRUNED), dtype=np.int8))


def cell(picture, index, top=0):
    row, column = divmod(index, 4)
    return picture[top + row * CELL:top + (row + 1) * CELL, column * CELL:(column + 1) * CELL]


def has_color(area, color):
    # A line one pixel wide is smoothed, so its colour is met only nearly.
    return bool((np.abs(area.astype(int) - color).max(axis=-1) < 40).any())


def test_pruned_tokens_are_dark_and_kept_ones_are_not():
    picture = draw_overlay(GREY, TOKENS, None, MAP)
    assert picture.shape == (512 + STRIP_PX, 512, 3) and picture.dtype == np.uint8
    for index in range(16):
        middle = cell(picture, index)[CELL // 2, CELL // 2]
        np.testing.assert_array_equal(middle, 100 if index in RULES else int(100 * PRUNED_BRIGHTNESS))


def test_each_kept_token_has_the_colour_of_its_rule_and_of_no_other():
    picture = draw_overlay(GREY, TOKENS, None, MAP)
    for index in range(16):
        for rule, color in RULE_COLORS.items():
            assert has_color(cell(picture, index), color) is (RULES.get(index) is rule)


def test_tokens_kept_by_chance_have_their_colour_in_picture_and_legend():
    chance = TokenUse((4, 4), TOKENS.kept, np.full(len(RULES), int(TokenRule.RANDOM), dtype=np.int8))
    pictures = [draw_overlay(GREY, tokens, None, MAP) for tokens in (TOKENS, chance)]
    for picture, expected in zip(pictures, ((True, True, True, False), (False, False, False, True)), strict=True):
        legend = picture[512:]
        assert [bool((legend == color).all(axis=-1).any()) for color in RULE_COLORS.values()] == list(expected)
    for index in range(16):
        assert has_color(cell(pictures[1], index), RULE_COLORS[TokenRule.RANDOM]) is (index in RULES)


def test_without_pruning_the_picture_is_as_it_came():
    picture = draw_overlay(GREY, UNPRUNED, None, MAP)
    np.testing.assert_array_equal(picture[:512], 100)


def test_the_ring_stands_where_the_camera_sees_the_frame():
    footprint = RobotFootprint(("hand", "gone"), np.array([[20.0, 40.0], [np.nan, np.nan]]), np.array([6.0, 0.0]))
    picture = draw_overlay(GREY, UNPRUNED, footprint, MAP)[:512]
    rows, columns = np.nonzero((picture == RING_COLOR).all(axis=-1))
    # Camera pixel centres are whole numbers, and 8 pixels are drawn for each.
    assert (columns.min() + columns.max()) / 2 == pytest.approx((20.0 + 0.5) * 8 - 0.5, abs=1.0)
    assert (rows.min() + rows.max()) / 2 == pytest.approx((40.0 + 0.5) * 8 - 0.5, abs=1.0)
    assert (columns.max() - columns.min()) / 2 == pytest.approx(6.0 * 8, abs=2.0)


def test_a_frame_far_outside_of_the_picture_does_no_harm():
    footprint = RobotFootprint(("hand",), np.array([[-1e9, 1e12]]), np.array([5.0]))
    np.testing.assert_array_equal(draw_overlay(GREY, UNPRUNED, footprint, MAP)[:512], 100)


def test_a_wide_picture_keeps_its_shape_and_its_tokens_cover_it():
    wide = np.full((48, 80, 3), 100, dtype=np.uint8)
    picture = draw_overlay(wide, TOKENS, None, resize_map(80, 48, 32), width_px=400)
    assert picture.shape == (240 + STRIP_PX, 400, 3)
    # Tokens are 100 x 60 here: the last one is kept, the one before it is not.
    assert picture[210, 350].tolist() == [100] * 3 and picture[210, 250].tolist() == [28] * 3


def test_a_cropped_model_picture_leaves_its_surroundings_dark():
    # The middle half of the picture, 32 px, is all that the model sees.
    crop = resize_map(64, 64, 64)
    crop = type(crop)(crop.matrix - [[0, 0, 16], [0, 0, 16]])
    picture = draw_overlay(GREY, UNPRUNED, None, crop, model_size=32)[:512]
    bright = (picture == 100).all(axis=-1)
    rows, columns = np.nonzero(bright)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == pytest.approx((128, 383, 128, 383), abs=1)


@pytest.mark.parametrize("caption", ["pick up the red block", "ü" * 3, "very long words " * 20])
def test_a_caption_gets_a_line_of_its_own_and_stays_in_it(caption):
    plain, titled = draw_overlay(GREY, TOKENS, None, MAP), draw_overlay(GREY, TOKENS, None, MAP, caption)
    assert titled.shape[0] == plain.shape[0] + STRIP_PX
    np.testing.assert_array_equal(titled[STRIP_PX:], plain)
    assert titled[:STRIP_PX].max() > 150


def test_sides_are_even_as_video_codecs_ask_and_the_input_is_untouched():
    odd = np.full((37, 53, 3), 100, dtype=np.uint8)
    picture = draw_overlay(odd, UNPRUNED, None, resize_map(53, 37, 32), "x", width_px=333)
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
    assert (odd == 100).all()
