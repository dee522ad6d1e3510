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

"""OpenVLA: a Prismatic VLM that writes one word per dimension of one action (Kim et al. 2024, "OpenVLA").

Its fine-tunes are of this family too, those with a LoRA adapter beside the weights, and v0.1, which has SigLIP alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.models.action_tokens import ActionTokens
from sqap_vla_ros.models.dataset_statistics import CONFIG_FILE, DatasetStatistics, read_statistics
from sqap_vla_ros.models.family import Family, Opened, Wanted
from sqap_vla_ros.models.llama_tokenizer import TOKENIZER_FILE, LlamaTokenizer, check_prompt
from sqap_vla_ros.models.prismatic import PrismaticConfig, PrismaticVlm, check_keys, load_prismatic_
from sqap_vla_ros.models.prismatic_checkpoint import PrismaticCheckpoint, find_tokenizer, open_prismatic
from sqap_vla_ros.models.prismatic_sizes import ARCHITECTURE_FILE
from sqap_vla_ros.models.vla import ActionSpec, Later, ModelSettings


@dataclass(frozen=True)
class OpenVlaConfig:
    """What OpenVLA is apart from its weights and its tokenizer.

    :param vlm: sizes
    :param prompt: name of the sentence that an instruction is put into, see
        :data:`~sqap_vla_ros.models.llama_tokenizer.PROMPTS`
    :param tokens: which words are actions
    :param statistics: of the data sets it was trained on
    """

    vlm: PrismaticConfig
    prompt: str
    tokens: ActionTokens
    statistics: DatasetStatistics

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``config.json``."""
        return {"family": "openvla", "vlm": self.vlm.to_json(), "prompt": self.prompt, "tokens": asdict(self.tokens),
                "statistics": self.statistics.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> OpenVlaConfig:
        """Inverse of :meth:`to_json`.

        :raises CheckpointError: when a field is missing or of no use
        """
        try:
            vlm = PrismaticConfig.from_json(values["vlm"])
            tokens = ActionTokens.from_json(values["tokens"], vlm.vocabulary_size)
            return cls(vlm, check_prompt(values["prompt"]), tokens, DatasetStatistics.from_json(values["statistics"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the description of an OpenVLA model is not usable: {error!r}") from error


class OpenVla(PrismaticVlm):
    """See the module's docstring; the methods are those of :class:`~sqap_vla_ros.models.vla.VlaModel`.

    :param config: all but weights
    :param files: the tokenizer, by its name
    """

    family = "openvla"
    action_tokens = 1
    decodes = True
    has_smooth_actions = False
    action_spec: ActionSpec  # once a data set is chosen
    lm_head: nn.Linear

    def __init__(self, config: OpenVlaConfig, files: Mapping[str, Path]) -> None:
        super().__init__(config.vlm)
        self.config = config
        self._tokenizer = LlamaTokenizer(files[TOKENIZER_FILE], config.prompt)

    def choose(self, settings: ModelSettings) -> None:
        """Take the data set, whose statistics give actions their units, and the pictures' preset.

        :raises ConfigError: for a data set that the checkpoint does not know, or none where there are several
        """
        bounds = self.config.statistics.bounds(settings.dataset or None, "action", "q99")
        self.action_spec = bounds.action_spec(chunk_steps=1)
        self.pictures = settings.pictures

    def tokenize(self, instruction: str) -> list[int]:
        """Token ids of the whole prompt; raises InputError for what says nothing or too much."""
        return self._tokenizer.encode(instruction)

    def predict_actions(self, hidden: Tensor, later: Later | None = None) -> Tensor:
        """Write an action word by word, each the likeliest behind those before it.

        A word's position is the one it would have with every visual token there, however many left.

        :param hidden: (B, S', C)
        :param later: with the prefill's keys and values, to which the words' are added; None reads the first word alone
        :return: (B, 1, D) float32 middles of intervals of [-1, 1]; (B, 1, 1) without ``later``
        """
        tokens = self.config.tokens
        written = [tokens.read(hidden[:, -1:], self.lm_head)]
        if later is not None:
            for step in range(1, len(self.action_spec.low)):
                word = self.embed_tokens(written[-1]).to(hidden.dtype)
                state = self.decoder(word, later.sequence.positions[:, -1:] + step, cache=later.cache)
                written.append(tokens.read(state, self.lm_head))
            later.end_stage("decode")
        return tokens.decode(torch.cat(written, dim=1))[:, None]


def _open(folder: Path, values: dict[str, Any], settings: ModelSettings) -> Opened:
    if settings.robot:
        raise ConfigError(f"model.robot is '{settings.robot}', which is for OpenVLA-OFT, and '{folder}' is taken for "
                          "OpenVLA, as no action head or projector lies in it; if it is OpenVLA-OFT that writes its "
                          f"actions as words, put {{\"family\": \"openvla-oft\"}} into '{ARCHITECTURE_FILE}' there, "
                          "else leave model.robot empty")
    checkpoint, statistics, tokenizer = open_prismatic(folder), read_statistics(folder), find_tokenizer(folder)

    def load_(model: nn.Module, dtype: torch.dtype, wanted: Wanted) -> None:
        assert isinstance(model, OpenVla)
        load_prismatic_(model, checkpoint.tensors, checkpoint.keys, dtype=dtype, wanted=wanted)

    config = OpenVlaConfig(checkpoint.config, checkpoint.prompt, find_tokens(checkpoint), statistics)
    sources = dict.fromkeys((*checkpoint.sources, statistics.source, tokenizer))
    return Opened(config, load_, checkpoint.stored, tuple(sources), {TOKENIZER_FILE: tokenizer},
                  lambda model: check_keys(model, checkpoint.tensors, checkpoint.keys))


def find_tokens(checkpoint: PrismaticCheckpoint) -> ActionTokens:
    """Which words of a checkpoint's vocabulary are actions.

    :raises CheckpointError: where config.json tells what cannot be
    """
    rows, place = checkpoint.config.vocabulary_size, checkpoint.folder / CONFIG_FILE
    padding, edges = (checkpoint.values.get(key, usual) for key, usual in (("pad_to_multiple_of", 64),
                                                                           ("n_action_bins", 256)))
    if type(padding) is not int or type(edges) is not int:
        raise CheckpointError(f"'{place}': pad_to_multiple_of and n_action_bins must be whole numbers, they are "
                              f"{padding!r} and {edges!r}")
    tokens = ActionTokens(rows - padding, edges)
    try:
        tokens.check(rows)
    except CheckpointError as error:
        raise CheckpointError(f"'{place}': {error}") from error
    return tokens


FAMILY = Family(OpenVlaConfig.from_json, OpenVla, (TOKENIZER_FILE,),
                lambda folder, values: values.get("model_type") == "openvla", _open, settings=("dataset",))
