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

"""What a picture looks like after JPEG, to the bit as TensorFlow writes and reads it.

OpenVLA's data passed through JPEG, and so do the pictures it is tried on. TensorFlow reads it back with libjpeg's quick
inverse transform, which no Python library does by default; the difference is a grey level or two almost everywhere. As
Huffman coding loses nothing, only the arithmetic is done here: libjpeg's, in whole numbers, with colour at half size.
"""

from __future__ import annotations

import numpy as np

# Annex K of the standard (ITU-T T.81): divisors at quality 50 of brightness and of colour.
_LUMINANCE = np.array([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99], np.int32).reshape(8, 8)
_CHROMINANCE = np.full((8, 8), 99, np.int32)
_CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
# Factors that libjpeg's slow forward transform is made of, in 1/8192.
_C = {name: round(value * 8192) for name, value in {
    "a": 0.298631336, "b": 0.390180644, "c": 0.541196100, "d": 0.765366865, "e": 0.899976223, "f": 1.175875602,
    "g": 1.501321110, "h": 1.847759065, "i": 1.961570560, "j": 2.053119869, "k": 2.562915447, "l": 3.072711026}.items()}


def pass_through_jpeg(rgb: np.ndarray, quality: int = 95) -> np.ndarray:
    """Encode and decode a picture as ``tf.io.decode_image(tf.image.encode_jpeg(rgb))`` does.

    :param rgb: (H, W, 3) uint8
    :param quality: 1 to 100
    :return: (H, W, 3) uint8
    """
    height, width = rgb.shape[:2]
    planes = []
    for channel, plane in enumerate(to_ycc(rgb)):
        coefficients, divisors = encode_plane(plane, quality, is_color=channel > 0)
        plane = inverse_fast(coefficients, divisors)
        planes.append(plane[:height, :width] if channel == 0 else double(plane, height, width))
    return to_rgb(*planes)


