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

"""How long one inference takes, stage by stage, of several engines in turn.

A machine slows down and speeds up by itself: other work, heat, clocks. So every round runs every engine once, on the
same observation and in an order drawn anew, and engines are compared within rounds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sqap_vla_ros.config import Config
from sqap_vla_ros.data import Observation, RobotFootprint
from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.evaluation.bench_engines import BENCH_ENGINES
from sqap_vla_ros.policy.compression import find_observations
from sqap_vla_ros.policy.observations import StoredObservation
from sqap_vla_ros.policy.policy import Policy, build_policy

LLM, TOTAL = "llm", "total"
WARM_UP_ROUNDS = 3
_RESAMPLES = 2000
# Where the made-up robot is: its middle in shares of width and height, and its radius in shares of the width. About
# what the gripper of the simulated robot takes.
_ROBOT_CENTER, _ROBOT_RADIUS_RATIO = (0.5, 0.45), 0.08


@dataclass
class BenchRounds:
    """What was measured so far.

    :param milliseconds: of each round, by engine and stage, in the order in which the engines ran
    """

    milliseconds: list[dict[str, dict[str, float]]] = field(default_factory=list)

    def stages(self) -> list[str]:
        """Names of the stages in the order run, the sum last."""
        first = next(iter(self.milliseconds[0].values()))
        return [*first, TOTAL]

    def column(self, engine: str, stage: str) -> np.ndarray:
        """One number per round, ms."""
        rows = [row[engine] for row in self.milliseconds]
        return np.array([sum(row.values()) if stage == TOTAL else row[stage] for row in rows])


def build_engine(name: str, config: Config) -> Policy:
    """A policy for one engine, warmed up.

    :param name: one of ``BENCH_ENGINES``
    :param config: knobs of the quantized engines; float ones keep every token
    :raises ConfigError: when a knob does not fit the checkpoint, or the checkpoint is compressed and the engine float
    """
    engine = BENCH_ENGINES[name]
    model, prune = replace(config.model, device=engine.device), config.prune
    if engine.is_float:
        model, prune = replace(model, recipe="float", dtype=engine.dtype), replace(prune, rule="none")
    else:
        model = replace(model, engine=engine.kernel)
    policy = build_policy(replace(config, model=model, prune=prune))
    policy.warm_up()
    return policy


def prepare_observations(checkpoint: str, folder: Path | None, count: int) -> list[Observation]:
    """Real pictures with a made-up footprint of the robot, since stored ones come without.

    :param checkpoint: folder, or name of a packaged one, which may have its own pictures
    :param folder: with pictures; None takes those that come with the checkpoint
    :param count: at most so many, evenly from all of them
    :raises ConfigError: when there are none
    """
    stored = find_observations(checkpoint, folder)
    if not stored:
        raise ConfigError(f"'{checkpoint}' comes without pictures; give --observations a folder with some, such as "
                          "`sqap observe` makes")
    chosen = np.linspace(0, len(stored) - 1, min(count, len(stored))).round().astype(int)
    return [_observe(stored[index]) for index in chosen]


def run_rounds(policies: Mapping[str, Policy], observations: Sequence[Observation], count: int, rounds: BenchRounds,
               on_round: Callable[[], None] = lambda: None) -> None:
    """Measure; what is finished is in ``rounds`` whatever happens.

    :param policies: by engine
    :param observations: taken in turn
    :param count: how many rounds
    :param rounds: filled
    :param on_round: told of each
    """
    order, chance = list(policies), random.Random(0)
    for index in range(-WARM_UP_ROUNDS, count):
        chance.shuffle(order)
        observation = observations[index % len(observations)]
        times = {name: policies[name].infer(observation).times.milliseconds for name in order}
        if index >= 0:
            rounds.milliseconds.append(times)
            on_round()


def summarize_rounds(rounds: BenchRounds, engines: Sequence[str]) -> dict[str, Any]:
    """Medians with their spread, and how many times faster each other engine is than a float one.

    :param rounds: one or more
    :param engines: in the order wanted
    :return: ``engines`` with ``stages_ms`` (medians) and ``spread_ms`` (10th and 90th percentile), ``ratios`` (medians
        over rounds) and ``intervals`` (95 %, bootstrap over rounds)
    """
    stages = rounds.stages()
    rows = {name: {
        "stages_ms": {stage: round(float(np.median(rounds.column(name, stage))), 3) for stage in stages},
        "spread_ms": {stage: [round(float(value), 3) for value in np.percentile(rounds.column(name, stage), (10, 90))]
                      for stage in stages}} for name in engines}
    ratios: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, list[float]]] = {}
    for base in (name for name in engines if BENCH_ENGINES[name].is_float):
        for name in (name for name in engines if name != base):
            for stage in (LLM, TOTAL):
                ratio = rounds.column(base, stage) / rounds.column(name, stage)
                key = f"{stage}_vs_{base}"
                ratios.setdefault(name, {})[key] = round(float(np.median(ratio)), 3)
                intervals.setdefault(name, {})[key] = _resample_median(ratio)
    return {"engines": rows, "ratios": ratios, "intervals": intervals}


def describe_engine(policy: Policy) -> dict[str, Any]:
    """What ran: method, layer where tokens leave, tokens kept, and bytes of the decoder's linears."""
    told = policy.describe()
    return {"recipe": told["recipe"], "rule": policy.config.prune.rule,
            "prune_layer": None if policy.pruner is None else policy.pruner.layer,
            "kept_tokens": told["kept_tokens"], "total_tokens": told["total_tokens"],
            "weight_bytes": int(told["weight_bytes"]), "float32_bytes": int(told["float32_bytes"])}


def describe_instructions() -> dict[str, bool | str]:
    """What the processor offers for narrow numbers; the ratios depend on it more than on anything else."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    flags = set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())
    names = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    return {"torch": torch.backends.cpu.get_cpu_capability(), **{name: name in flags for name in names}}


def _observe(stored: StoredObservation) -> Observation:
    return Observation(0, stored.images, stored.instruction, tuple(map(_make_up_robot, stored.images)),
                       state=stored.state)


def _make_up_robot(rgb: np.ndarray) -> RobotFootprint:
    height, width = rgb.shape[:2]
    center = np.array([[_ROBOT_CENTER[0] * width, _ROBOT_CENTER[1] * height]])
    return RobotFootprint(("robot",), center, np.array([_ROBOT_RADIUS_RATIO * width]))


def _resample_median(values: np.ndarray) -> list[float]:
    draws = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    return [round(float(bound), 3) for bound in np.percentile(np.median(values[draws], axis=1), (2.5, 97.5))]
