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

"""What a checkpoint is, as a table for a terminal and as values for JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from sqap_vla_ros.models.registry import CheckpointFacts
from sqap_vla_ros.quantization.artifact import Artifact
from sqap_vla_ros.quantization.structure import SHAPE_TENSOR, LinearEntry

_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "U8": 1}


@dataclass(frozen=True)
class Part:
    """Some of a checkpoint's tensors.

    :param name: a block of the decoder, one of its linears, or another part of the model
    :param width: bits of weights and activations, such as 'W4A4'; the stored type of a float part
    :param weights: how many the model has there
    :param stored_bytes: of its tensors
    """

    name: str
    width: str
    weights: int
    stored_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Everything that is stored of it, over its weights."""
        return 8 * self.stored_bytes / self.weights if self.weights else 0.0


def list_parts(facts: CheckpointFacts, *, linears: bool = False) -> list[Part]:
    """The parts in the model's order.

    :param linears: whether every quantized linear is a part of its own
    """
    model: Any = facts.model
    blocks = {id(block) for block in model.blocks()}
    prefixes = [name for name, module in model.named_modules() if id(module) in blocks]
    quantized = {} if facts.artifact is None else facts.artifact.structure.linears
    if linears:
        prefixes = [*quantized, *prefixes]

    def find_part(name: str) -> str:
        return next((prefix for prefix in prefixes if name.startswith(f"{prefix}.")), name.partition(".")[0])

    weights: dict[str, int] = {}
    for name, tensor in model.state_dict().items():
        weights[find_part(name)] = weights.get(find_part(name), 0) + tensor.numel()
    entries: dict[str, list[LinearEntry]] = {part: [] for part in weights}
    for name, entry in quantized.items():
        entries[find_part(f"{name}.weight")].append(entry)
    stored = dict.fromkeys(weights, 0)
    dtypes: dict[str, dict[str, None]] = {part: {} for part in weights}
    for name, (dtype, shape) in facts.tensors.items():
        part = find_part(name)
        if part in weights and not name.endswith(SHAPE_TENSOR):
            stored[part] += _BYTES.get(dtype, 0) * math.prod(shape)
            dtypes[part][dtype] = None
    # Of a block that is quantized, its linears say what it is, and not their scales or a norm beside them.
    return [Part(part, _say_widths(entries[part]) or ", ".join(dtypes[part]) or "-", weights[part], stored[part])
            for part in weights]


def list_facts(facts: CheckpointFacts) -> dict[str, str]:
    """What is told beside the table, by its heading."""
    artifact = facts.artifact
    told = {"family": facts.family, "recipe": "none, it is a float checkpoint" if artifact is None
            else artifact.recipe_name}
    if artifact is not None:
        origin = artifact.origin
        observations = "no observations" if not origin.observations else (
            f"{origin.observations} observations, sha256 {origin.observations_sha256}")
        told |= {"rotation": _say_rotation(artifact), "calibration": observations, "made from": origin.checkpoint,
                 **{f"  {name}": f"sha256 {value}" for name, value in origin.sha256.items()},
                 "made by": f"sqap_vla_ros {origin.package}",
                 "try pruning": ", ".join(f"prune.{key}={value}" for key, value in artifact.pruning.items())}
        told |= {f"float: {name}": reason for name, reason in artifact.float_reasons.items()}
    return told


def build_parts_table(facts: CheckpointFacts, parts: list[Part]) -> Table:
    """One row for each part, and one for the files."""
    table = Table(title=str(facts.folder), title_justify="left")
    for heading in ("part", "stored as", "bits / weight", "MB"):
        table.add_column(heading, justify="left" if heading in ("part", "stored as") else "right")
    for part in parts:
        table.add_row(part.name, part.width, f"{part.bits_per_weight:.2f}", f"{part.stored_bytes / 1e6:.3f}")
    table.add_section()
    total = sum(facts.file_bytes.values())
    weights = sum(part.weights for part in parts)
    table.add_row("all files", "", f"{8 * total / weights:.2f}", f"{total / 1e6:.3f}")
    return table


def describe_facts(facts: CheckpointFacts, parts: list[Part]) -> dict[str, Any]:
    """The same as plain values."""
    artifact = facts.artifact
    values: dict[str, Any] = {
        "checkpoint": str(facts.folder), "family": facts.family, "compressed": artifact is not None,
        "recipe": None if artifact is None else artifact.recipe_name, "bytes": sum(facts.file_bytes.values()),
        "parts": {part.name: {"width": part.width, "bits_per_weight": round(part.bits_per_weight, 4),
                              "weights": part.weights, "bytes": part.stored_bytes} for part in parts}}
    if artifact is not None:
        entries = artifact.structure.linears.values()
        stored, weights = sum(entry.stored_bytes for entry in entries), sum(entry.weights for entry in entries)
        values |= {"weight_bytes": stored, "ratio": round(stored / (4 * weights), 6), "recipe_values": asdict(
            artifact.recipe), "origin": asdict(artifact.origin), "pruning": artifact.pruning,
            "float": artifact.float_reasons}
    return values


def _say_widths(entries: list[LinearEntry]) -> str:
    # Of rows with several widths, their mean over all of them.
    said = dict.fromkeys(entry.width for entry in entries if entry.rows_by_bits is None)
    for act_bits in dict.fromkeys(entry.act_bits for entry in entries if entry.rows_by_bits is not None):
        mixed = [entry for entry in entries if entry.rows_by_bits is not None and entry.act_bits == act_bits]
        bits = sum(width * count * entry.shape[1] for entry in mixed
                   for width, count in (entry.rows_by_bits or {}).items())
        said[f"W{bits / sum(entry.weights for entry in mixed):.2f}A{act_bits}"] = None
    return ", ".join(said)


def _say_rotation(artifact: Artifact) -> str:
    plan = artifact.recipe.rotation
    if plan is None:
        return "none"
    blocks = {"stream": plan.stream_block, "heads": plan.head_block, "down": plan.down_block}
    made = [name if blocks[name] is None else f"{name} in blocks of {blocks[name]}"
            for name in blocks if getattr(plan, name)]
    if any(step.size is not None for name, steps in artifact.structure.online.items() if name.endswith("qk_online")
           for step in steps):
        made.append("queries and keys")
    return f"seed {artifact.recipe.seed}: {', '.join(made) or 'nothing'}"
