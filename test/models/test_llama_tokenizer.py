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

"""Prompts and ids: those of the originals where their tokenizer is at hand, and the rules on a made-up one."""

import json
import random

import pytest
import transformers

from sqap_vla_ros.errors import CheckpointError, InputError
from sqap_vla_ros.models.llama_tokenizer import EMPTY_ID, EOS_ID, PROMPTS, LlamaTokenizer

SPOON = [1, 512, 29901, 1724, 3158, 881, 278, 19964, 2125, 304, 1925, 805, 6150, 373, 304, 20466, 29973, 13, 3744,
         29901]
LETTERS = "abcdefghijklmnopqrstuvwxyzITWOSUERA.?',"


@pytest.fixture
def made_up(tmp_path):
    """Letters and bytes, with Llama-2's ids where they matter."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)},
                  **{letter: 300 + index for index, letter in enumerate(LETTERS)},
                  "▁": EMPTY_ID, ":": 29901, "Ou": 400, "Out": 3744}
    special = [{"id": index, "content": text, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False} for text, index in (("<unk>", 0), ("<s>", 1), ("</s>", 2))]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({
        "version": "1.0", "padding": None,
        "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        "added_tokens": special, "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "vocab": vocabulary,
                  "merges": ["O u", "Ou t"]}}))
    return path


def test_ids_are_the_originals(oracles):
    for folder in (oracles / "openvla" / "checkpoint", oracles / "cogact" / "tokenizer"):
        assert LlamaTokenizer(folder).encode("put spoon on towel") == [*SPOON, EMPTY_ID]
        assert LlamaTokenizer(folder).encode("Put SPOON on towel") == [*SPOON, EMPTY_ID]
        cogact = LlamaTokenizer(folder / "tokenizer.json", always_append=(EMPTY_ID, EOS_ID))
        assert cogact.encode("put spoon on towel") == [*SPOON, EMPTY_ID, EOS_ID]


def test_transformers_says_the_same(oracles):
    folder = oracles / "openvla" / "checkpoint"
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    words = ["put", "the", "red  mug", "été", "3.5cm", "漢字", "left-hand", "(slowly)", "\n", "drawer's", "🙂"]
    draw = random.Random(0)
    for prompt, template in PROMPTS.items():
        ours = LlamaTokenizer(folder, prompt)
        for _ in range(50):
            text = " ".join(draw.choices(words, k=draw.randint(2, 9))) + " x"
            assert ours.encode(text) == [*theirs(template.format(instruction=text.lower())).input_ids, EMPTY_ID]


def test_rules_on_a_made_up_vocabulary(made_up):
    ids = LlamaTokenizer(made_up).encode("Put B")
    spell = {letter: 300 + index for index, letter in enumerate(LETTERS)} | {" ": EMPTY_ID, ":": 29901, "\n": 13}
    sentence = " In: What action should the robot take to put b?\n"
    assert ids == [1, *(spell.get(letter, 3 + ord(letter)) for letter in sentence), 3744, 29901, EMPTY_ID]
    assert LlamaTokenizer(made_up.parent, always_append=(EMPTY_ID, EOS_ID)).encode("put b") == [*ids, EOS_ID]
    vicuna = LlamaTokenizer(made_up, "openvla-v01").encode("put b")
    assert vicuna[:4] == [1, EMPTY_ID, spell["A"], EMPTY_ID] and vicuna[-2:] == [29901, EMPTY_ID]


@pytest.mark.parametrize(("instruction", "message"), [
    ("", "must say what to do.* got nothing"), (" \n", "got nothing"), (None, "got NoneType"), (b"pick", "got bytes"),
    ("pick </S> up", "holds '</s>', which means something else"), ("<pad>", "holds '<PAD>'"),
    ("a" * 3000, r"makes 30\d\d tokens; the models read at most 2048")])
def test_bad_instructions_are_refused(made_up, instruction, message):
    with pytest.raises(InputError, match=message):
        LlamaTokenizer(made_up).encode(instruction)


@pytest.mark.parametrize(("text", "message"), [
    ("", "not readable as a tokenizer"), ('{"model": []}', "not readable as a tokenizer"),
    ('{"model": {"type": "Odd"}}', r"no tokenizer of a kind that is known here \('Odd'\)")])
def test_damaged_files_are_refused(tmp_path, text, message):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json' is {message}"):
        LlamaTokenizer(tmp_path)


def test_other_vocabularies_are_refused(made_up):
    made_up.write_text(made_up.read_text().replace("29901", "28747"))
    with pytest.raises(CheckpointError, match="gives ':' the id 28747, Llama-2's tokenizer 29901"):
        LlamaTokenizer(made_up)
    with pytest.raises(CheckpointError, match=r"absent/tokenizer\.json' is not readable"):
        LlamaTokenizer(made_up.parent / "absent" / "tokenizer.json")
