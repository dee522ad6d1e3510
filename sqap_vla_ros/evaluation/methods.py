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

"""A method is a recipe and a token rule in one word: ``float``, ``w4a4``, ``w4a4+sqap@0.4``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqap_vla_ros.config import build_config
from sqap_vla_ros.errors import ConfigError

# What is no recipe: a float checkpoint as it is, and a compressed one as it is.
FLOAT, STORED = "float", "stored"
_PATTERN = re.compile(r"(?P<recipe>[a-z0-9-]+)(\+(?P<rule>[a-z-]+)@(?P<share>[0-9.]+))?")


@dataclass(frozen=True)
class Method:
    """What runs.

    :param recipe: quantization recipe; 'float' for none
    :param rule: which tokens stay; 'none' for all
    :param pruned_ratio: share of the visual tokens dropped
    """

    recipe: str
    rule: str = "none"
    pruned_ratio: float = 0.0

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        return self.recipe if self.rule == "none" else f"{self.recipe}+{self.rule}@{self.pruned_ratio:g}"

    @property
    def knobs(self) -> dict[str, str | float]:
        """The knobs it stands for, by dotted name."""
        return {"model.recipe": self.recipe, "prune.rule": self.rule, "prune.pruned_ratio": self.pruned_ratio}


def parse_method(text: str) -> Method:
    """Read ``RECIPE[+RULE@SHARE]``.

    :raises ConfigError: when it is written otherwise, or names something that does not exist
    """
    match = _PATTERN.fullmatch(text)
    try:
        share = float(match["share"] or 0.0) if match else 0.0
    except ValueError:
        match = None
    if match is None:
        raise ConfigError(f"'{text}' is no method; write RECIPE or RECIPE+RULE@SHARE, "
                          "for example float, w4a4 or w4a4+sqap@0.4")
    method = Method(match["recipe"], match["rule"] or "none", share)
    build_config(method.knobs)
    return method


def parse_methods(text: str) -> tuple[Method, ...]:
    """Read a comma-separated list.

    :raises ConfigError: when it is empty, or one is written twice or wrongly
    """
    methods = tuple(parse_method(part.strip()) for part in text.split(","))
    # By their names, under which results are kept: '+none@0.4' drops nothing, and shares are written with six digits.
    if len({method.name for method in methods}) != len(methods):
        raise ConfigError(f"'{text}' names a method twice")
    return methods
