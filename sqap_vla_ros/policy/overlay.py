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

"""The picture as the model sees it: which visual tokens stayed and by which rule, and where the robot is.

Dropped tokens are dark. A kept token has a frame in the colour of the rule that kept it. Rings are the protected
frames of the robot, projected with the camera's calibration.
"""

from __future__ import annotations

import cv2
import numpy as np

from sqap_vla_ros.data import RobotFootprint, TokenRule, TokenUse
from sqap_vla_ros.geometry.image_map import ImageMap

RULE_COLORS = {TokenRule.ATTENTION: (255, 150, 0), TokenRule.ROBOT: (0, 225, 255), TokenRule.COVERAGE: (245, 245, 245),
               TokenRule.RANDOM: (190, 130, 255)}
RING_COLOR = (255, 60, 200)
TEXT_COLOR = (235, 235, 235)
PRUNED_BRIGHTNESS = 0.28
STRIP_PX = 28
_SUBPIXEL_BITS = 4
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.46


def draw_overlay(rgb: np.ndarray, tokens: TokenUse, footprint: RobotFootprint | None, image_map: ImageMap,
                 caption: str = "", *, model_size: int | None = None, width_px: int = 512) -> np.ndarray:
    """Draw one inference into its picture.

    :param rgb: (H, W, 3) uint8, the camera's picture
    :param tokens: what became of the visual tokens
    :param footprint: the protected frames in camera pixels, or None
    :param image_map: camera pixels to model pixels
    :param caption: one line over the picture; no line when empty
    :param model_size: side of the model's picture, px; None when the whole camera picture fills it
    :param width_px: width of the result
    :return: (H', width_px, 3) uint8 RGB: caption, picture, legend; H' and ``width_px`` are even, as video codecs ask
    """
    width_px += width_px % 2
    height, width = rgb.shape[:2]
    scale = width_px / width
    tall = round(height * scale / 2) * 2
    canvas = cv2.resize(rgb, (width_px, tall), interpolation=cv2.INTER_CUBIC)
    if model_size is None:
        # The far corner of a picture that fills the model's square lies at (size - 0.5, size - 0.5).
        model_size = round(float(image_map.apply(np.array([width - 0.5, height - 0.5])).max()) + 0.5)
    cells = (_token_corners(tokens.grid, image_map, model_size) + 0.5) * [scale, tall / height] - 0.5
    _darken_pruned(canvas, cells, tokens)
    _outline_kept(canvas, cells, tokens)
    if footprint is not None:
        _draw_rings(canvas, footprint, scale)
    strips = [_caption_strip(caption, width_px)] if caption else []
    return np.concatenate([*strips, canvas, _legend_strip(tokens, footprint, width_px)])


def _token_corners(grid: tuple[int, int], image_map: ImageMap, model_size: int) -> np.ndarray:
    # (N, 4, 2) camera px, corners of every token in order around it.
    rows, columns = grid
    row, column = np.divmod(np.arange(rows * columns), columns)
    steps = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    corners = (np.stack((column, row), axis=1)[:, None] + steps) * [model_size / columns, model_size / rows] - 0.5
    return image_map.inverse().apply(corners)


def _darken_pruned(canvas: np.ndarray, cells: np.ndarray, tokens: TokenUse) -> None:
    seen = np.zeros(canvas.shape[:2], dtype=np.uint8)
    for cell in cells[tokens.kept]:
        cv2.fillPoly(seen, [_fixed_point(cell)], (255,), shift=_SUBPIXEL_BITS)
    dark = (canvas * PRUNED_BRIGHTNESS).astype(np.uint8)
    np.copyto(canvas, dark, where=(seen == 0)[..., None])


