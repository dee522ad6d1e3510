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

"""Vision towers against torch's own encoder, and the order of their tokens."""

import torch
from torch import nn

from sqap_vla_ros.models.towers import FusedVision, TowerBlock, TowerConfig, VisionTower

DINO = TowerConfig(28, 7, 16, 24, 2, 2, 3, True)
SIGLIP = TowerConfig(30, 7, 24, 40, 1, 3, None, False)


def randomize(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.requires_grad_(False).eval()


def test_a_block_is_torchs_encoder_layer_with_gains():
    torch.manual_seed(0)
    for config in (DINO, SIGLIP):
        block = randomize(TowerBlock(config))
        width = config.hidden_size
        reference = nn.TransformerEncoderLayer(width, config.num_attention_heads, config.mlp_size, dropout=0.0,
                                               activation="gelu", layer_norm_eps=1e-6, batch_first=True,
                                               norm_first=True).eval()
        gains = [block.ls1.gamma, block.ls2.gamma] if config.has_layer_scale else [torch.ones(width)] * 2
        state = block.state_dict()
        theirs = {}
        for kind in ("weight", "bias"):
            # A gain per channel behind a linear is the same as one on its rows.
            proj, fc2 = (gain[:, None] * state[name + "weight"] if kind == "weight" else gain * state[name + "bias"]
                         for gain, name in zip(gains, ("attn.proj.", "mlp.fc2."), strict=True))
            theirs |= {f"self_attn.in_proj_{kind}": state[f"attn.qkv.{kind}"], f"self_attn.out_proj.{kind}": proj,
                       f"linear1.{kind}": state[f"mlp.fc1.{kind}"], f"linear2.{kind}": fc2,
                       f"norm1.{kind}": state[f"norm1.{kind}"], f"norm2.{kind}": state[f"norm2.{kind}"]}
        reference.load_state_dict(theirs)
        x = torch.randn(2, 9, width)
        torch.testing.assert_close(block(x), reference(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(block.add_mlp(block.add_attention(x)), block(x), atol=0, rtol=0)


def test_positions_are_for_patches_and_the_class_token_comes_first():
    torch.manual_seed(0)
    tower = randomize(VisionTower(DINO))
    pixels = torch.randn(2, 3, 28, 28)
    x = tower.embed(pixels)
    assert x.shape == (2, 1 + 3 + 16, 16)
    torch.testing.assert_close(x[1, :4], torch.cat((tower.cls_token, tower.reg_token), dim=1)[0], atol=0, rtol=0)
    kernel = tower.patch_embed.proj
    for index, (row, column) in {0: (0, 0), 1: (0, 7), 6: (7, 14), 15: (21, 21)}.items():
        field = pixels[0, :, row:row + 7, column:column + 7]
        expected = (kernel.weight * field).sum((1, 2, 3)) + kernel.bias + tower.pos_embed[0, index]
        torch.testing.assert_close(x[0, 4 + index], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tower.take_patches(x), x[:, 4:], atol=0, rtol=0)
    torch.testing.assert_close(tower(pixels), tower.blocks[1](tower.blocks[0](x))[:, 4:], atol=0, rtol=0)


def test_towers_see_their_own_channels_and_lie_side_by_side():
    torch.manual_seed(0)
    vision = randomize(FusedVision({"dino": DINO, "siglip": TowerConfig(28, 7, 24, 40, 1, 3, None, False)}))
    pixels = torch.randn(1, 6, 28, 28)
    features = vision(pixels)
    assert features.shape == (1, 16, 40)
    torch.testing.assert_close(features[..., :16], vision.dino(pixels[:, :3]), atol=0, rtol=0)
    torch.testing.assert_close(features[..., 16:], vision.siglip(pixels[:, 3:]), atol=0, rtol=0)


def test_what_is_left_over_at_the_border_is_not_seen():
    torch.manual_seed(0)
    tower = randomize(VisionTower(SIGLIP))
    assert SIGLIP.grid_size == 4 and tower.pos_embed.shape == (1, 16, 24)
    pixels = torch.randn(1, 3, 30, 30)
    changed = pixels.clone()
    changed[..., 28:] = 9.0
    torch.testing.assert_close(tower(changed), tower(pixels), atol=0, rtol=0)
