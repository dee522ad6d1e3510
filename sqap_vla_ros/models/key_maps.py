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

"""What a Prismatic model's tensors are called: in either of the originals' layouts, and here.

Here they have the names of :class:`~sqap_vla_ros.models.prismatic.PrismaticVlm`, whatever the layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sqap_vla_ros.errors import CheckpointError

HF, NATIVE = "hf", "native"
# Beginnings of names, in the checkpoint and here. What is called "featurizer" is the first tower, or the only one.
_PREFIXES = {
    HF: {
        "vision_backbone.featurizer.": "vision.{first}.",
        "vision_backbone.fused_featurizer.": "vision.siglip.",
        "projector.": "projector.",
        "language_model.model.embed_tokens.": "embed_tokens.",
        "language_model.model.": "decoder.",
        "language_model.lm_head.": "lm_head.",
    },
    NATIVE: {
        "vision_backbone.featurizer.": "vision.{first}.",
        "vision_backbone.dino_featurizer.": "vision.dino.",
        "vision_backbone.siglip_featurizer.": "vision.siglip.",
        "projector.projector.0.": "projector.fc1.",
        "projector.projector.2.": "projector.fc2.",
        "projector.projector.4.": "projector.fc3.",
        "llm_backbone.llm.model.embed_tokens.": "embed_tokens.",
        "llm_backbone.llm.model.": "decoder.",
        "llm_backbone.llm.lm_head.": "lm_head.",
    },
}
# transformers renames what has "gamma" in its name, so OpenVLA's folders call it otherwise.
_RENAMED = (".scale_factor", ".gamma")
# Behind the block that features are taken from; and a table that some versions of transformers stored.
_UNREAD = re.compile(r"vision\.\w+\.(norm|attn_pool|fc_norm|head)\.|decoder\.(.*\.)?rotary_emb\.inv_freq$")
_BLOCK = re.compile(r"(vision\.\w+)\.blocks\.(\d+)\.")


@dataclass(frozen=True)
class KeyMap:
    """Where each tensor of a Prismatic model lies.

    :param layout: ``HF`` or ``NATIVE``
    :param stored: the name here to the name in the checkpoint
    :param unused: names in the checkpoint of tensors that inference does not read: of each vision tower the last
        block, the final norm and the pooling
    :param others: names in the checkpoint that are not a Prismatic model's: an action head's, or nobody's
    """

    layout: str
    stored: dict[str, str]
    unused: tuple[str, ...]
    others: tuple[str, ...]


def find_layout(names: Iterable[str]) -> str:
    """Which of the originals' layouts some names are of.

    :param names: of all tensors in a checkpoint
    :raises CheckpointError: when they are of neither
    """
    names = list(names)
    for layout, begin in ((HF, "language_model.model."), (NATIVE, "llm_backbone.llm.model.")):
        if any(name.startswith(begin) for name in names):
            return layout
    raise CheckpointError(f"no tensor's name begins with 'language_model.model.' or 'llm_backbone.llm.model.' (the "
                          f"first is {names[0] if names else 'none'!r}); the weights are not of OpenVLA, OpenVLA-OFT "
                          "or CogACT with a Llama")


def translate_name(name: str, layout: str, first_tower: str = "dino") -> str | None:
    """A tensor's name here.

    :param name: in the checkpoint
    :param layout: ``HF`` or ``NATIVE``
    :param first_tower: what the tower called "featurizer" is, "dino" or "siglip"
    :return: None for a name that is not a Prismatic model's
    """
    # The longest beginning first, as some are the beginning of others.
    for theirs, ours in sorted(_PREFIXES[layout].items(), key=lambda item: -len(item[0])):
        if name.startswith(theirs):
            name = ours.format(first=first_tower) + name[len(theirs):]
            old, new = _RENAMED
            return name[:-len(old)] + new if name.startswith("vision.") and name.endswith(old) else name
    return None


def original_name(name: str, layout: str) -> str:
    """A tensor's name in a checkpoint with both vision towers; the inverse of :func:`translate_name`.

    :param name: here
    :param layout: ``HF`` or ``NATIVE``
    :raises KeyError: for one that is not a Prismatic model's
    """
    old, new = _RENAMED
    if layout == HF and name.startswith("vision.") and name.endswith(new):
        name = name[:-len(new)] + old
    for theirs, ours in reversed(_PREFIXES[layout].items()):
        begin = ours.format(first="dino")
        if name.startswith(begin):
            return theirs + name[len(begin):]
    raise KeyError(name)


def map_keys(names: Iterable[str]) -> KeyMap:
    """Sort a checkpoint's tensors.

    :param names: of all tensors in a checkpoint
    :raises CheckpointError: when they are of neither layout, or two are the same tensor
    """
    names = list(names)
    layout = find_layout(names)
    # DINOv2 has a class token and SigLIP has none.
    first = "dino" if "vision_backbone.featurizer.cls_token" in names else "siglip"
    translated = {name: translate_name(name, layout, first) for name in names}
    depths: dict[str, int] = {}
    for ours in translated.values():
        if ours is not None and (found := _BLOCK.match(ours)):
            depths[found[1]] = max(depths.get(found[1], 0), int(found[2]) + 1)
    stored: dict[str, str] = {}
    unused, others = [], []
    for name, ours in translated.items():
        if ours is None:
            others.append(name)
        elif _is_unread(ours, depths):
            unused.append(name)
        elif ours in stored:
            raise CheckpointError(f"the tensors '{stored[ours]}' and '{name}' are the same part of the model; remove "
                                  "the one that belongs to another checkpoint")
        else:
            stored[ours] = name
    return KeyMap(layout, stored, tuple(unused), tuple(others))


def _is_unread(name: str, depths: dict[str, int]) -> bool:
    block = _BLOCK.match(name)
    return _UNREAD.match(name) is not None or (block is not None and int(block[2]) + 1 == depths[block[1]])
