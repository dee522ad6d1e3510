"""Observation in, actions out: the one place where model, quantization, pruning and geometry are wired together."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sqap_vla_ros.config import Config
from sqap_vla_ros.data import ActionChunk, Inference, Observation, StageTimes, TokenRule, TokenUse
from sqap_vla_ros.errors import InferenceError, InputError
from sqap_vla_ros.geometry.footprint import token_mask
from sqap_vla_ros.geometry.image_map import ImageMap
from sqap_vla_ros.models.llama import Choice, PruneStep
from sqap_vla_ros.models.pictures import map_picture
from sqap_vla_ros.models.registry import describe_checkpoint, load_checkpoint
from sqap_vla_ros.models.vla import Later, VlaModel
from sqap_vla_ros.policy.preprocess import prepare_pictures, prepare_state, unnormalize_actions
from sqap_vla_ros.policy.safety import check_finite
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
    model, report = loaded.model, loaded.report
    if config.model.recipe in RECIPES:
        report = quantize_model(model, config, observations)
    model.to(device)  # type: ignore[attr-defined]
    return Policy(model, config, build_pruner(config, model, device), report, device,
                  stored_recipe="" if loaded.artifact is None else loaded.artifact.recipe_name)


@dataclass(frozen=True)
class _Inputs:
    # One observation as the model reads it. pixels (1, cameras * 3 * towers, H, W) float32; masks (N,) bool for each
    # camera, tokens that show the robot, None where that is not known.
    pixels: Tensor
    ids: list[int]
    state: Tensor | None
    masks: tuple[Tensor | None, ...]
    seed: int


class Policy:
    """A model with its pruner, ready to act.

    :param model: in evaluation mode, quantized or not
    :param config: every knob
    :param pruner: chooses the visual tokens that stay; None keeps all
    :param report: what quantization replaced; None for a float model
    :param device: where the model is
    :param stored_recipe: by which its checkpoint was compressed; empty where it was not
    """

    def __init__(self, model: VlaModel, config: Config, pruner: Pruner | None, report: QuantizationReport | None,
                 device: torch.device, *, stored_recipe: str = "") -> None:
        self.model = model
        self.config = config
        self.pruner = pruner
        self.report = report
        self.device = device
        self.stored_recipe = stored_recipe
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
        watch = _StageWatch(self.device)
        inputs = self._prepare(observation)
        watch.end("preprocess")
        actions, tokens = self._run(inputs, watch)
        steps = unnormalize_actions(actions[0].double().cpu().numpy(), self.model.action_spec)
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
            actions, _ = self._run(replace(inputs, masks=masks), _StageWatch(self.device))
            if actions.shape != expected:
                raise InferenceError(f"the model gave actions of shape {tuple(actions.shape)}; its specification says "
                                     f"{expected}")
            check_finite("the action of a grey picture", actions.cpu().numpy())

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
            "weight_bytes": self._count_held() if self.report is None else self.report.weight_bytes,
            "float32_bytes": self._float32_bytes if self.report is None else self.report.float32_bytes,
            "kept_tokens": total if self.pruner is None else self.pruner.kept_count,
            "total_tokens": total,
        }

    def _count_held(self) -> int:
        return sum(linear.weight.nbytes for linear in self.model.quantizable_linears().values())

    def _read_instruction(self, text: str) -> list[int]:
        limit = self.config.safety.max_instruction_chars
        if len(text) > limit:
            raise InputError(f"the instruction has {len(text)} characters; {limit} are allowed")
        return self.model.tokenize(text)

    def _prepare(self, observation: Observation) -> _Inputs:
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
            protected = token_mask(footprint, image_map, grid, spec.size, picture_px)
            masks.append(torch.from_numpy(protected).to(self.device))
        return _Inputs(pixels.to(self.device), ids, state, tuple(masks), draw_seed(images, self.config.prune.seed))

    def _run(self, inputs: _Inputs, watch: _StageWatch) -> tuple[Tensor, tuple[TokenUse, ...]]:
        # To (1, T, D) normalised actions, on the device.
        model, pruner = self.model, self.pruner
        dtype = next(model.vision.parameters()).dtype
        visual = model.encode_images(inputs.pixels.to(dtype), inputs.ids)
        watch.end("vision")
        sequence = model.build_sequence(visual, inputs.ids, inputs.state, inputs.seed)
        choice = None if pruner is None else _OneChoice(pruner, inputs)
        # Where each token sees only those before it, the last alone sees all that may leave.
        watchers = 1 if sequence.causal else model.action_tokens
        prune = None if choice is None else PruneStep(choice.layer, sequence.visual, choice.select, watchers)
        cache = model.decoder.empty_cache() if model.decodes else None
        hidden = model.decoder(sequence.embeddings, sequence.positions, causal=sequence.causal, prune=prune,
                               tail=model.action_tokens, cache=cache)
        watch.end("llm")
        actions = model.predict_actions(hidden, Later(sequence, prune, cache, inputs.seed, watch.end))
        return actions, tuple(map(_every_token, self.grids)) if choice is None else choice.tokens


class _OneChoice:
    # What a pruner chooses for one observation, at the decoder's first pass and for all of them.
    def __init__(self, pruner: Pruner, inputs: _Inputs) -> None:
        self.layer = pruner.layer
        self.tokens = tuple(map(_every_token, pruner.grids))
        self._pruner, self._inputs = pruner, inputs
        self._choice: Choice | None = None

    def select(self, scores: Tensor, hidden: Tensor) -> Choice:
        if self._choice is None:
            pruner = self._pruner
            selections = pruner.select(scores, hidden, self._inputs.masks, self._inputs.seed)
            self.tokens = tuple(kept.token_use(grid) for kept, grid in zip(selections, pruner.grids, strict=True))
            self._choice = Choice(pruner.positions(selections), pruner.log_areas(selections))
        return self._choice


class _StageWatch:
    # Durations of consecutive stages; a GPU is waited for so that its work counts where it was asked for.
    def __init__(self, device: torch.device) -> None:
        self.milliseconds: dict[str, float] = {}
        self._device = device
        self._began = time.perf_counter()

    def end(self, stage: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.milliseconds[stage] = 1e3 * (now - self._began)
        self._began = now


def _every_token(grid: tuple[int, int]) -> TokenUse:
    total = grid[0] * grid[1]
    return TokenUse(grid, np.arange(total), np.full(total, TokenRule.UNPRUNED, dtype=np.int8))
