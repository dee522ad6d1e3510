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

"""OpenVLA-OFT: a Prismatic VLM that fills in a whole chunk of actions at once (Kim et al. 2025, arXiv 2502.19645).

One empty place per number stands behind the instruction, and every token sees every other one. What comes out at the
places is read by a head that regresses actions, by one that predicts the noise in them and asks the decoder again at
every step, or, where there is no head, as words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.models.dataset_statistics import Bounds, read_statistics
from sqap_vla_ros.models.family import Family, Opened, Wanted
from sqap_vla_ros.models.film import ADAPTER_FOLDER, Film, Modulation, find_film, overlay_towers, read_film
from sqap_vla_ros.models.llama_tokenizer import TOKENIZER_FILE, LlamaTokenizer
from sqap_vla_ros.models.lora import ADAPTER_CONFIG
from sqap_vla_ros.models.oft_config import HeadConfig, OftConfig, find_robot
from sqap_vla_ros.models.oft_diffusion import TRAIN_STEPS, clipped_schedule, denoise_clipped, make_timesteps
from sqap_vla_ros.models.oft_files import PARTS, find_part, read_parts
from sqap_vla_ros.models.oft_heads import ChunkHead
from sqap_vla_ros.models.oft_presets import find_preset
from sqap_vla_ros.models.oft_sequence import (
    STOP_ID,
    action_window,
    assemble_sequence,
    average_language,
    empty_places,
)
from sqap_vla_ros.models.openvla import find_tokens
from sqap_vla_ros.models.prismatic import PrismaticConfig, PrismaticVlm, check_keys, load_prismatic_
from sqap_vla_ros.models.prismatic_checkpoint import find_tokenizer, open_prismatic, read_architecture
from sqap_vla_ros.models.proprio import TokenProjector, normalize_proprio
from sqap_vla_ros.models.sites import stream_sites
from sqap_vla_ros.models.vla import ActionSpec, Later, ModelSettings, Sequence
from sqap_vla_ros.quantization.rotation import RotationSites
from sqap_vla_ros.quantization.stored_tensors import name_dtype

# Beginnings of the names of what is no Prismatic model's.
_OWN = ("head.", "unfold.", "proprio.", "noisy_actions.", "timesteps.", "film.")


class OpenVlaOft(PrismaticVlm):
    """See the module's docstring; the methods are those of :class:`~sqap_vla_ros.models.vla.VlaModel`.

    ``unfold`` stands between the decoder's norm and the head. It changes nothing until gain and rotation are folded
    into it: a head begins with a LayerNorm over several hidden states, through which neither can pass.

    :param config: all but weights
    :param files: the tokenizer, by its name
    """

    family = "openvla-oft"
    decodes = False
    action_spec: ActionSpec  # once a data set is chosen
    state_bounds: Bounds | None

    def __init__(self, config: OftConfig, files: Mapping[str, Path]) -> None:
        head, preset, width = config.head, config.preset, config.vlm.decoder.hidden_size
        super().__init__(config.vlm, has_lm_head=head is None)
        self.config = config
        self.cameras = preset.cameras
        self.state_size = preset.proprio_dims if config.reads_state else 0
        self.action_tokens = preset.action_tokens + 2  # the word before the places, and the stop behind them
        self.has_smooth_actions = head is not None
        self.schedule = clipped_schedule()
        self.film = Film(config.vlm.towers, width) if config.has_film else None
        self.proprio = TokenProjector(preset.proprio_dims, width) if config.reads_state else None
        self.head = None if head is None else ChunkHead(preset.action_dims, width, head.width, head.blocks)
        self.unfold = None if head is None else nn.Linear(width, width, bias=False)
        denoises = head is not None and head.denoises
        self.noisy_actions = TokenProjector(1, width) if denoises else None
        self.timesteps = nn.Embedding(TRAIN_STEPS, width) if denoises else None
        self._tokenizer = LlamaTokenizer(files[TOKENIZER_FILE], config.prompt)

    def choose(self, settings: ModelSettings) -> None:
        """Take the data set, whose statistics give actions and states their units, and the pictures' preset.

        :raises ConfigError: for a data set that the checkpoint does not know, or none where there are several, and for
            another robot than it is for
        :raises CheckpointError: where statistics are of another robot
        """
        config, dataset = self.config, settings.dataset or None
        if settings.robot and find_preset(settings.robot) != find_preset(config.robot):
            raise ConfigError(f"the checkpoint is for the robot '{config.robot}', not '{settings.robot}'; leave "
                              "model.robot empty")
        self.action_spec = config.preset.action_spec(config.statistics, dataset)
        self.state_bounds = None
        if self.state_size:
            self.state_bounds = config.statistics.bounds(dataset, "proprio", config.preset.normalization)
            if len(self.state_bounds.low) != self.state_size:
                raise CheckpointError(f"'{config.statistics.source}' has statistics of states of "
                                      f"{len(self.state_bounds.low)} numbers, and the model reads {self.state_size}")
        self.pictures = settings.pictures

    def tokenize(self, instruction: str) -> list[int]:
        """Token ids of the whole prompt; raises InputError for what says nothing or too much."""
        return self._tokenizer.encode(instruction)

    def see(self, picture: Tensor, ids: list[int]) -> Tensor:
        """What the vision towers make of one picture, told of the instruction where there is FiLM."""
        if self.film is None:
            return self.vision(picture)
        language = average_language(self.embed(ids, picture[:1]), self.embed([STOP_ID], picture[:1]))
        return self.film(self.vision, picture, language)

    def build_sequence(self, visual: Tensor, ids: list[int], state: Tensor | None = None, seed: int = 0) -> Sequence:
        """BOS, pictures, the state's token, the timestep's, the instruction, a place per number, a stop.

        :param visual: (B, cameras * N, C)
        :param ids: of the instruction
        :param state: (state_size,) metres and radians; None where the model reads none
        :param seed: of the noise that a head begins with
        :raises InputError: for a state of another size, or one that is not finite
        """
        batch, extra = len(visual), []
        if self.proprio is not None:
            assert state is not None and self.state_bounds is not None
            numbers = torch.from_numpy(normalize_proprio(state.numpy(), self.state_bounds))
            extra.append(self.proprio(numbers.to(visual)[None, None]).expand(batch, -1, -1))
        places = empty_places(visual, self.config.preset.action_tokens)
        if self.timesteps is not None:
            extra.append(self._time_token(self.schedule.timesteps[0], visual).expand(batch, -1, -1))
            places = self._project_noisy(self._draw_noise(visual, seed), visual)
        return assemble_sequence(self.embed(ids, visual), visual, torch.cat(extra, dim=1) if extra else None, places,
                                 self.embed([STOP_ID], visual[:1]))

    def predict_actions(self, hidden: Tensor, later: Later | None = None) -> Tensor:
        """Read the chunk.

        :param hidden: (B, S', C), the places and the stop at its end
        :param later: for a head that denoises; None gives the noise that it predicts at the first step
        :return: (B, T, D) float32, or float64 from a head of a float64 model
        """
        preset = self.config.preset
        read = hidden[:, action_window(preset.action_tokens)]
        if self.lm_head is not None:
            tokens = self.config.tokens
            return tokens.decode(tokens.read(read, self.lm_head)).unflatten(1, (preset.chunk_steps, -1))
        first = self._ask_head(read)
        return first if later is None or self.timesteps is None else self._denoise(first, later)

    def rotation_sites(self) -> RotationSites:
        """One residual stream: words, times and projectors write it, FiLM reads words as they are.

        The decoder's output is read by ``unfold``, or by the language head where there is no other.
        """
        tables = [table for table in (self.embed_tokens, self.timesteps) if table is not None]
        projectors = [part.fc2 for part in (self.proprio, self.noisy_actions) if part is not None]
        readers = [linear for linear in (self.unfold, self.lm_head) if linear is not None]
        modulations = [part for part in self.modules() if isinstance(part, Modulation)]
        return stream_sites(self.decoder, [cast(nn.Parameter, table.weight) for table in tables],
                            (self.projector.last, *projectors), readers,
                            [linear for part in modulations for linear in (part.scale, part.shift)])

    def float_reasons(self) -> dict[str, str]:
        """What recipes leave alone."""
        own = {"head": "a few rows per chunk; quantized action heads cost success out of all proportion",
               "unfold": "a few rows per chunk, in front of the head",
               "proprio": "one token", "noisy_actions": "one token per number of a chunk",
               "timesteps": "a look-up, not a matrix product", "film": "one row per picture"}
        there = {name: why for name, why in own.items() if getattr(self, name) is not None}
        return {**super().float_reasons(), **there}

    def make_fixed(self) -> dict[str, Tensor]:
        """Tensors that no file holds, as they are until something is folded into them; by name, float32."""
        made = {} if self.unfold is None else {"unfold.weight": torch.eye(self.unfold.in_features)}
        if self.timesteps is not None:
            made["timesteps.weight"] = make_timesteps(self.timesteps.embedding_dim).weight
        return made

    def _ask_head(self, hidden: Tensor) -> Tensor:
        # (B, T D, C) to (B, T, D)
        out = cast(ChunkHead, self.head)(cast(nn.Linear, self.unfold)(hidden))
        return out.to(_wide(out))

    def _denoise(self, first: Tensor, later: Later) -> Tensor:
        # ``first`` is the noise that the decoder's pass so far tells of; it is asked again for all but that.
        sequence, schedule = later.sequence, self.schedule
        count, time_at = self.config.preset.action_tokens, sequence.visual.stop + (self.proprio is not None)

        def predict(x: Tensor, time: int) -> Tensor:
            if time == schedule.timesteps[0]:
                return first
            embeddings = sequence.embeddings.clone()
            embeddings[:, time_at:time_at + 1] = self._time_token(time, embeddings)
            embeddings[:, -count - 1:-1] = self._project_noisy(x, embeddings)
            hidden = self.decoder(embeddings, sequence.positions, causal=sequence.causal, prune=later.prune,
                                  tail=self.action_tokens)
            return self._ask_head(hidden[:, action_window(count)])

        chunk = denoise_clipped(predict, self._draw_noise(sequence.embeddings, later.seed), schedule)
        later.end_stage("decode")
        return chunk

    def _draw_noise(self, like: Tensor, seed: int) -> Tensor:
        # (B, T, D), drawn on the CPU so that it is the same on every device.
        preset = self.config.preset
        shape = len(like), preset.chunk_steps, preset.action_dims
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(like.device, _wide(like))

    def _project_noisy(self, x: Tensor, like: Tensor) -> Tensor:
        # (B, T, D) to (B, T D, C)
        return cast(TokenProjector, self.noisy_actions)(x.to(like.dtype).flatten(1)[..., None])

    def _time_token(self, time: int, like: Tensor) -> Tensor:
        return cast(nn.Embedding, self.timesteps).weight[time].to(like.dtype)[None, None]


def _wide(like: Tensor) -> torch.dtype:
    # Samples gather fifty small changes, which bfloat16 would round away.
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _recognize(folder: Path, values: dict[str, Any]) -> bool:
    if values.get("model_type") != "openvla":
        return False
    # Without a file beside it, one that writes its actions as words looks as OpenVLA does: somebody has to tell.
    architecture = read_architecture(folder)
    return (any(find_part(folder, part) for part in PARTS) or architecture.get("family") == OpenVlaOft.family
            or "robot" in architecture)


def _open(folder: Path, values: dict[str, Any], settings: ModelSettings) -> Opened:
    checkpoint, statistics, tokenizer = open_prismatic(folder), read_statistics(folder), find_tokenizer(folder)
    parts, film_file = read_parts(folder, has_weights=False), find_film(folder)
    if film_file is not None:
        checkpoint = replace(checkpoint, tensors=overlay_towers(checkpoint.tensors, film_file))
    robot, preset = find_robot(settings.robot, checkpoint.architecture, parts)
    parts.check(preset, checkpoint.config.decoder.hidden_size)
    head = None if parts.head is None else HeadConfig(parts.head.fc_in.out_features, len(parts.head.blocks),
                                                      parts.denoises)
    config = OftConfig(checkpoint.config, robot, preset, head, parts.proprio is not None, film_file is not None,
                       checkpoint.prompt, find_tokens(checkpoint), statistics)

    def load_(model: nn.Module, dtype: torch.dtype, wanted: Wanted) -> None:
        assert isinstance(model, OpenVlaOft)
        load_prismatic_(model, checkpoint.tensors, checkpoint.keys, dtype=dtype, wanted=wanted, elsewhere=_OWN)
        if wanted(_OWN[0]):
            own = _read_beside(folder, checkpoint.config, has_weights=True) | model.make_fixed()
            model.load_state_dict({name: tensor.to(dtype) for name, tensor in own.items()}, strict=False, assign=True)

    stored = {name: entry for name, entry in checkpoint.stored.items() if head is None or name != "lm_head.weight"}
    stored |= {name: (name_dtype(tensor.dtype), tuple(tensor.shape))
               for name, tensor in _read_beside(folder, checkpoint.config, has_weights=False).items()}
    beside = [*(find_part(folder, part) for part in PARTS), folder / ADAPTER_FOLDER / ADAPTER_CONFIG]
    sources = dict.fromkeys((*checkpoint.sources, *(path for path in beside if path is not None and path.is_file()),
                             statistics.source, tokenizer))
    return Opened(config, load_, stored, tuple(sources), {TOKENIZER_FILE: tokenizer},
                  lambda model: check_keys(model, checkpoint.tensors, checkpoint.keys, elsewhere=_OWN))


def _read_beside(folder: Path, vlm: PrismaticConfig, *, has_weights: bool) -> dict[str, Tensor]:
    # Tensors of the files beside a model, by their names in it.
    parts, film_file, width = read_parts(folder, has_weights=has_weights), find_film(folder), vlm.decoder.hidden_size
    film = None if film_file is None else read_film(film_file, vlm.towers, width, has_weights=has_weights)
    modules: dict[str, nn.Module | None] = {"head": parts.head, "proprio": parts.proprio,
                                            "noisy_actions": parts.noisy_actions, "film": film}
    return {f"{part}.{name}": tensor for part, module in modules.items() if module is not None
            for name, tensor in module.state_dict().items()}


FAMILY = Family(OftConfig.from_json, OpenVlaOft, (TOKENIZER_FILE,), _recognize, _open,
                settings=("dataset", "robot"))
