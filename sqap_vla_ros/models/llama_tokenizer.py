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

"""An instruction to token ids, as OpenVLA and its relatives want it: in a fixed sentence, by Llama-2's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from sqap_vla_ros.errors import CheckpointError, InputError

TOKENIZER_FILE = "tokenizer.json"
BOS_ID, EOS_ID = 1, 2
# The space that all of these models saw in training between the prompt and what they were to write.
EMPTY_ID = 29871
MAX_TOKENS = 2048
_MARKS = ("<unk>", "<s>", "</s>", "<PAD>")
PROMPTS = {
    "openvla": "In: What action should the robot take to {instruction}?\nOut:",
    "openvla-v01": "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
                   "helpful, detailed, and polite answers to the user's questions. USER: What action should the robot "
                   "take to {instruction}? ASSISTANT:",
}
# Pieces that tell Llama-2's vocabulary from others that are sold under its name.
_PIECES = {"<s>": BOS_ID, "</s>": EOS_ID, "▁": EMPTY_ID, ":": 29901, "Out": 3744}


def check_prompt(name: str) -> str:
    """A name of one of ``PROMPTS``, as it is.

    :raises CheckpointError: for another one
    """
    if name not in PROMPTS:
        raise CheckpointError(f"there is no prompt {name!r}; known are {', '.join(PROMPTS)}")
    return name


class LlamaTokenizer:
    """Llama-2's tokenizer with a prompt.

    :param path: of tokenizer.json, or of a folder that holds it
    :param prompt: name of one of ``PROMPTS``
    :param always_append: ids behind every prompt. Empty: ``EMPTY_ID``, unless the prompt ends with it, as OpenVLA does
        it. CogACT has ``(EMPTY_ID, EOS_ID)``
    :raises CheckpointError: when the file is missing, damaged, or has another vocabulary
    """

    def __init__(self, path: str | Path, prompt: str = "openvla", *, always_append: Sequence[int] = ()) -> None:
        path = Path(path)
        path = path / TOKENIZER_FILE if path.is_dir() else path
        self._tokenizer = _read_tokenizer(path)
        self._prompt = PROMPTS[prompt]
        self._appended = tuple(always_append)

    def encode(self, instruction: str) -> list[int]:
        """Ids of a whole prompt, BOS first.

        :param instruction: what to do, in words; capital letters count as small ones, as in training
        :raises InputError: when it says nothing, is too long, or holds one of the tokenizer's own marks
        """
        if not isinstance(instruction, str) or not instruction.strip():
            came = "nothing" if isinstance(instruction, str) else type(instruction).__name__
            raise InputError(f"the instruction must say what to do, for example 'pick up the red block'; got {came}")
        marks = sorted(mark for mark in _MARKS if mark.lower() in instruction.lower())
        if marks:
            raise InputError(f"the instruction {instruction!r} holds {marks[0]!r}, which means something else to the "
                             "model; leave it out")
        text = self._prompt.format(instruction=instruction.lower())
        # BOS is put there by hand: whether the file asks for it differs between versions of transformers.
        ids = [BOS_ID, *self._tokenizer.encode(text, add_special_tokens=False).ids]
        if self._appended:
            ids += self._appended
        elif ids[-1] != EMPTY_ID:
            ids.append(EMPTY_ID)
        if len(ids) > MAX_TOKENS:
            raise InputError(f"the instruction makes {len(ids)} tokens; the models read at most {MAX_TOKENS}: say it "
                             "shorter")
        return ids


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        text = path.read_text(encoding="utf-8")
        kind = json.loads(text)["model"]["type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"'{path}' is not readable as a tokenizer: {error!r}; copy it again") from error
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:
        # The library's own errors are of no narrower type.
        if type(error) is not Exception:
            raise
        raise CheckpointError(f"'{path}' is no tokenizer of a kind that is known here ({kind!r}): {error}") from error
    for piece, expected in _PIECES.items():
        if tokenizer.token_to_id(piece) != expected:
            raise CheckpointError(f"'{path}' gives {piece!r} the id {tokenizer.token_to_id(piece)}, Llama-2's "
                                  f"tokenizer {expected}; take the file of OpenVLA-7B")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
