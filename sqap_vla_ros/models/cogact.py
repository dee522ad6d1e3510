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

"""CogACT: a Prismatic model's last hidden state tells an action transformer what to denoise.

The prompt ends with the token whose hidden state, behind the decoder's final norm, is the cognition: all that the
actions are made of besides noise. Li et al. 2024, "CogACT". The noise is a function of the pictures, so that one
observation has one chunk of actions, whatever the model was compressed to and wherever it runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.models.dataset_statistics import CONFIG_FILE, DatasetStatistics, read_statistics
from sqap_vla_ros.models.diffusion import GRIPPER, ActionModel, Schedule, clip_actions, make_schedule, read_action_model
from sqap_vla_ros.models.dit import SIZES, Dit, DitConfig
from sqap_vla_ros.models.family import Family, Opened, Wanted
from sqap_vla_ros.models.llama_tokenizer import EMPTY_ID, EOS_ID, TOKENIZER_FILE, LlamaTokenizer, check_prompt
from sqap_vla_ros.models.prismatic import PrismaticConfig, PrismaticVlm, check_keys, load_prismatic_
from sqap_vla_ros.models.prismatic_checkpoint import PrismaticCheckpoint, find_tokenizer, open_prismatic
from sqap_vla_ros.models.sites import stream_sites
from sqap_vla_ros.models.vla import ActionSpec, Later, ModelSettings
from sqap_vla_ros.quantization.rotation import RotationSites
from sqap_vla_ros.quantization.stored_tensors import name_dtype

# Beginnings of names: of the head's tensors, and of its averaged twin's, which is of use in training only.
HEAD, AVERAGED = "action_model.", "ema_diffusion."


@dataclass(frozen=True)
class CogActConfig:
    """Sizes of a CogACT model, its prompt, and the units of its actions.

    :param vlm: of all but the head
    :param dit: of the head
    :param statistics: of the data sets that it was trained on
    :param prompt: a name in :data:`~sqap_vla_ros.models.llama_tokenizer.PROMPTS`
    :raises CheckpointError: when the parts do not fit together
    """

    vlm: PrismaticConfig
    dit: DitConfig
    statistics: DatasetStatistics
    prompt: str

    def __post_init__(self) -> None:
        for what, came, wanted in (("hidden states", self.dit.cognition_size, self.vlm.decoder.hidden_size),
                                   ("actions", self.dit.action_size, GRIPPER + 1)):
            if came != wanted:
                raise CheckpointError(f"the action model is for {what} of {came} numbers, and with this decoder they "
                                      f"must be of {wanted}; the parts are of different models")

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``config.json``."""
        return {"family": "cogact", "vlm": self.vlm.to_json(), "dit": asdict(self.dit),
                "datasets": self.statistics.to_json(), "prompt": self.prompt}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> CogActConfig:
        """Inverse of :meth:`to_json`.

        :raises CheckpointError: when a field is missing or unknown
        """
        try:
            return cls(PrismaticConfig.from_json(values["vlm"]), DitConfig(**values["dit"]),
                       DatasetStatistics.from_json(values["datasets"]), check_prompt(values["prompt"]))
        except (KeyError, TypeError, ValueError, AttributeError, CheckpointError) as error:
            raise CheckpointError(f"config.json of a CogACT checkpoint is not usable: {error!r}") from error


class CogAct(PrismaticVlm):
    """See the module's docstring; the methods are those of :class:`~sqap_vla_ros.models.vla.VlaModel`.

    The head computes in float32 whatever the rest does: it is small, and a sample gathers its errors.

    :param config: sizes, units and prompt
    :param files: by name; the tokenizer
    """

    family = "cogact"
    action_tokens = 1
    decodes = False
    has_smooth_actions = True
    action_spec: ActionSpec  # once a data set is chosen
    _schedule: Schedule
    _guidance: float

    def __init__(self, config: CogActConfig, files: Mapping[str, Path]) -> None:
        super().__init__(config.vlm, has_lm_head=False)
        self.config = config
        self.action_model = ActionModel(Dit(config.dit))
        self._tokenizer = LlamaTokenizer(files[TOKENIZER_FILE], config.prompt, always_append=(EMPTY_ID, EOS_ID))

    def choose(self, settings: ModelSettings) -> None:
        """Take the data set, the pictures' preset, the sampler (0 steps are all of DDPM's) and the guidance."""
        if not (math.isfinite(settings.guidance) and settings.guidance >= 1.0):
            raise ConfigError(f"the guidance is {settings.guidance}; 1 is none, and more goes beyond what is seen, "
                              "usually 1.5")
        dit, statistics, schedule = self.config.dit, self.config.statistics, make_schedule(settings.sampler_steps)
        bounds = statistics.bounds(settings.dataset or None, "action", "q99")
        if len(bounds.low) != dit.action_size:
            raise CheckpointError(f"'{statistics.source}' tells of actions of {len(bounds.low)} numbers, and the "
                                  f"action model's have {dit.action_size}; the file is of another model")
        self.pictures, self.action_spec = settings.pictures, bounds.action_spec(dit.chunk_steps)
        self._schedule, self._guidance = schedule, settings.guidance

    def tokenize(self, instruction: str) -> list[int]:
        """Ids of the whole prompt, at its end the token of the cognition."""
        return self._tokenizer.encode(instruction)

    def predict_actions(self, hidden: Tensor, later: Later | None = None) -> Tensor:
        """(B, S', C) to (B, T, D): motion in [-1, 1], gripper 0 (closed) or 1 (open)."""
        # Drawn on the CPU, as generators of other devices draw other numbers.
        generator = torch.Generator().manual_seed(0 if later is None else later.seed)
        noise = self.action_model.draw_noise(self._schedule, generator, len(hidden))
        return clip_actions(self.action_model.sample(hidden[:, -1], noise, self._schedule,
                                                     guidance_scale=self._guidance))

    def rotation_sites(self) -> RotationSites:
        """One residual stream: words and projector write it, the layers read and write, the head reads."""
        words = cast(nn.Parameter, self.embed_tokens.weight)
        return stream_sites(self.decoder, (words,), (self.projector.last,), (self.action_model.net.z_embedder.linear,))

    def float_reasons(self) -> dict[str, str]:
        """What recipes leave alone."""
        return {**super().float_reasons(),
                "action_model": "a few percent of the weights, asked ten times for each chunk; errors add up"}


