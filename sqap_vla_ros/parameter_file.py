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

"""The node's parameter file, as ``ros2 run ... --params-file`` takes it, read without ROS."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sqap_vla_ros.errors import ConfigError

_NODE = "policy_node"
# Parameters of the node that are no knobs.
_OTHERS = ("use_sim_time", "autostart")


def read_parameter_file(path: Path, namespace: str = "") -> dict[str, Any]:
    """The knobs of a file by dotted name, not checked yet; later entries of the file go before earlier ones.

    :param namespace: of the node; entries of nodes in others are left out
    :raises ConfigError: when it cannot be read, or has nothing for ``policy_node`` there
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"the parameter file {path} cannot be read: {reason}") from error
    node = "/".join(part for part in (namespace.strip("/"), _NODE) if part)
    entries = [entry for name, entry in (content.items() if isinstance(content, Mapping) else ())
               if _matches(str(name), node)]
    if not entries or not all(isinstance(entry, Mapping) and isinstance(entry.get("ros__parameters"), Mapping)
                              for entry in entries):
        raise ConfigError(f"{path} sets no parameter of {node}; below '{node}:' or '/**:' must be 'ros__parameters:', "
                          "and below that the knobs, as in config/policy.yaml")
    values: dict[str, Any] = {}
    for entry in entries:
        values |= dict(_flatten(entry["ros__parameters"]))
    return {name: value for name, value in values.items()
            if name not in _OTHERS and not name.startswith("qos_overrides.")}


def _matches(pattern: str, node: str) -> bool:
    # '**' stands for any number of names, '*' for one, as rcl reads them.
    parts = [".*" if part == "**" else "[^/]+" if part == "*" else re.escape(part)
             for part in pattern.strip("/").split("/")]
    return re.fullmatch("/".join(parts).replace(".*/", "(?:.*/)?"), node) is not None


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
