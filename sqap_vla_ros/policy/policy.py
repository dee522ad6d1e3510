"""Observation in, actions out: the one place where model, quantization, pruning and geometry are wired together."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from sqap_vla_ros.config import Config
from sqap_vla_ros.data import (
    ACTION_NAMES,
    ActionChunk,
    Inference,
    Observation,
    RobotFootprint,
    StageTimes,
    TokenRule,
    TokenUse,
)
from sqap_vla_ros.errors import CheckpointError, ConfigError, InferenceError, InputError
from sqap_vla_ros.geometry.footprint import token_mask
from sqap_vla_ros.geometry.image_map import ImageMap
from sqap_vla_ros.models.llama import Choice, PruneStep
from sqap_vla_ros.models.registry import Checkpoint, load_checkpoint
from sqap_vla_ros.models.vla import VlaModel
from sqap_vla_ros.policy.compression import find_observations
from sqap_vla_ros.policy.observations import calibrate
from sqap_vla_ros.policy.preprocess import STRATEGIES, map_image, prepare_image, unnormalize_actions
from sqap_vla_ros.policy.safety import check_finite
from sqap_vla_ros.pruning.pruner import Pruner
from sqap_vla_ros.quantization.quantize import RECIPES, QuantizationReport, quantize_
from sqap_vla_ros.quantization.recipe import FLOAT, STORED

WARM_UP_RUNS = 2
WARM_UP_IDS = [0] * 6


def build_policy(config: Config) -> Policy:
    """Load, quantize and wire a policy; everything that can be wrong with it is found here or in ``warm_up``.

    The number of threads is set for the whole process.

    :param config: every knob
    :raises ConfigError: when a knob does not fit the model or the machine
    :raises CheckpointError: when the checkpoint cannot be used
    """
    device = _find_device(config.model.device)
    torch.set_num_threads(config.model.threads)
    loaded = load_checkpoint(config.model.checkpoint, engine=config.model.engine)
    _check_recipe(config, loaded)
    model = loaded.model
    _check_model(model)
    pruner = None if config.prune.rule == "none" else Pruner(config.prune, (model.grid,), device)
    if pruner is not None:
        pruner.check_depth(model.decoder.config.num_hidden_layers)
    report = loaded.report
    if config.model.recipe in RECIPES:
        report = _quantize(model, config)
    model.to(device)  # type: ignore[attr-defined]
    return Policy(model, config, pruner, report, device,
                  stored_recipe="" if loaded.artifact is None else loaded.artifact.recipe_name)


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
        self._float32_bytes = sum(4 * linear.weight.numel() for linear in model.quantizable_linears().values())

    @torch.inference_mode()
    def infer(self, observation: Observation) -> Inference:
        """Look once, decide the next steps.

        :param observation: one picture with its footprint, and the instruction
        :raises InputError: when picture or instruction cannot be used
        :raises InferenceError: when an action is not finite
        """
        watch = _StageWatch(self.device)
        rgb, footprint = _only_camera(observation)
        ids = self._read_instruction(observation.instruction)
        pixels, image_map = prepare_image(rgb, self.model.image_spec)
        protected = None if footprint is None else token_mask(footprint, image_map, self.model.grid,
                                                              self.model.image_spec.size)
        robot_mask = None if protected is None else torch.from_numpy(protected).to(self.device)
        pixels = pixels.to(self.device)
        draw = 0 if self.pruner is None else self.pruner.draw((rgb,))
        watch.end("preprocess")
        actions, tokens = self._run(pixels, ids, robot_mask, draw, watch)
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
        return map_image(width, height, self.model.image_spec)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run on a grey picture, with and without a robot in it, so that the first real inference is not the slowest.

        :raises InferenceError: when the model's answer is of another shape than it claims, or not finite
        """
        spec, (rows, columns) = self.model.image_spec, self.model.grid
        pixels, _ = prepare_image(np.full((spec.size, spec.size, 3), 128, dtype=np.uint8), spec)
        robot_mask = torch.zeros(rows * columns, dtype=torch.bool, device=self.device)
        robot_mask[0] = True
        expected = (1, self.model.action_spec.chunk_steps, len(self.model.action_spec.low))
        for mask in (None, robot_mask) * WARM_UP_RUNS:
            actions, _ = self._run(pixels.to(self.device), WARM_UP_IDS, mask, 0, _StageWatch(self.device))
            if actions.shape != expected:
                raise InferenceError(f"the model gave actions of shape {tuple(actions.shape)}; its specification says "
                                     f"{expected}")
            check_finite("the action of a grey picture", actions.cpu().numpy())

    def describe(self) -> dict[str, str | int | float]:
        """What runs: family, recipe, engine, bytes of the decoder's linears as stored and in float32, token counts.

        ``stored_recipe`` is there where the checkpoint came compressed.
        """
        total = self.model.grid[0] * self.model.grid[1]
        return {
            "family": self.model.family,
            "recipe": self.config.model.recipe,
            **({"stored_recipe": self.stored_recipe} if self.stored_recipe else {}),
            "engine": "float32" if self.report is None else self.config.model.engine,
            "device": str(self.device),
            "weight_bytes": self._float32_bytes if self.report is None else self.report.weight_bytes,
            "float32_bytes": self._float32_bytes if self.report is None else self.report.float32_bytes,
            "kept_tokens": total if self.pruner is None else self.pruner.kept_count,
            "total_tokens": total,
        }

    def _read_instruction(self, text: str) -> list[int]:
        limit = self.config.safety.max_instruction_chars
        if len(text) > limit:
            raise InputError(f"the instruction has {len(text)} characters; {limit} are allowed")
        return self.model.tokenize(text)

    def _run(self, pixels: Tensor, ids: list[int], robot_mask: Tensor | None, draw: int,
             watch: _StageWatch) -> tuple[Tensor, tuple[TokenUse, ...]]:
        # (1, 3 * towers, H, W) to (1, T, D) normalised actions, on the device.
        visual = self.model.encode_images(pixels)
        watch.end("vision")
        sequence = self.model.build_sequence(visual, ids)
        tokens: tuple[TokenUse, ...] = (_every_token(self.model.grid),)
        prune = None
        if self.pruner is not None:
            pruner = self.pruner

            def select(scores: Tensor, hidden: Tensor) -> Choice:
                nonlocal tokens
                selections = pruner.select(scores, hidden, (robot_mask,), draw)
                tokens = tuple(kept.token_use(grid) for kept, grid in zip(selections, pruner.grids, strict=True))
                return Choice(pruner.positions(selections), pruner.log_areas(selections))

            prune = PruneStep(pruner.layer, sequence.visual, select)
        hidden = self.model.decoder(sequence.embeddings, sequence.positions, prune=prune,
                                    tail=self.model.action_tokens)
        watch.end("llm")
        return self.model.predict_actions(hidden), tokens


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


