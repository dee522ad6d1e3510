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

"""One observation from the command line through a policy: a table for people, pictures, and a line of JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from sqap_vla_ros.cli.infer import Disc
from sqap_vla_ros.cli.main import end_politely
from sqap_vla_ros.config import Config, build_config
from sqap_vla_ros.data import ACTION_NAMES, Inference, Observation, RobotFootprint, TokenRule, TokenUse
from sqap_vla_ros.errors import ConfigError, InputError
from sqap_vla_ros.models.registry import CheckpointFacts, describe_checkpoint
from sqap_vla_ros.policy.observations import read_picture
from sqap_vla_ros.policy.overlay import draw_overlay
from sqap_vla_ros.policy.policy import Policy, build_policy
from sqap_vla_ros.policy.preprocess import prepare_pictures, prepare_state
from sqap_vla_ros.policy.wiring import check_fit, choose_settings
from sqap_vla_ros.quantization.recipe import FLOAT, STORED

_UNITS = ("m",) * 3 + ("rad",) * 3 + ("0 to 1",)
# Columns that fit a terminal.
_COLUMNS = len(ACTION_NAMES)


def run_verb(args: argparse.Namespace) -> int:
    """Look, tell, print one line of JSON."""
    console = Console(stderr=True)
    end_politely()
    images = tuple(map(read_picture, args.image))
    config, facts = _choose(args)
    observation = _build_observation(args, images, facts)
    _check(config, facts, observation)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {args.out} cannot be written: {error.strerror}; take another folder") from error
    with console.status(f"preparing {args.checkpoint}"):
        if not console.is_terminal:
            console.print(f"preparing {args.checkpoint}", highlight=False, markup=False, soft_wrap=True)
        policy = build_policy(config)
        policy.infer(observation)
        inference = policy.infer(observation)
    paths = _write_overlays(args.out, policy, observation, inference)
    for table in (*_build_action_tables(inference.chunk.steps), _build_times_table(inference, config.model.threads),
                  _build_tokens_table(policy.model.cameras, inference.tokens)):
        console.print(table)
    print(json.dumps(_describe(args, policy, inference, paths)), flush=True)
    return 0


def _choose(args: argparse.Namespace) -> tuple[Config, CheckpointFacts]:
    values = vars(args)
    config = build_config({**dict(args.set), **args.prune.knobs, **{name: values[name] for name in args.knobs},
                           "model.checkpoint": args.checkpoint, "model.recipe": args.recipe or FLOAT})
    facts = describe_checkpoint(args.checkpoint, settings=choose_settings(config.model), chosen=True)
    if args.recipe is None and facts.artifact is not None:
        config = build_config({"model.recipe": STORED}, config)
    return config, facts


def _check(config: Config, facts: CheckpointFacts, observation: Observation) -> None:
    # What a policy would find out too, before the weights of a large model are read in vain.
    check_fit(config, facts)
    Policy(facts.model, config, None, None, torch.device("meta")).check_instruction(observation.instruction)
    prepare_state(observation.state, facts.model)


def _build_observation(args: argparse.Namespace, images: tuple[np.ndarray, ...],
                       facts: CheckpointFacts) -> Observation:
    # The number of pictures is checked first: discs are given to cameras.
    prepare_pictures(images, facts.model)
    cameras = facts.model.cameras
    for disc in args.tf_pixel:
        _check_disc(disc, cameras, images)
    footprints = tuple(_join_discs([disc for disc in args.tf_pixel if disc.camera in (camera, "")])
                       for camera in cameras)
    return Observation(0, images, args.instruction, footprints, "" if all(footprints) else "no --tf-pixel is given",
                       None if args.state is None else np.array(args.state))


def _check_disc(disc: Disc, cameras: Sequence[str], images: Sequence[np.ndarray]) -> None:
    u, v = disc.center_px
    said = f"--tf-pixel {f'{disc.camera}:' if disc.camera else ''}{u:g},{v:g},{disc.radius_px:g}"
    if disc.camera not in (cameras if len(cameras) > 1 else ("", *cameras)):
        raise InputError(f"{said} names {f'the camera {disc.camera!r}' if disc.camera else 'no camera'}, and the model "
                         f"sees {', '.join(cameras)}; write CAMERA:U,V,RADIUS with one of them")
    height, width = images[cameras.index(disc.camera) if disc.camera else 0].shape[:2]
    beside = (u - min(max(u, -0.5), width - 0.5), v - min(max(v, -0.5), height - 0.5))
    if np.hypot(*beside) >= disc.radius_px:
        raise InputError(f"{said} lies outside of the camera's picture of {width} x {height} px, where it protects "
                         "nothing; give a pixel in it")


def _join_discs(discs: Sequence[Disc]) -> RobotFootprint | None:
    # A row without place or radius parts two discs, between which nothing is protected.
    if not discs:
        return None
    rows = [(*disc.center_px, disc.radius_px) for disc in discs]
    parted = np.array([row for disc in rows for row in ((np.nan, np.nan, 0.0), disc)][1:])
    return RobotFootprint(("tf-pixel",) * len(parted), parted[:, :2], parted[:, 2])


def _write_overlays(folder: Path, policy: Policy, observation: Observation, inference: Inference) -> dict[str, str]:
    paths = {}
    for camera, rgb, tokens, footprint in zip(policy.model.cameras, observation.images, inference.tokens,
                                              observation.footprints, strict=True):
        picture = draw_overlay(rgb, tokens, footprint, policy.image_map(rgb.shape[1], rgb.shape[0]),
                               observation.instruction, model_size=policy.image_size)
        path = folder / f"overlay_{camera}.png"
        try:
            path.write_bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())
        except OSError as error:
            raise ConfigError(f"'{path}' cannot be written: {error.strerror}; take another --out") from error
        paths[camera] = str(path)
    return paths


def _name_columns(count: int) -> list[tuple[str, str]]:
    # Name and unit. Only actions of one arm are known by name; others are in the units of the training data.
    return list(zip(ACTION_NAMES, _UNITS, strict=True)) if count == len(ACTION_NAMES) else [
        (str(number), "") for number in range(1, count + 1)]


def _build_action_tables(steps: np.ndarray) -> list[Table]:
    tables, columns = [], _name_columns(steps.shape[1])
    for first in range(0, len(columns), _COLUMNS):
        table = Table(title="Action, step by step" if first == 0 else None, title_justify="left")
        table.add_column("", justify="right")
        for name, unit in columns[first:first + _COLUMNS]:
            table.add_column(f"{name}\n{unit}" if unit else name, justify="right")
        for number, step in enumerate(steps[:, first:first + _COLUMNS], start=1):
            table.add_row(str(number), *(f"{value:.4f}" for value in step))
        tables.append(table)
    return tables


def _list_stages(inference: Inference) -> dict[str, float]:
    # ms by stage, and in all.
    return {**inference.times.milliseconds, "total": inference.times.total_ms}


def _build_times_table(inference: Inference, threads: int) -> Table:
    table = Table(title=f"One inference, {threads} thread(s)", title_justify="left")
    stages = _list_stages(inference)
    for name in stages:
        table.add_column(f"{name}\nms", justify="right")
    table.add_row(*(f"{value:.2f}" for value in stages.values()))
    return table


def _build_tokens_table(cameras: Sequence[str], tokens: Sequence[TokenUse]) -> Table:
    rules = [rule for rule in TokenRule if any(use.count(rule) for use in tokens)]
    table = Table(title="Visual tokens kept, by rule", title_justify="left")
    for heading in ("camera", "kept", *(rule.name.lower() for rule in rules)):
        table.add_column(heading, justify="left" if heading == "camera" else "right")
    for camera, use in zip(cameras, tokens, strict=True):
        table.add_row(camera, f"{len(use.kept)} of {use.grid[0] * use.grid[1]}",
                      *(str(use.count(rule)) for rule in rules))
    return table


def _describe(args: argparse.Namespace, policy: Policy, inference: Inference, paths: dict[str, str]) -> dict[str, Any]:
    columns = _name_columns(inference.chunk.steps.shape[1])
    return {
        "checkpoint": args.checkpoint, **policy.describe(), "prune": args.prune.name.partition("+")[2] or "none",
        "instruction": args.instruction, "columns": [name for name, _ in columns],
        "units": [unit for _, unit in columns], "action": inference.chunk.steps.tolist(),
        "stages_ms": {stage: round(value, 3) for stage, value in _list_stages(inference).items()},
        "tokens": {camera: {
            "grid": list(use.grid),
            **{rule.name.lower(): use.kept[use.rules == int(rule)].tolist() for rule in TokenRule if use.count(rule)}}
            for camera, use in zip(policy.model.cameras, inference.tokens, strict=True)},
        "overlays": paths}
