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

"""The demo as a film: what each method saw and kept, side by side on the same scene."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

PICTURES_PER_S = 6
_HOLD_PICTURES = 6
_JPEG_QUALITY = 92
_BAR_PX, _CAPTION_PX, _GAP_PX = 44, 34, 8
_BACKGROUND, _TEXT, _GREEN, _RED = (18, 20, 24), (236, 238, 240), (96, 214, 128), (246, 110, 96)


@dataclass(frozen=True)
class Panel:
    """One method's view of an episode.

    :param method: its name
    :param outcome: how it ended, in words
    :param success: whether the task was done
    :param pictures: JPEGs of the overlay
    """

    method: str
    outcome: str
    success: bool
    pictures: tuple[bytes, ...]


@dataclass(frozen=True)
class Clip:
    """One scene.

    :param instruction: what was asked for
    :param panels: one per method
    """

    instruction: str
    panels: tuple[Panel, ...]


def compress_picture(picture: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB to JPEG."""
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return data.tobytes()


def expand_picture(data: bytes) -> np.ndarray:
    """JPEG to (H, W, 3) uint8 RGB."""
    return np.ascontiguousarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])


def write_video(path: Path, clips: Sequence[Clip]) -> int:
    """Write an H.264 file.

    :return: number of pictures in it; without any there is no file
    """
    writer, count = None, 0
    try:
        for picture in compose_pictures(clips):
            if writer is None:
                height, width = picture.shape[:2]
                writer = imageio_ffmpeg.write_frames(
                    str(path), (width, height), fps=PICTURES_PER_S, codec="libx264", macro_block_size=2,
                    quality=None, output_params=["-crf", "20", "-movflags", "+faststart"])
                writer.send(None)
            writer.send(picture)
            count += 1
    finally:
        if writer is not None:
            writer.close()
    return count


def compose_pictures(clips: Sequence[Clip]) -> Iterator[np.ndarray]:
    """All pictures of the film, of one size: (H, W, 3) uint8 RGB, H and W even."""
    first = next((panel.pictures[0] for clip in clips for panel in clip.panels if panel.pictures), None)
    if first is None:
        return
    size = expand_picture(first).shape[:2]
    columns = max(len(clip.panels) for clip in clips)
    for clip in clips:
        length = max((len(panel.pictures) for panel in clip.panels), default=0)
        for index in range(length + _HOLD_PICTURES if length else 0):
            yield _compose(clip, index, size, columns)


def _compose(clip: Clip, index: int, size: tuple[int, int], columns: int) -> np.ndarray:
    height, width = size
    full = (columns * width + (columns + 1) * _GAP_PX, height + _BAR_PX + _CAPTION_PX + _GAP_PX)
    canvas = Image.new("RGB", (full[0] + full[0] % 2, full[1] + full[1] % 2), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((2 * _GAP_PX, _BAR_PX // 2), f"“{clip.instruction}”", fill=_TEXT, font=_font(24), anchor="lm")
    for column, panel in enumerate(clip.panels):
        x = _GAP_PX + column * (width + _GAP_PX)
        if panel.pictures:
            picture = expand_picture(panel.pictures[min(index, len(panel.pictures) - 1)])
            if picture.shape[:2] != size:
                picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
            canvas.paste(Image.fromarray(picture), (x, _BAR_PX))
        ended = index >= len(panel.pictures) - 1
        words, color = (panel.outcome, _GREEN if panel.success else _RED) if ended else ("running", _TEXT)
        below = _BAR_PX + height + _CAPTION_PX // 2
        draw.text((x + _GAP_PX, below), panel.method, fill=_TEXT, font=_font(18), anchor="lm")
        draw.text((x + width - _GAP_PX, below), words, fill=color, font=_font(18), anchor="rm")
    return np.asarray(canvas)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib carries a font; Pillow carries one of a single size only.
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
