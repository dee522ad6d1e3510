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

"""Two ways to resize a picture as TensorFlow does it, to the bit, in the 32-bit arithmetic it does it in.

OpenVLA's training data was resized by TensorFlow, and the pictures it is tried on are too. PIL's filter of the same
name rounds to whole grey levels between rows and columns, and so differs.
"""

from __future__ import annotations

import numpy as np

_PI = np.float32(3.14159265359)
_RADIUS = np.float32(3.0)
# Sine and cosine up to an eighth of a turn as polynomials of the square, as glibc's sinf (2.28 and later) has them.
_SINE = (1.0, -0.16666654943701084, 0.008332178146138854, -0.00019517298981385725)
_COSINE = (1.0, -0.49999999725108224, 0.041666623324344516, -0.001388676379437604, 2.4390450703564542e-05)


def resize_lanczos3(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """``tf.image.resize(rgb, (height, width), "lanczos3", antialias=True)``, rounded and clipped.

    :param rgb: (H, W, 3) uint8
    :param height: of the result, px
    :param width: of the result, px
    :return: (height, width, 3) uint8
    """
    if rgb.shape[:2] == (height, width):
        return rgb
    picture = _resample(rgb.astype(np.float32), height)
    picture = _resample(picture.transpose(1, 0, 2), width).transpose(1, 0, 2)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def zoom_middle(rgb: np.ndarray, area_ratio: float, size: int) -> np.ndarray:
    """The middle of a picture enlarged to a square by ``tf.image.crop_and_resize``.

    :param rgb: (H, W, 3) uint8
    :param area_ratio: share of the area that the middle has, above 0 to 1
    :param size: side of the result, px
    :return: (size, size, 3) uint8
    """
    one = np.float32(1.0)
    share = np.sqrt(np.float32(area_ratio))
    begin = (one - share) / np.float32(2.0)
    picture = rgb.astype(np.float32) * np.float32(1.0 / 255.0)
    above, below, down = _neighbours(rgb.shape[0], begin, begin + share, size)
    left, right, across = _neighbours(rgb.shape[1], begin, begin + share, size)
    across = across[None, :, None]
    top, bottom = picture[above], picture[below]
    top = top[:, left] + (top[:, right] - top[:, left]) * across
    bottom = bottom[:, left] + (bottom[:, right] - bottom[:, left]) * across
    picture = top + (bottom - top) * down[:, None, None]
    # Half a level is added before cutting, so that nearest is meant.
    return (np.clip(picture, np.float32(0.0), one) * np.float32(255.5)).astype(np.uint8)


def _resample(picture: np.ndarray, size: int) -> np.ndarray:
    # Along the first axis; added up tap by tap, in TensorFlow's order.
    starts, weights = _lanczos_taps(picture.shape[0], size)
    out = np.zeros((size, *picture.shape[1:]), np.float32)
    for tap in range(weights.shape[1]):
        rows = np.minimum(starts + tap, picture.shape[0] - 1)
        out += weights[:, tap, None, None] * picture[rows]
    return out


def _lanczos_taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    # For each new pixel the first old one it is made of, (new,), and weights of that and the following, (new, taps).
    half = np.float32(0.5)
    inverse = np.float32(1.0 / float(np.float32(new) / np.float32(old)))
    stretch = max(inverse, np.float32(1.0))
    taps = min(2 * int(np.ceil(_RADIUS * stretch)) + 1, old)
    centers = (np.arange(new, dtype=np.float32) + half) * inverse
    starts = np.clip(np.ceil(centers - _RADIUS * stretch - half), 0, old - 1).astype(np.int64)
    stops = np.clip(np.floor(centers + _RADIUS * stretch - half), 0, old - 1).astype(np.int64) + 1
    places = starts[:, None] + np.arange(taps)
    weights = _lanczos3((places.astype(np.float32) + half - centers[:, None]) * (np.float32(1.0) / stretch))
    weights = np.where(places < stops[:, None], weights, np.float32(0.0))
    total = np.zeros(new, np.float32)
    for tap in range(taps):
        total += weights[:, tap]
    return starts, weights * (np.float32(1.0) / total)[:, None]


def _lanczos3(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    safe = np.where(x <= np.float32(1e-3), np.float32(1.0), x)
    value = _RADIUS * _sine(_PI * safe) * _sine(_PI * safe / _RADIUS) / (_PI * _PI * safe * safe)
    value = np.where(x <= np.float32(1e-3), np.float32(1.0), value)
    return np.where(x > _RADIUS, np.float32(0.0), value)


def _sine(x: np.ndarray) -> np.ndarray:
    # NumPy's own in 32 bits, and the nearest number, both differ from the C library's in some thousandth of all cases,
    # which moves a pixel in some hundred thousand by a grey level.
    wide = x.astype(np.float64)
    turns = np.rint(wide * (2.0 / np.pi))
    rest = wide - turns * (np.pi / 2.0)
    square = rest * rest
    sine = rest * _polynomial(square, _SINE)
    cosine = _polynomial(square, _COSINE)
    value = np.where(turns % 2 == 0, sine, cosine)
    return np.where(turns % 4 >= 2, -value, value).astype(np.float32)


def _polynomial(x: np.ndarray, coefficients: tuple[float, ...]) -> np.ndarray:
    value = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value


def _neighbours(old: int, begin: np.float32, end: np.float32, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Old pixels on either side of each new one, and how far it is from the first to the second.
    last = np.float32(old - 1)
    step = (end - begin) * last / np.float32(new - 1)
    places = begin * last + np.arange(new, dtype=np.float32) * step
    first = np.floor(places)
    return first.astype(np.int64), np.ceil(places).astype(np.int64), places - first
