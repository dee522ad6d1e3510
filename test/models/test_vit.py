"""The vision transformer against torch's own encoder, and which pixels a token sees."""

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


def test_tokens_run_row_by_row_and_see_a_field_around_their_cell():
    torch.manual_seed(0)
    vision = VisionTransformer(CONFIG)
    assert (CONFIG.grid_size, CONFIG.padding) == (8, 2)
    base = vision.patch_embed(torch.zeros(1, 3, 32, 32)).flatten(2)[0]
    for row, column in ((0, 0), (2, 5), (7, 7), (31, 31), (16, 3)):
        picture = torch.zeros(1, 3, 32, 32)
        picture[0, :, row, column] = 1.0
        changed = (vision.patch_embed(picture).flatten(2)[0] - base).abs().amax(dim=0) > 0
        # Token i covers pixels 4 i to 4 i + 3 and sees two more on either side.
        expected = {r * 8 + c for r in range(8) for c in range(8)
                    if 4 * r - 2 <= row < 4 * r + 6 and 4 * c - 2 <= column < 4 * c + 6}
        assert set(changed.nonzero().flatten().tolist()) == expected


def test_output_shape_and_positions():
    torch.manual_seed(0)
    vision = VisionTransformer(CONFIG).eval()
    with torch.no_grad():
        out = vision(torch.zeros(1, 3, 32, 32))
    assert out.shape == (1, 64, 32)
    # A blank picture is told apart by position alone.
    assert torch.cdist(out[0], out[0]).fill_diagonal_(9.0).min() > 1e-3