def to_ycc(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 to brightness and the two colours, (H, W) int32 each, 0 to 255."""
    red, green, blue = np.moveaxis(rgb.astype(np.int32), -1, 0)
    middle = (128 << 16) + 32767
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16,
            (-11059 * red - 21709 * green + 32768 * blue + middle) >> 16,
            (32768 * red - 27439 * green - 5329 * blue + middle) >> 16)


def encode_plane(plane: np.ndarray, quality: int, *, is_color: bool) -> tuple[np.ndarray, np.ndarray]:
    """Transform and round one channel.

    :param plane: (H, W) int32, 0 to 255, in full size
    :param quality: 1 to 100
    :param is_color: halve it first
    :return: (rows, columns, 8, 8) rounded coefficients, and (8, 8) what they are multiplied by when read
    """
    if is_color:
        height, width = plane.shape
        plane = np.pad(plane, ((0, height % 2), (0, -width % 16)), mode="edge")
        sums = plane[0::2, 0::2] + plane[0::2, 1::2] + plane[1::2, 0::2] + plane[1::2, 1::2]
        # Halves are rounded down and up in turn.
        plane = (sums + np.where(np.arange(sums.shape[1]) % 2, 2, 1).astype(np.int32)) >> 2
    # What fills up the last blocks repeats rows that are halved already, but columns that are not.
    plane = np.pad(plane, ((0, -plane.shape[0] % 8), (0, -plane.shape[1] % 8)), mode="edge")
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    divisors = np.clip(((_CHROMINANCE if is_color else _LUMINANCE) * scale + 50) // 100, 1, 255)
    rows, columns = plane.shape[0] // 8, plane.shape[1] // 8
    blocks = plane.reshape(rows, 8, columns, 8).transpose(0, 2, 1, 3) - 128
    # The transform's results are eight times too large.
    coefficients = _forward(_forward(blocks, 3, is_first=True), 2, is_first=False)
    rounded = (np.abs(coefficients) + 4 * divisors) // (8 * divisors)
    return np.sign(coefficients) * rounded, divisors


def inverse_fast(coefficients: np.ndarray, divisors: np.ndarray) -> np.ndarray:
    """Blocks to pixels by the quick transform of Arai, Agui and Nakajima, as libjpeg has it with 8 bits.

    :param coefficients: (rows, columns, 8, 8)
    :param divisors: (8, 8)
    :return: (8 rows, 8 columns) int32, 0 to 255
    """
    share = np.array([1.0, *(np.cos(np.arange(1, 8) * np.pi / 16) * np.sqrt(2.0))])
    scales = np.rint(np.outer(share, share) * 16384).astype(np.int32)
    values = coefficients * ((divisors * scales + 2048) >> 12)
    pixels = (_inverse(_inverse(values, 2), 3) >> 5) + 128
    return join_blocks(np.clip(pixels, 0, 255))


def join_blocks(blocks: np.ndarray) -> np.ndarray:
    """(rows, columns, 8, 8) to (8 rows, 8 columns)."""
    rows, columns = blocks.shape[:2]
    return blocks.transpose(0, 2, 1, 3).reshape(8 * rows, 8 * columns)


def double(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """A halved channel in full size, each pixel three parts of the nearest and one of the next in either direction.

    :param plane: (H', W') at least half the size, rounded up
    :param height: H
    :param width: W
    :return: (H, W)
    """
    plane = plane[:(height + 1) // 2, :(width + 1) // 2]
    above, below = np.vstack((plane[:1], plane[:-1])), np.vstack((plane[1:], plane[-1:]))
    tall = np.stack((3 * plane + above, 3 * plane + below), axis=1).reshape(-1, plane.shape[1])
    left = np.hstack((tall[:, :1], tall[:, :-1]))
    right = np.hstack((tall[:, 1:], tall[:, -1:]))
    wide = np.stack(((3 * tall + left + 8) >> 4, (3 * tall + right + 7) >> 4), axis=2).reshape(len(tall), -1)
    return wide[:height, :width]


def to_rgb(brightness: np.ndarray, blue: np.ndarray, red: np.ndarray) -> np.ndarray:
    """Three (H, W) channels, 0 to 255, to (H, W, 3) uint8."""
    blue, red = blue - 128, red - 128
    picture = np.stack((brightness + ((91881 * red + 32768) >> 16),
                        brightness + ((-22554 * blue - 46802 * red + 32768) >> 16),
                        brightness + ((116130 * blue + 32768) >> 16)), axis=-1)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _forward(x: np.ndarray, axis: int, *, is_first: bool) -> np.ndarray:
    # Loeffler, Ligtenberg and Moschytz along one axis of 8, with 2 more bits in between.
    x = np.moveaxis(x, axis, 0)
    sums, differences = x[:4] + x[7:3:-1], x[:4] - x[7:3:-1]
    near, far = sums[:2] + sums[3:1:-1], sums[:2] - sums[3:1:-1]
    out = np.empty_like(x)
    for index, value in ((0, near[0] + near[1]), (4, near[0] - near[1])):
        out[index] = value << 2 if is_first else _round_off(value, 2)
    bits = 11 if is_first else 15
    shared = (far[1] + far[0]) * _C["c"]
    out[2] = _round_off(shared + far[0] * _C["d"], bits)
    out[6] = _round_off(shared - far[1] * _C["h"], bits)
    d3, d2, d1, d0 = differences[::-1]
    z5 = (d3 + d1 + d2 + d0) * _C["f"]
    z1, z2 = -(d3 + d0) * _C["e"], -(d2 + d1) * _C["k"]
    z3, z4 = z5 - (d3 + d1) * _C["i"], z5 - (d2 + d0) * _C["b"]
    out[7] = _round_off(d3 * _C["a"] + z1 + z3, bits)
    out[5] = _round_off(d2 * _C["j"] + z2 + z4, bits)
    out[3] = _round_off(d1 * _C["l"] + z2 + z3, bits)
    out[1] = _round_off(d0 * _C["g"] + z1 + z4, bits)
    return np.moveaxis(out, 0, axis)


def _inverse(x: np.ndarray, axis: int) -> np.ndarray:
    # Products lose their 8 bits by cutting, not by rounding.
    x = np.moveaxis(x, axis, 0)
    e0, e1, e2, e3 = x[0], x[2], x[4], x[6]
    t10, t11, t13 = e0 + e2, e0 - e2, e1 + e3
    t12 = (((e1 - e3) * 362) >> 8) - t13
    even = np.stack((t10 + t13, t11 + t12, t11 - t12, t10 - t13))
    z13, z10, z11, z12 = x[5] + x[3], x[5] - x[3], x[1] + x[7], x[1] - x[7]
    z5 = ((z10 + z12) * 473) >> 8
    o0 = z11 + z13
    o1 = ((z10 * -669) >> 8) + z5 - o0
    o2 = (((z11 - z13) * 362) >> 8) - o1
    o3 = ((z12 * 277) >> 8) - z5 + o2
    odd = np.stack((o0, o1, o2, -o3))
    return np.moveaxis(np.concatenate((even + odd, (even - odd)[::-1])), 0, axis)


def _round_off(value: np.ndarray, bits: int) -> np.ndarray:
    return (value + (1 << (bits - 1))) >> bits