def _only_camera(observation: Observation) -> tuple[np.ndarray, RobotFootprint | None]:
    if len(observation.images) != 1 or len(observation.footprints) != 1:
        raise InputError(f"an observation came with {len(observation.images)} pictures and "
                         f"{len(observation.footprints)} footprints; the model takes one of each")
    return observation.images[0], observation.footprints[0]


def _every_token(grid: tuple[int, int]) -> TokenUse:
    total = grid[0] * grid[1]
    return TokenUse(grid, np.arange(total), np.full(total, TokenRule.UNPRUNED, dtype=np.int8))


def _find_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"model.device is '{name}', which is no torch device; use 'cpu' or 'cuda'") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"model.device is '{name}'; allowed are cpu and cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"model.device is '{name}', but torch sees {torch.cuda.device_count()} CUDA devices here")
    return device


def _check_recipe(config: Config, loaded: Checkpoint) -> None:
    # 'stored' is for compressed checkpoints and every other recipe for float ones, so that none is ever taken for
    # another.
    name, recipe = config.model.checkpoint, config.model.recipe
    if loaded.artifact is not None and recipe != STORED:
        raise ConfigError(f"model.checkpoint '{name}' is compressed with the recipe '{loaded.artifact.recipe_name}', "
                          f"and model.recipe is '{recipe}'; set model.recipe to '{STORED}' to run it as it is, or "
                          f"model.checkpoint to the float one it was made from, '{loaded.artifact.origin.checkpoint}'")
    if loaded.artifact is None and recipe == STORED:
        raise ConfigError(f"model.recipe is '{STORED}', which runs a compressed checkpoint, and model.checkpoint "
                          f"'{name}' is a float one; set model.recipe to '{FLOAT}' to run it as it is, or to one of "
                          f"{', '.join(RECIPES)}")


def _quantize(model: VlaModel, config: Config) -> QuantizationReport:
    name, recipe = config.model.checkpoint, RECIPES[config.model.recipe]
    observations = find_observations(name) if recipe.needs_calibration else []
    if recipe.needs_calibration and not observations:
        raise ConfigError(
            f"model.recipe '{config.model.recipe}' must see observations, and model.checkpoint '{name}' comes without; "
            f"compress it once: `sqap compress {name} OUT --recipe {config.model.recipe} --calibration DIR`, then set "
            f"model.checkpoint to OUT and model.recipe to '{STORED}'")
    return quantize_(model, recipe, engine=config.model.engine,  # type: ignore[arg-type]
                     calibration=calibrate(model, observations))


def _check_model(model: VlaModel) -> None:
    if len(model.action_spec.low) != len(ACTION_NAMES):
        raise CheckpointError(f"the model's actions have {len(model.action_spec.low)} dimensions; "
                              f"{len(ACTION_NAMES)} are needed: {', '.join(ACTION_NAMES)}")
    if model.image_spec.strategy not in STRATEGIES:
        raise CheckpointError(f"the model resizes pictures by '{model.image_spec.strategy}'; known are "
                              f"{', '.join(STRATEGIES)}")
