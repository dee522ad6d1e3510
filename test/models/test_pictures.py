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

"""Pictures to pixels: to the bit as the originals, and every pixel where its map says."""

import hashlib
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import idctn

from sqap_vla_ros.errors import ConfigError, InputError
from sqap_vla_ros.models.jpeg import double, encode_plane, join_blocks, pass_through_jpeg, to_rgb, to_ycc
from sqap_vla_ros.models.pictures import PRESETS, STRATEGIES, map_picture, prepare_picture
from sqap_vla_ros.models.tensorflow_resize import resize_lanczos3, zoom_middle
from sqap_vla_ros.models.vla import ImageSpec

MEANS, STDS = ((0.485, 0.456, 0.406), (0.5, 0.5, 0.5)), ((0.229, 0.224, 0.225), (0.5, 0.5, 0.5))
SPEC = ImageSpec(224, "resize-naive", MEANS, STDS)
# What TensorFlow 2.21 made of make_picture(height, width): through JPEG; resized to 224 px by Lanczos; the middle of
# that; and all three of the picture turned by 180 degrees. The first 16 digits of each SHA-256.
TENSORFLOW = [
    (256, 256, "167a814b8cd2b032", "fee689da02d80d60", "9ca82ec368db981e", "f95e977cb0eb9b53"),
    (97, 131, "f87503fc4ff44b7f", "6de4ade1ef9ab276", "df0ab95749cbf193", "e4722d030ce353c5"),
    (50, 33, "a1c0a8e5ed002569", "728565e907180622", "57e79cbaea076fdd", "23de7d61e7327815"),
    (480, 640, "645224d47ad1c1e7", "3ba17f99da8bb913", "3bf2060175b170bd", "f015f55805332998"),
    (17, 16, "cefe45f6476f2fa6", "5fc6c76188d767a3", "437cdc0c160aac1f", "b405ab3192e886f1"),
]


