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

"""Observation in, actions out: the one place where model, quantization, pruning and geometry are wired together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import psutil
import torch
from torch import Tensor

from sqap_vla_ros.config import Config
from sqap_vla_ros.data import ActionChunk, Inference, Observation, StageTimes, TokenUse
from sqap_vla_ros.errors import CheckpointError, ConfigError, InferenceError, InputError
from sqap_vla_ros.geometry.footprint import token_mask
from sqap_vla_ros.geometry.image_map import ImageMap
from sqap_vla_ros.knobs import ModelKnobs, PruneKnobs
from sqap_vla_ros.models.llama import PruneStep
from sqap_vla_ros.models.pictures import map_picture
from sqap_vla_ros.models.registry import describe_checkpoint, load_checkpoint
from sqap_vla_ros.models.vla import Later, VlaModel
from sqap_vla_ros.policy.choice import OneChoice, every_token
from sqap_vla_ros.policy.compression import find_observations
from sqap_vla_ros.policy.observations import StoredObservation
from sqap_vla_ros.policy.preprocess import (
    ModelInputs,
    prepare_pictures,
    prepare_state,
    scale_actions,
    unnormalize_actions,
)
from sqap_vla_ros.policy.reference import REFERENCE_FILE, Reference, load_reference
from sqap_vla_ros.policy.safety import check_finite
from sqap_vla_ros.policy.stage_watch import StageWatch
from sqap_vla_ros.policy.wiring import (
    build_pruner,
    check_fit,
    choose_settings,
    find_device,
    find_dtype,
    quantize_model,
    token_grids,
)
from sqap_vla_ros.pruning.pruner import Pruner, draw_seed
from sqap_vla_ros.quantization.quantize import RECIPES, QuantizationReport

WARM_UP_RUNS = 2


def build_policy(config: Config) -> Policy:
    """Load, quantize and wire a policy; everything that can be wrong with it is found here or in ``warm_up``.

    The number of threads is set for the whole process.

    :param config: every knob
    :raises ConfigError: when a knob does not fit the model or the machine
    :raises CheckpointError: when the checkpoint cannot be used
    """
    settings, device = choose_settings(config.model), find_device(config.model.device)
    observations = check_fit(config, describe_checkpoint(config.model.checkpoint, settings=settings, chosen=True))
    torch.set_num_threads(config.model.threads)
    loaded = load_checkpoint(config.model.checkpoint, engine=config.model.engine, dtype=find_dtype(config.model),
                             settings=settings)
    model, report, reference = loaded.model, loaded.report, None
    if config.model.recipe in RECIPES:
        seen = observations or find_observations(config.model.checkpoint)
        reference = refer(model, config, seen[0]) if seen else None
        report = quantize_model(model, config, observations)
    elif loaded.artifact is not None and REFERENCE_FILE in loaded.artifact.files:
        reference = load_reference(loaded.artifact.folder / REFERENCE_FILE)
    model.to(device)  # type: ignore[attr-defined]
    return Policy(model, config, build_pruner(config, model, device), report, device, reference=reference,
                  stored_recipe="" if loaded.artifact is None else loaded.artifact.recipe_name)


def take_reference(knobs: ModelKnobs, observation: StoredObservation) -> Reference | None:
    """What a float checkpoint does on an observation.

    :param knobs: which checkpoint, and what is chosen about it
    :return: None where memory has no room for the whole model in float32
    :raises CheckpointError: when the checkpoint cannot be used
    :raises ConfigError: when the observation cannot be used, or a knob does not fit
    """
    settings = choose_settings(knobs)
    facts = describe_checkpoint(knobs.checkpoint, settings=settings, chosen=True)
    numbers = sum(parameter.numel() for parameter in facts.model.parameters())  # type: ignore[attr-defined]
    if 1.5 * 4 * numbers > psutil.virtual_memory().available:
        return None
    try:
        return refer(load_checkpoint(knobs.checkpoint, settings=settings).model, Config(model=knobs), observation)
    except InputError as error:
        raise ConfigError(f"{observation.source}: {error}") from error


def refer(model: VlaModel, config: Config, observation: StoredObservation) -> Reference:
    """What a float model does, for its compressed self to be compared with.

    :param model: on the CPU
    :param config: every knob
    :param observation: what it sees
    :raises InputError: when the model cannot use the observation
    """
    policy = Policy(model, config, None, None, torch.device("cpu"))
    return Reference(observation, policy.decide(observation))


class Policy:
    """A model with its pruner, ready to act.

    :param model: in evaluation mode, quantized or not
    :param config: every knob
    :param pruner: chooses the visual tokens that stay; None keeps all
    :param report: what quantization replaced; None for a float model
    :param device: where the model is
    :param stored_recipe: by which its checkpoint was compressed; empty where it was not
    :param reference: what the float model does on an observation; None where nobody knows
    """

    def __init__(self, model: VlaModel, config: Config, pruner: Pruner | None, report: QuantizationReport | None,
                 device: torch.device, *, stored_recipe: str = "", reference: Reference | None = None) -> None:
        self.model = model
        self.config = config
        self.pruner = pruner
        self.report = report
        self.device = device
        self.stored_recipe = stored_recipe
        self.reference = reference
        self.grids = token_grids(model)
        self._float32_bytes = sum(4 * linear.weight.numel() for linear in model.quantizable_linears().values())

    @torch.inference_mode()
    def infer(self, observation: Observation) -> Inference:
        """Look once, decide the next steps.

        :param observation: a picture of each camera with its footprint, the instruction, and the robot's state for a
            model that reads it
        :raises InputError: when pictures, instruction or state cannot be used
        :raises InferenceError: when an action is not finite
        """
        watch = StageWatch(self.device)
        inputs = self._prepare(observation)
        watch.end("preprocess")
        actions, tokens = self._run(inputs, watch)
        steps = unnormalize_actions(actions[0].double().cpu().numpy(), self.model.action_spec)
        steps = scale_actions(steps, self.config.model)
        check_finite("the predicted action", steps)
        watch.end("head")
        period_ns = round(self.config.control.step_period_s * 1e9)
        return Inference(ActionChunk(observation.stamp_ns, period_ns, steps), StageTimes(watch.milliseconds), tokens)

    def check_instruction(self, text: str) -> None:
        """Tell whether an instruction can be followed, without a picture.

        :raises InputError: when it is empty, too long or has words the model does not know
        """
        self._read_instruction(text)

    @property
    def image_size(self) -> int:
        """Side of the model's square picture, px."""
        return self.model.image_spec.size

    def image_map(self, width: int, height: int) -> ImageMap:
        """Camera pixels to model pixels, for a camera picture of that size."""
        return map_picture(width, height, self.model.image_spec, self.model.pictures)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run on a grey picture, with and without a robot in it, so that the first real inference is not the slowest.

        :raises InferenceError: when the model's answer is of another shape than it claims, or not finite
        """
        model, size = self.model, self.model.image_spec.size
        grey = np.full((size, size, 3), 128, dtype=np.uint8)
        state = np.zeros(model.state_size) if model.state_size else None
        unseen = Observation(0, (grey,) * len(model.cameras), model.example, (None,) * len(model.cameras), state=state)
        seen = tuple(torch.arange(rows * columns, device=self.device) == 0 for rows, columns in self.grids)
        inputs = self._prepare(unseen)
        expected = (1, model.action_spec.chunk_steps, len(model.action_spec.low))
        for masks in (inputs.masks, seen) * WARM_UP_RUNS:
            actions, _ = self._run(replace(inputs, masks=masks), StageWatch(self.device))
            if actions.shape != expected:
                raise InferenceError(f"the model gave actions of shape {tuple(actions.shape)}; its specification says "
                                     f"{expected}")
            check_finite("the action of a grey picture", actions.cpu().numpy())

    @torch.inference_mode()
    def decide(self, seen: StoredObservation) -> np.ndarray:
        """The normalised actions of a stored observation, in which no robot is protected.

        :return: (T, D) float64
        :raises InputError: when it cannot be used
        """
        inputs = self._prepare(Observation(0, seen.images, seen.instruction, (None,) * len(seen.images),
                                           state=seen.state))
        return self._run(inputs, StageWatch(self.device))[0][0].double().cpu().numpy()

    def check_itself(self) -> str:
        """Compare the quantized, pruned model with the float one.

        :return: what came out, in words
        :raises CheckpointError: when the actions have too little in common
        """
        if self.report is None:
            return "self-check: the model is not quantized"
        if self.reference is None:
            return ("self-check: no observation of the float model came with the checkpoint; `sqap compress` with "
                    "--calibration stores one")
        sqnr_db, least_db = self.reference.measure_sqnr_db(self.decide(self.reference.observation)), (
            self.config.model.min_sqnr_db)
        if not sqnr_db >= least_db:
            raise CheckpointError(f"self-check: actions of a stored observation have {sqnr_db:.1f} dB signal to noise "
                                  f"against the float model's, and model.min_sqnr_db is {least_db:g}; drop fewer "
                                  "tokens (prune.pruned_ratio), take another recipe, or compare engines with "
                                  "model.engine 'reference'")
        return (f"self-check: actions of a stored observation have {sqnr_db:.1f} dB signal to noise against the float "
                "model's")

    def adapt(self, prune: PruneKnobs) -> None:
        """Prune otherwise, from the next observation on.

        :raises ConfigError: for what the model cannot have; all stays as it was then
        """
        config = replace(self.config, prune=prune)
        self.pruner, self.config = build_pruner(config, self.model, self.device), config

    def describe(self) -> dict[str, str | int | float]:
        """What runs: family, recipe, engine, bytes of the decoder's linears as stored and in float32, token counts.

        ``stored_recipe`` is there where the checkpoint came compressed.
        """
        total = sum(rows * columns for rows, columns in self.grids)
        return {
            "family": self.model.family,
            "recipe": self.config.model.recipe,
            **({"stored_recipe": self.stored_recipe} if self.stored_recipe else {}),
            "engine": self.config.model.dtype if self.report is None else self.config.model.engine,
            "device": str(self.device),
            "weight_bytes": sum(linear.weight.nbytes for linear in self.model.quantizable_linears().values())
            if self.report is None else self.report.weight_bytes,
            "float32_bytes": self._float32_bytes if self.report is None else self.report.float32_bytes,
            "kept_tokens": total if self.pruner is None else self.pruner.kept_count,
            "total_tokens": total,
        }

    def _read_instruction(self, text: str) -> list[int]:
        limit = self.config.safety.max_instruction_chars
        if len(text) > limit:
            raise InputError(f"the instruction has {len(text)} characters; {limit} are allowed")
        return self.model.tokenize(text)

    def _prepare(self, observation: Observation) -> ModelInputs:
        images, footprints, spec = observation.images, observation.footprints, self.model.image_spec
        ids = self._read_instruction(observation.instruction)
        state = prepare_state(observation.state, self.model)
        pixels, maps = prepare_pictures(images, self.model)
        if len(footprints) != len(images):
            raise InputError(f"{len(images)} pictures came with {len(footprints)} footprints; give one of each camera, "
                             "None where it is not known")
        masks: list[Tensor | None] = []
        for rgb, footprint, image_map, grid in zip(images, footprints, maps, self.grids, strict=True):
            if footprint is None:
                masks.append(None)
                continue
            picture_px = (rgb.shape[1], rgb.shape[0]) if spec.strategy.startswith("letterbox") else None
            mask = torch.from_numpy(token_mask(footprint, image_map, grid, spec.size, picture_px))
            masks.append(mask.to(self.device))
        return ModelInputs(pixels.to(self.device), ids, state, tuple(masks), draw_seed(images, self.config.prune.seed))

    def _run(self, inputs: ModelInputs, watch: StageWatch) -> tuple[Tensor, tuple[TokenUse, ...]]:
        # To (1, T, D) normalised actions, on the device.
        model, pruner = self.model, self.pruner
        dtype = next(model.vision.parameters()).dtype
        visual = model.encode_images(inputs.pixels.to(dtype), inputs.ids)
        watch.end("vision")
        sequence = model.build_sequence(visual, inputs.ids, inputs.state, inputs.seed)
        choice = None if pruner is None else OneChoice(pruner, inputs.masks, inputs.seed)
        # Where each token sees only those before it, the last alone sees all that may leave.
        watchers = 1 if sequence.causal else model.action_tokens
        prune = None if choice is None else PruneStep(choice.layer, sequence.visual, choice.select, watchers)
        cache = model.decoder.empty_cache() if model.decodes else None
        hidden = model.decoder(sequence.embeddings, sequence.positions, causal=sequence.causal, prune=prune,
                               tail=model.action_tokens, cache=cache)
        watch.end("llm")
        actions = model.predict_actions(hidden, Later(sequence, prune, cache, inputs.seed, watch.end))
        return actions, tuple(map(every_token, self.grids)) if choice is None else choice.tokens
