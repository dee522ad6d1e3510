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

"""The vision transformer against torch's own encoder, and which pixels a token sees."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sqap_vla_ros.models.vit import VisionTransformer, VitBlock, VitConfig

CONFIG = VitConfig(image_size=32, patch_size=8, patch_stride=4, hidden_size=32, num_hidden_layers=2,
                   num_attention_heads=4)


def test_a_block_equals_torchs_encoder_layer():
    torch.manual_seed(0)
    block = VitBlock(CONFIG).eval()
    reference = nn.TransformerEncoderLayer(32, 4, 128, dropout=0.0, activation="gelu", layer_norm_eps=1e-6,
                                           batch_first=True, norm_first=True).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.2)
        names = {"self_attn.in_proj_": "qkv.", "self_attn.out_proj.": "proj.", "linear1.": "fc1.", "linear2.": "fc2.",
                 "norm1.": "norm1.", "norm2.": "norm2."}
        reference.load_state_dict({theirs + kind: block.state_dict()[ours + kind] for theirs, ours in names.items()
                                   for kind in ("weight", "bias")})
        x = torch.randn(2, 20, 32)
        torch.testing.assert_close(block(x), reference(x), atol=1e-5, rtol=1e-5)


STEMMED = replace(CONFIG, stem_channels=4)


@pytest.mark.parametrize(("config", "field"), [
    (CONFIG, (-2, 8)),                       # token i covers pixels 4 i to 4 i + 3 and sees two more on either side
    (STEMMED, (-6, 15)),                     # 4 features from -1 on, every second pixel, 4 px more on either side
    (replace(STEMMED, patch_stride=8), (-4, 15)), (replace(STEMMED, patch_size=14, patch_stride=8), (-6, 21))])
def test_tokens_run_row_by_row_and_see_a_field_around_their_cell(config, field):
    torch.manual_seed(0)
    vision, side, stride = VisionTransformer(config).double(), config.grid_size, config.patch_stride
    assert config.field == field
    vision.blocks, vision.norm = nn.ModuleList(), nn.Identity()
    base = vision(torch.zeros(1, 3, 32, 32).double())[0]
    assert len(base) == side * side
    for row, column in ((0, 0), (2, 5), (7, 7), (31, 31), (16, 3), (11, 20)):
        picture = torch.zeros(1, 3, 32, 32).double()
        picture[0, :, row, column] = 1.0
        changed = (vision(picture)[0] - base).abs().amax(dim=1) > 0
        seen = [[0 <= place - field[0] - stride * token < field[1] for token in range(side)] for place in (row, column)]
        assert changed.view(side, side).tolist() == [[down and across for across in seen[1]] for down in seen[0]]


def test_a_stem_needs_even_sizes():
    with pytest.raises(ValueError, match=r"patch_size 7 .* must be even"):
        replace(STEMMED, patch_size=7)


@pytest.mark.parametrize("config", [CONFIG, STEMMED])
def test_output_shape_and_positions(config):
    torch.manual_seed(0)
    vision = VisionTransformer(config).eval()
    with torch.no_grad():
        out = vision(torch.zeros(1, 3, 32, 32))
    assert out.shape == (1, 64, 32)
    # A blank picture is told apart by position alone.
    assert torch.cdist(out[0], out[0]).fill_diagonal_(9.0).min() > 1e-3