def make_picture(height, width):
    """Slopes and noise in fields, the same on every machine."""
    rows, columns = np.mgrid[:height, :width]
    channels = []
    for number in (1, 2, 3):
        slope = np.abs((number * 5 * rows + (4 - number) * 3 * columns) % 510 - 255)
        noise = ((rows * 7919 + columns * 104729 + number * 15485863) * (rows + 31 * columns + 17) >> 5) % 64
        channels.append(np.where((rows // 40 + columns // 56) % 2, slope, slope // 2 + noise))
    return np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)


def digest(picture):
    return hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest()[:16]


def to_bytes(pixels, tower=0):
    """Normalised pixels of a tower back to grey levels."""
    mean, std = (torch.tensor(values[tower])[:, None, None] for values in (MEANS, STDS))
    return ((pixels[0, 3 * tower:3 * tower + 3] * std + mean) * 255).round().permute(1, 2, 0).to(torch.uint8).numpy()


@pytest.mark.parametrize(("height", "width", "jpeg", "lanczos", "middle", "libero"), TENSORFLOW)
def test_pictures_are_tensorflows_to_the_bit(height, width, jpeg, lanczos, middle, libero):
    picture = make_picture(height, width)
    assert digest(pass_through_jpeg(picture)) == jpeg
    resized = resize_lanczos3(picture, 224, 224)
    assert digest(resized) == lanczos
    assert digest(zoom_middle(resized, 0.9, 224)) == middle
    assert digest(to_bytes(prepare_picture(picture, SPEC, "libero")[0])) == libero
    assert digest(to_bytes(prepare_picture(picture, SPEC, "libero")[0], tower=1)) == libero


@pytest.mark.parametrize("quality", [10, 50, 75, 95, 100])
def test_jpeg_is_pils_where_the_inverse_transform_is_exact(quality):
    picture, file = make_picture(120, 200), io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    planes = []
    for channel, plane in enumerate(to_ycc(picture)):
        coefficients, divisors = encode_plane(plane, quality, is_color=channel > 0)
        exact = idctn(coefficients * divisors, axes=(2, 3), norm="ortho") + 128
        plane = join_blocks(np.rint(exact).clip(0, 255).astype(np.int64))
        planes.append(double(plane, 120, 200) if channel else plane[:120, :200])
    # PIL's inverse may round the other way now and then.
    off = np.abs(to_rgb(*planes).astype(int) - np.asarray(Image.open(file)))
    assert off.max() <= 3 and (off > 0).mean() < 0.05


def test_lanczos_is_a_weighted_mean_of_the_right_pixels():
    rows = np.array([0, 0, 0, 255, 0, 0, 0, 0], np.uint8)
    picture = np.repeat(np.repeat(rows[:, None, None], 8, axis=1), 3, axis=2)
    small = resize_lanczos3(picture, 4, 8)[:, 0, 0]

    def kernel(x):
        return np.sinc(x) * np.sinc(x / 3) * (np.abs(x) < 3)

    weights = kernel((np.arange(8)[None] + 0.5 - 2 * (np.arange(4)[:, None] + 0.5)) / 2)
    expected = 255 * weights[:, 3] / weights.sum(axis=1)
    np.testing.assert_array_equal(small, np.rint(expected.clip(0, 255)).astype(np.uint8))


def test_normalisation_is_per_tower():
    picture = make_picture(224, 224)
    pixels, image_map = prepare_picture(picture, SPEC)
    assert pixels.shape == (1, 6, 224, 224) and pixels.dtype == torch.float32
    expected = [(picture[20, 30, channel] / 255.0 - MEANS[tower][channel]) / STDS[tower][channel]
                for tower in (0, 1) for channel in range(3)]
    np.testing.assert_allclose(pixels[0, :, 20, 30], expected, atol=1e-6)
    np.testing.assert_array_equal(image_map.matrix, [[1, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize(("strategy", "fills"), [("letterbox", [(123, 116, 103), (127,) * 3]),
                                                 ("letterbox-last", [(127,) * 3] * 2)])
def test_margins_have_the_mean_of_their_tower_or_of_the_last(strategy, fills):
    pixels, _ = prepare_picture(make_picture(100, 200), ImageSpec(224, strategy, MEANS, STDS))
    for tower, fill in enumerate(fills):
        assert to_bytes(pixels, tower)[5, 100].tolist() == list(fill)
        assert to_bytes(pixels, tower)[219, 10].tolist() == list(fill)
        assert to_bytes(pixels, tower)[112, 100].tolist() != list(fill)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (301, 224), (224, 224), (99, 100)])
def test_squares_are_what_pil_makes(height, width):
    picture = make_picture(height, width)
    whole = Image.fromarray(picture)
    squashed = whole.resize((224, 224), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(to_bytes(prepare_picture(picture, SPEC)[0]), squashed)
    short = min(height, width)
    across, down = int(224 * width / short), int(224 * height / short)
    left, top = round((across - 224) / 2), round((down - 224) / 2)
    middle = whole.resize((across, down), Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224))
    pixels, _ = prepare_picture(picture, ImageSpec(224, "resize-crop", MEANS, STDS))
    np.testing.assert_array_equal(to_bytes(pixels), middle)


def test_cogacts_deployment_is_what_pil_makes():
    picture = make_picture(300, 421)
    middle = Image.fromarray(picture).crop((60, 0, 360, 300)).resize((224, 224), Image.Resampling.LANCZOS)
    expected = middle.crop((6, 6, 218, 218)).resize((224, 224), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(to_bytes(prepare_picture(picture, SPEC, "cogact-deploy")[0]), expected)
    with pytest.raises(InputError, match=r"at least as wide as high .* 300 x 421 px"):
        prepare_picture(make_picture(421, 300), SPEC, "cogact-deploy")


def test_what_has_the_size_already_is_not_shrunk_for_oft():
    picture = make_picture(224, 224)
    np.testing.assert_array_equal(to_bytes(prepare_picture(picture, SPEC, "oft")[0]), zoom_middle(picture, 0.9, 224))
    larger = make_picture(256, 256)
    shrunk = zoom_middle(resize_lanczos3(pass_through_jpeg(larger), 224, 224), 0.9, 224)
    np.testing.assert_array_equal(to_bytes(prepare_picture(larger, SPEC, "oft")[0]), shrunk)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("height", "width"), [(240, 320), (301, 400)])
def test_every_pixel_goes_where_the_map_says(preset, strategy, height, width):
    spec = ImageSpec(224, strategy, MEANS, STDS)
    dark = np.full((height, width, 3), 40, np.uint8)
    lit = dark.copy()
    lit[90:131, 140:181] = 220
    pixels, image_map = prepare_picture(lit, spec, preset)
    change = (pixels - prepare_picture(dark, spec, preset)[0])[0, 3].clip(min=0.2) - 0.2
    rows, columns = np.mgrid[:224, :224]
    weight = change.numpy() / change.sum().item()
    center = (columns * weight).sum(), (rows * weight).sum()
    np.testing.assert_allclose(image_map.apply(np.array([160.0, 110.0])), center, atol=0.15)
    np.testing.assert_array_equal(image_map.matrix, map_picture(width, height, spec, preset).matrix)


@pytest.mark.parametrize(("rgb", "came"), [
    (np.zeros((4, 4), np.uint8), r"uint8 \(4, 4\)"), (np.zeros((4, 4, 3)), r"float64 \(4, 4, 3\)"),
    (np.zeros((0, 4, 3), np.uint8), r"uint8 \(0, 4, 3\)"), ("a.png", "str"),
    (np.zeros((4, 4, 4), np.uint8), r"uint8 \(4, 4, 4\)")])
def test_what_is_no_picture_is_refused(rgb, came):
    with pytest.raises(InputError, match=rf"uint8 array of shape \(height, width, 3\), got .*{came}"):
        prepare_picture(rgb, SPEC)


def test_unknown_ways_are_refused():
    with pytest.raises(ConfigError, match=r"preset must be one of none, libero, .* got 'droid'"):
        prepare_picture(make_picture(20, 20), SPEC, "droid")
    with pytest.raises(ConfigError, match=r"strategy of pictures must be one of resize-naive, .* got 'fold'"):
        prepare_picture(make_picture(20, 20), ImageSpec(224, "fold", MEANS, STDS))
