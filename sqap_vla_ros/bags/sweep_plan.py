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

"""What a sweep runs: the cells of methods x pruned ratios x bags x seeds, with their knobs. Nothing is run here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqap_vla_ros.config import Config
from sqap_vla_ros.evaluation.methods import STORED, Method

# What the sweep itself says of every policy.
DECIDED = ("model.checkpoint", "model.recipe", "prune.rule", "prune.pruned_ratio", "prune.seed")
# Of these sections each policy has its own knobs; what the others say holds for all policies of a replay.
_OF_POLICIES = ("model", "prune")
# What a cell shares with all others.
_OF_CELLS = ("checkpoint", "knobs", "instruction", "namespace", "remap", "limit")


@dataclass(frozen=True)
class Sweep:
    """A file as it was read, checked and with its paths made absolute.

    :param checkpoint: folder, or a name of one in the package
    :param methods: all that are asked for, each once
    :param bags: paths by the name that tells each from the others
    :param seeds: of ``prune.seed``
    :param against: what each cell is compared with; None for nothing but what was recorded
    :param calibration: folder of observations for recipes that must see some; None for those of the checkpoint
    :param knobs: other knobs of all cells, by dotted name
    :param instruction: for bags that hold none
    :param namespace: of the node, for topics that are not absolute
    :param remap: topics of the bags by those of the node
    :param limit: pictures per bag, 0 for all
    """

    checkpoint: str
    methods: tuple[Method, ...]
    bags: Mapping[str, Path]
    seeds: tuple[int, ...] = (0,)
    against: Method | None = None
    calibration: Path | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)
    instruction: str = ""
    namespace: str = ""
    remap: Mapping[str, str] = field(default_factory=dict)
    limit: int = 0

    @property
    def all_methods(self) -> tuple[Method, ...]:
        """The methods and what they are compared with, each once."""
        return tuple(dict.fromkeys((*self.methods, *([self.against] if self.against else []))))

    def describe(self) -> dict[str, Any]:
        """As plain JSON values; two sweeps that are described alike have the same cells."""
        return {"checkpoint": self.checkpoint, "calibration": None if self.calibration is None
                else str(self.calibration), "methods": [method.name for method in self.methods],
                "bags": {name: str(path) for name, path in self.bags.items()}, "seeds": list(self.seeds),
                "against": self.against.name if self.against else "", "knobs": dict(self.knobs),
                "instruction": self.instruction, "namespace": self.namespace, "remap": dict(self.remap),
                "limit": self.limit}


@dataclass(frozen=True)
class Cell:
    """One replay: a method, a bag and a seed.

    :param name: readable, and the name of its folder
    :param folder: where its results are
    :param method: what is tried
    :param against: what it is compared with; empty for nothing but what was recorded
    :param bag_name: short
    :param bag: path
    :param seed: of ``prune.seed``
    :param policies: label and knobs by dotted name, the method's before that of ``against``
    :param knobs: of all policies
    :param settings: everything that decides its results, as plain JSON values
    """

    name: str
    folder: Path
    method: Method
    against: str
    bag_name: str
    bag: Path
    seed: int
    policies: tuple[tuple[str, Mapping[str, Any]], ...]
    knobs: Mapping[str, Any]
    instruction: str
    namespace: str
    remap: Mapping[str, str]
    limit: int
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Made:
    """What a recipe makes of the sweep's checkpoint.

    :param folder: where that is, or will be
    :param settings: everything that decides it, as plain JSON values
    """

    folder: str
    settings: Mapping[str, Any]


def plan_cells(sweep: Sweep, out: Path, made: Mapping[str, Made], identity: Mapping[str, Any]) -> list[Cell]:
    """Every method on every bag with every seed; cells of one bag lie together.

    :param out: below which each cell has its folder
    :param made: by recipe; a recipe that is not there is carried out wherever its policy is built
    :param identity: what else decides the results of all cells, such as hashes of what the checkpoint holds
    """
    return [_build_cell(sweep, out, made, identity, method, bag_name, seed)
            for bag_name in sweep.bags for method in sweep.methods for seed in sweep.seeds]


def _build_cell(sweep: Sweep, out: Path, made: Mapping[str, Made], identity: Mapping[str, Any], method: Method,
                bag_name: str, seed: int) -> Cell:
    name, bag = f"{method.name}__{bag_name}__seed{seed}", sweep.bags[bag_name]
    compared = [method, *([sweep.against] if sweep.against and sweep.against.name != method.name else [])]
    own = {knob: value for knob, value in sweep.knobs.items() if knob.partition(".")[0] in _OF_POLICIES}
    shared = {knob: value for knob, value in sweep.knobs.items() if knob not in own}
    policies = []
    for one in compared:
        loaded = {"model.checkpoint": sweep.checkpoint, **one.knobs}
        if one.recipe in made:
            loaded |= {"model.checkpoint": made[one.recipe].folder, "model.recipe": STORED}
        policies.append((one.name, {**own, **loaded, "prune.seed": seed}))
    settings = {
        **{name: value for name, value in sweep.describe().items() if name in _OF_CELLS}, **identity,
        "recipes": {one.recipe: dict(made[one.recipe].settings) for one in compared if one.recipe in made},
        "policies": [one.name for one in compared], "bag": str(bag), "bag_files": _list_files(bag), "seed": seed}
    return Cell(name, out / name, method, compared[-1].name if len(compared) > 1 else "", bag_name, bag, seed,
                tuple(policies), shared, sweep.instruction, sweep.namespace, sweep.remap, sweep.limit, settings)


def _list_files(bag: Path) -> dict[str, list[int]]:
    # Size and time of each file: another bag at the same path is another bag.
    files = sorted(path for path in bag.rglob("*") if path.is_file()) if bag.is_dir() else [bag]
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def count_threads(sweep: Sweep) -> int:
    """CPU threads that each cell takes."""
    return int(sweep.knobs.get("model.threads", Config().model.threads))


def needs_gpu(sweep: Sweep) -> bool:
    """Whether the policies of the cells compute on a CUDA device."""
    return str(sweep.knobs.get("model.device", Config().model.device)).startswith("cuda")