def _outline_kept(canvas: np.ndarray, cells: np.ndarray, tokens: TokenUse) -> None:
    # Coverage and chance first and thin, so that the two rules with a reason stand out over them.
    for rule, thickness in ((TokenRule.COVERAGE, 1), (TokenRule.RANDOM, 1), (TokenRule.ATTENTION, 2),
                            (TokenRule.ROBOT, 2)):
        for cell in cells[tokens.kept[tokens.rules == int(rule)]]:
            middle = cell.mean(axis=0)
            inset = middle + (cell - middle) * 0.86
            cv2.polylines(canvas, [_fixed_point(inset)], True, RULE_COLORS[rule], thickness, cv2.LINE_AA,
                          shift=_SUBPIXEL_BITS)


def _draw_rings(canvas: np.ndarray, footprint: RobotFootprint, scale: float) -> None:
    for center, radius in zip(footprint.centers_px, footprint.radii_px, strict=True):
        if radius <= 0.0 or not np.isfinite(center).all():
            continue
        middle = _fixed_point((center + 0.5) * scale - 0.5)
        size = round(float(radius) * scale * 2**_SUBPIXEL_BITS)
        for color, thickness in (((0, 0, 0), 4), (RING_COLOR, 2)):
            cv2.circle(canvas, middle.tolist(), size, color, thickness, cv2.LINE_AA, shift=_SUBPIXEL_BITS)
        cv2.circle(canvas, middle.tolist(), 3 * 2**_SUBPIXEL_BITS, RING_COLOR, cv2.FILLED, cv2.LINE_AA,
                   shift=_SUBPIXEL_BITS)


def _fixed_point(points: np.ndarray) -> np.ndarray:
    # OpenCV's integers with fraction bits; far-off points are cut so that they fit.
    limit = 2.0**26
    return np.clip(np.rint(points * 2**_SUBPIXEL_BITS), -limit, limit).astype(np.int32)


def _caption_strip(caption: str, width_px: int) -> np.ndarray:
    strip = np.full((STRIP_PX, width_px, 3), 24, dtype=np.uint8)
    # The font has ASCII only; anything else would come out as question marks of unknown number.
    text = caption.encode("ascii", "replace").decode("ascii")
    wanted = cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)[0][0]
    size = _FONT_SCALE * min(1.0, max(width_px - 16, 1) / max(wanted, 1))
    cv2.putText(strip, text, (8, 19), _FONT, size, TEXT_COLOR, 1, cv2.LINE_AA)
    return strip


def _legend_strip(tokens: TokenUse, footprint: RobotFootprint | None, width_px: int) -> np.ndarray:
    strip = np.full((STRIP_PX, width_px, 3), 24, dtype=np.uint8)
    total = tokens.grid[0] * tokens.grid[1]
    entries: list[tuple[tuple[int, int, int], str]] = []
    if tokens.count(TokenRule.UNPRUNED) == len(tokens.kept):
        entries.append((RULE_COLORS[TokenRule.COVERAGE], f"all {len(tokens.kept)} tokens kept"))
    else:
        # Chance keeps all tokens or none, and where it keeps none nobody asks for it.
        by_chance = tokens.count(TokenRule.RANDOM) > 0
        entries += [(color, f"{rule.name.lower()} {tokens.count(rule)}") for rule, color in RULE_COLORS.items()
                    if (rule == TokenRule.RANDOM) == by_chance]
        entries.append(((70, 70, 70), f"pruned {total - len(tokens.kept)}"))
    entries.append((RING_COLOR, "protected frame") if footprint is not None else ((24, 24, 24), "no protection"))
    # Every entry shrinks alike, so that all fit.
    gaps = 28 * len(entries) + 8
    wanted = sum(cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)[0][0] for _, text in entries)
    size = _FONT_SCALE * min(1.0, max(width_px - gaps, 1) / wanted)
    x = 8
    for color, text in entries:
        cv2.rectangle(strip, (x, 9), (x + 10, 19), color, cv2.FILLED)
        cv2.putText(strip, text, (x + 15, 19), _FONT, size, TEXT_COLOR, 1, cv2.LINE_AA)
        x += 28 + cv2.getTextSize(text, _FONT, size, 1)[0][0]
    return strip