def _recognize(folder: Path, values: dict[str, Any]) -> bool:
    vla = values.get("vla")
    return isinstance(vla, dict) and "base_vlm" in vla and (folder / "checkpoints").is_dir()


def open_cogact(folder: Path, values: dict[str, Any], settings: ModelSettings) -> Opened:
    """Find out what a run of CogACT holds; of its weights the header alone is read.

    :raises CheckpointError: naming what is missing or damaged, or what such a model cannot do here
    """
    place = folder / CONFIG_FILE
    if values.get("past_action_window_size"):
        raise CheckpointError(f"'{place}' has past_action_window_size {values['past_action_window_size']}, and a model "
                              "that reads past actions cannot be run here; take one that was trained with 0")
    if values.get("use_ema"):
        raise CheckpointError(f"'{place}' has use_ema true, and averaged weights ({AVERAGED}*) are not read here; set "
                              "it to false to run the weights themselves")
    checkpoint = open_prismatic(folder)
    tensors, outline = checkpoint.tensors, _outline_head(checkpoint)
    stored = {name: kept for name, kept in checkpoint.stored.items() if not name.startswith("lm_head.")}
    stored |= {HEAD + name: (name_dtype(kept.dtype), tuple(kept.shape)) for name, kept in outline.state_dict().items()}
    dit, statistics, tokenizer = outline.net.config, read_statistics(folder), find_tokenizer(folder)

    def load_(model: nn.Module, dtype: torch.dtype, wanted: Wanted) -> None:
        assert isinstance(model, CogAct)
        if wanted(f"{HEAD}nothing"):
            read = {name: tensor.float() for name, tensor in tensors.read_part(HEAD).items()}
            head = read_action_model(read, num_heads=dit.num_heads)
            model.action_model.load_state_dict(head.state_dict(), assign=True)
        load_prismatic_(model, tensors, checkpoint.keys, dtype=dtype, wanted=wanted, elsewhere=(HEAD, AVERAGED))

    sources = dict.fromkeys((*checkpoint.sources, statistics.source, tokenizer))
    return Opened(CogActConfig(checkpoint.config, dit, statistics, checkpoint.prompt), load_, stored, tuple(sources),
                  {TOKENIZER_FILE: tokenizer},
                  lambda model: check_keys(model, tensors, checkpoint.keys, elsewhere=(HEAD, AVERAGED)))


def _outline_head(checkpoint: PrismaticCheckpoint) -> ActionModel:
    # The head on the meta device; with it every name and shape has been looked at.
    values, dit = checkpoint.values, checkpoint.architecture.get("dit")
    heads = dit.get("heads") if isinstance(dit, dict) else None
    place, outline = checkpoint.tensors.place, checkpoint.tensors.outline(HEAD)
    if not outline:
        raise CheckpointError(f"{place} has no action model ({HEAD}*), so it is none of CogACT's; for OpenVLA take the "
                              "folder that transformers reads")
    if heads is not None and type(heads) is not int:
        raise CheckpointError(f"architecture.json has {heads!r} as dit.heads, which must be a whole number")
    try:
        head = read_action_model(outline, num_heads=heads)
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}") from error
    found = head.net.config
    stated: dict[str, Any] = {"future_action_window_size": found.chunk_steps - 1, "action_dim": found.action_size}
    if heads is None and values.get("action_model_type") in list(SIZES):
        shape = found.depth, found.hidden_size
        known = (name for name, size in SIZES.items() if (size.depth, size.hidden_size) == shape)
        stated["action_model_type"] = next(known, f"{shape[0]} blocks, {shape[1]} wide")
    for key in (key for key, value in stated.items() if values.get(key, value) != value):
        raise CheckpointError(f"'{checkpoint.folder / CONFIG_FILE}' has {key} {values[key]}, but by the tensors in "
                              f"{place} it is {stated[key]}")
    return head


FAMILY = Family(CogActConfig.from_json, CogAct, (TOKENIZER_FILE,), _recognize, open_cogact, (HEAD,),
                settings=("dataset",))
