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

"""A tokenizer for random checkpoints: Llama-2's ids for what its prompts are made of, letters for all else.

The real vocabulary is not ours to give away. Prompts come out as long as with it, or longer where words are spelled.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from sqap_vla_ros.models.llama_tokenizer import BOS_ID, EMPTY_ID, EOS_ID, TOKENIZER_FILE

VOCABULARY_SIZE = 32000
# Behind three marks and 256 bytes.
_FIRST_FREE = 3 + 256
# Llama-2's ids of pieces of the prompts, and of what is often asked for.
_PIECES = {"▁In": 512, ":": 29901, "▁What": 1724, "▁action": 3158, "▁should": 881, "▁the": 278, "▁robot": 19964,
           "▁take": 2125, "▁to": 304, "?": 29973, "Out": 3744, "▁put": 1925, "▁sp": 805, "oon": 6150, "▁on": 373,
           "wel": 20466, "▁": EMPTY_ID}
_WORDS = ("pick", "up", "place", "move", "push", "pull", "open", "close", "turn", "lift", "grasp", "reach", "stack",
          "red", "green", "blue", "yellow", "block", "cube", "cup", "bowl", "plate", "pot", "carrot", "towel", "drawer",
          "door", "left", "right", "top", "bottom", "of", "in", "into", "from", "and", "a", "it", "table")


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json.

    :param folder: to write into
    """
    pieces = {0: "<unk>", BOS_ID: "<s>", EOS_ID: "</s>", **{3 + byte: f"<0x{byte:02X}>" for byte in range(256)},
              **{index: piece for piece, index in _PIECES.items()}}
    free = (index for index in range(_FIRST_FREE, VOCABULARY_SIZE) if index not in pieces)
    common = [*(f"▁{word}" for word in _WORDS), *map(chr, range(ord("a"), ord("z") + 1))]
    pieces |= dict(zip(free, (piece for piece in common if piece not in _PIECES), strict=False))
    # The longer a piece the better, so that a word is taken whole where it is there.
    vocabulary = [(pieces.get(index, f"<unused_{index}>"), -10.0) for index in range(VOCABULARY_SIZE)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken("<PAD>", special=True)])
    (folder / TOKENIZER_FILE).write_text(tokenizer.to_str(), encoding="utf-8")
