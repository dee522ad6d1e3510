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

"""``quantization_config`` in compressed-tensors' layout, for readers that know nothing else.

It covers every linear whose rows have one width: a reader unpacks them to the very numbers that are multiplied here.
What it cannot say is in ``NOTES``, and whatever a model needs to run is in the artifact's own section.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from sqap_vla_ros.quantization.integer import FLOAT_BITS
from sqap_vla_ros.quantization.quantize import Quantizable
from sqap_vla_ros.quantization.recipe import Recipe
from sqap_vla_ros.quantization.rotation import RotationSites
from sqap_vla_ros.quantization.structure import Structure

# What the public format cannot express, and when that matters.
NOTES = {
    "rotation": "transform_config names the rotations' places and sizes. Those of weights are folded in already. The "
                "matrices of online ones are not stored: sqap.structure.online has size, seed and block of each.",
    "clipping": "A token's scale is act_clip_ratio times its largest magnitude over the largest code, 7 or 127, see "
                "sqap.structure.linears; the public format has no field for that.",
    "mixed": "Linears with rows_by_bits have rows of several widths, which the public format cannot express. It "
             "ignores them; their tensors are row_bits, packed_2, packed_4, packed_8, weight_scale and wide (bfloat16 "
             "rows): each row stands, in order, among those of its width, and the scales go by rising width.",
    "queries": "Queries and keys are rounded behind the rotary embedding with one scale per head and token, see bits "
               "in sqap.structure.online.",
}


def describe_publicly(model: Quantizable, recipe: Recipe, structure: Structure) -> dict[str, Any]:
    """The values of ``quantization_config``.

    :param model: quantized
    :param recipe: by which
    :param structure: what became of it
    """
    groups: dict[tuple[int, int, int | None], list[str]] = {}
    for name, entry in structure.linears.items():
        if entry.weight_bits is not None:
            groups.setdefault((entry.weight_bits, entry.act_bits, entry.group_size), []).append(name)
    covered = {name for names in groups.values() for name in names}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "config_groups": {f"group_{index}": _describe_group(names, *widths)
                          for index, (widths, names) in enumerate(groups.items())},
        "ignore": [name for name, module in model.named_modules()
                   if (isinstance(module, nn.Linear) or name in structure.linears) and name not in covered],
        "transform_config": {"config_groups": _describe_rotations(model, recipe, structure)},
    }


def choose_notes(recipe: Recipe, structure: Structure) -> list[str]:
    """Those of ``NOTES`` that matter to this artifact."""
    entries = structure.linears.values()
    matters = {"rotation": recipe.rotation is not None,
               "clipping": any(entry.act_bits != FLOAT_BITS for entry in entries),
               "mixed": any(entry.weight_bits is None for entry in entries), "queries": recipe.qk_bits is not None}
    return [note for key, note in NOTES.items() if matters[key]]


def _describe_group(names: list[str], weight_bits: int, act_bits: int, group_size: int | None) -> dict[str, Any]:
    def describe_numbers(bits: int, strategy: str, size: int | None, *, dynamic: bool) -> dict[str, Any]:
        return {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy, "group_size": size,
                "dynamic": dynamic}

    strategy = "channel" if group_size is None else "group"
    return {"targets": names, "weights": describe_numbers(weight_bits, strategy, group_size, dynamic=False),
            "input_activations": None if act_bits == FLOAT_BITS
            else describe_numbers(act_bits, "token", None, dynamic=True),
            "output_activations": None}


def _describe_rotations(model: Quantizable, recipe: Recipe, structure: Structure) -> dict[str, Any]:
    # Every layer's rotation has signs of its own, and within one group of this format all are the same.
    plan, sites = recipe.rotation, model.rotation_sites()
    if plan is None:
        return {}
    names = {id(part): name for name, part in model.named_modules()}
    groups = {}
    if plan.stream:
        groups["stream"] = _describe_transform(plan.stream_block, [
            (_name_embeddings(model, sites) + [names[id(linear)] for linear in sites.writers], "weight_output", False),
            ([names[id(linear)] for linear in sites.all_readers], "weight_input", True)])
    for index, attention in enumerate(sites.attentions):
        name = names[id(attention)]
        if plan.heads:
            groups[f"heads_{index}"] = _describe_transform(plan.head_block or attention.head_dim, [
                ([f"{name}.v_proj"], "weight_output", False), ([f"{name}.o_proj"], "weight_input", True)])
        if any(step.size is not None for step in structure.online.get(f"{name}.qk_online", ())):
            groups[f"queries_keys_{index}"] = _describe_transform(plan.head_block or attention.head_dim, [
                ([name], "q_attn", False), ([name], "k_cache", False)])
    for index, mlp in enumerate(sites.mlps):
        target = f"{names[id(mlp)]}.down_proj"
        if plan.down:
            groups[f"down_{index}"] = _describe_transform(plan.down_block, [
                ([target], "input", False), ([target], "weight_input", True)])
    return groups


def _describe_transform(block: int | None, places: Sequence[tuple[list[str], str, bool]]) -> dict[str, Any]:
    return {"type": "random-hadamard", "randomize": False, "requires_grad": False, "head_dim": block,
            "precision": "torch.float32",
            "apply": [{"targets": targets, "location": location, "inverse": inverse, "ignore": []}
                      for targets, location, inverse in places]}


def _name_embeddings(model: Quantizable, sites: RotationSites) -> list[str]:
    wanted = {id(parameter) for parameter in sites.embeddings}
    return [name for name, module in model.named_modules()
            if wanted.intersection(map(id, module.parameters(recurse=False)))]
