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

"""Names of tensors in the originals' layouts."""

import pytest

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.models.key_maps import HF, NATIVE, map_keys, translate_name

LLAMA = ["model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


@pytest.mark.parametrize(("name", "layout", "ours"), [
    ("vision_backbone.featurizer.blocks.3.ls1.scale_factor", HF, "vision.dino.blocks.3.ls1.gamma"),
    ("vision_backbone.dino_featurizer.blocks.3.ls1.gamma", NATIVE, "vision.dino.blocks.3.ls1.gamma"),
    ("vision_backbone.fused_featurizer.pos_embed", HF, "vision.siglip.pos_embed"),
    ("vision_backbone.siglip_featurizer.pos_embed", NATIVE, "vision.siglip.pos_embed"),
    ("projector.fc2.bias", HF, "projector.fc2.bias"), ("projector.projector.2.bias", NATIVE, "projector.fc2.bias"),
    ("projector.projector.4.weight", NATIVE, "projector.fc3.weight"),
    ("language_model.model.embed_tokens.weight", HF, "embed_tokens.weight"),
    ("llm_backbone.llm.model.embed_tokens.weight", NATIVE, "embed_tokens.weight"),
    ("language_model.model.layers.7.self_attn.q_proj.weight", HF, "decoder.layers.7.self_attn.q_proj.weight"),
    ("language_model.model.norm.weight", HF, "decoder.norm.weight"),
    ("llm_backbone.llm.lm_head.weight", NATIVE, "lm_head.weight"), ("action_model.net.x_embedder.bias", NATIVE, None),
])
def test_names(name, layout, ours):
    assert translate_name(name, layout) == ours


def test_what_is_not_read_is_told_apart_from_what_is_not_known():
    vision = [f"vision_backbone.featurizer.{name}" for name in
              ("cls_token", "blocks.0.norm1.bias", "blocks.1.norm1.bias", "blocks.2.norm1.bias", "norm.weight")]
    keys = map_keys([*vision, "vision_backbone.fused_featurizer.attn_pool.q.bias", "odd.one",
                     "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
                     "language_model.model.rotary_emb.inv_freq",
                     *(f"language_model.{name}" for name in LLAMA)])
    assert keys.layout == HF
    assert keys.unused == (*vision[3:], "vision_backbone.fused_featurizer.attn_pool.q.bias",
                           "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
                           "language_model.model.rotary_emb.inv_freq")
    assert keys.others == ("odd.one",)
    assert keys.stored == {
        "vision.dino.cls_token": vision[0], "vision.dino.blocks.0.norm1.bias": vision[1],
        "vision.dino.blocks.1.norm1.bias": vision[2],
        "decoder.layers.0.mlp.up_proj.weight": f"language_model.{LLAMA[0]}",
        "embed_tokens.weight": f"language_model.{LLAMA[1]}", "decoder.norm.weight": f"language_model.{LLAMA[2]}",
        "lm_head.weight": f"language_model.{LLAMA[3]}"}


def test_a_single_tower_without_a_class_token_is_siglip():
    keys = map_keys(["vision_backbone.featurizer.pos_embed", "llm_backbone.llm.model.norm.weight"])
    assert keys.layout == NATIVE
    assert keys.stored["vision.siglip.pos_embed"] == "vision_backbone.featurizer.pos_embed"


def test_other_models_are_refused():
    with pytest.raises(CheckpointError, match=r"the first is 'model\.vlm\.weight'.*not of OpenVLA"):
        map_keys(["model.vlm.weight"])
    double = ["vision_backbone.siglip_featurizer.pos_embed", "vision_backbone.featurizer.pos_embed",
              "llm_backbone.llm.model.norm.weight"]
    with pytest.raises(CheckpointError, match=r"siglip_featurizer\.pos_embed' and .*\.featurizer.* same part"):
        map_keys(double)
