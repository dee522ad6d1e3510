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

"""Reads what a sweep is from a YAML file, and refuses in one sentence what it cannot be."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sqap_vla_ros.bags.sweep_plan import DECIDED, Sweep
from sqap_vla_ros.config import build_config, iterate_knobs
from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.evaluation.methods import FLOAT, Method, parse_method
from sqap_vla_ros.parameter_file import read_parameter_file

_STORAGE = (".mcap", ".db3", ".mcap.zstd", ".db3.zstd")
_KEYS: dict[str, tuple[type, type | None, str]] = {
    "checkpoint": (str, None, "a folder, or demo"),
    "calibration": (str, None, "a folder of observations, as `sqap observe` writes one"),
    "methods": (list, str, "a list of recipes or methods, like [float, w4a4]"),
    "rules": (list, str, "a list of token rules, like [sqap, fastv]"),
    "ratios": (list, float, "a list of the shares of tokens that are dropped, like [0, 0.4]"),
    "bags": (list, str, "a list of paths and globs, like [bags/*]"),
    "seeds": (list, int, "a list of whole numbers, like [0, 1]"),
    "against": (str, None, "a method, like float, or '' for none"),
    "params_file": (str, None, "the path of a node's parameter file"),
    "knobs": (dict, None, "knobs by dotted name, like {prune.layer: 2}"),
    "instruction": (str, None, "a text"),
    "namespace": (str, None, "the namespace that the node would have"),
    "remap": (dict, str, "topics by topics, like {camera/image_raw: /cam0/image}"),
    "limit": (int, None, "a number of pictures per bag, 0 for all"),
}
_NEEDED = ("methods", "bags")


def read_sweep(path: Path) -> Sweep:
    """Read a sweep; relative paths in it begin at its own folder.

    :raises ConfigError: naming the key that cannot be used, and what it takes
    """
    # A key with nothing behind it.
    values: dict[str, Any] = {name: "" if value is None else value for name, value in _read_yaml(path).items()}
    _check_keys(path, values)
    folder = path.resolve().parent
    try:
        knobs, checkpoint = _read_knobs(folder, values)
        against = values.get("against", FLOAT)
        sweep = Sweep(
            checkpoint=_find_checkpoint(folder, values.get("checkpoint", checkpoint)),
            methods=_expand_methods(values["methods"], values.get("rules", ["sqap"]), values.get("ratios", [0.0])),
            bags=name_bags(find_bags(folder, values["bags"])), seeds=tuple(values.get("seeds", (0,))),
            against=parse_method(against) if against else None,
            calibration=folder / values["calibration"] if "calibration" in values else None, knobs=knobs,
            **{name: values[name] for name in ("instruction", "namespace", "remap", "limit") if name in values})
        for method in sweep.all_methods:
            for seed in sweep.seeds:
                build_config({**knobs, **method.knobs, "prune.seed": seed})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return sweep


def find_bags(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The bags that paths and globs name, in their order; of a glob only what looks like a bag.

    :param folder: where relative ones begin
    :raises ConfigError: for a path that does not exist, a glob that matches no bag, or a bag that is named twice
    """
    found: dict[Path, str] = {}
    for pattern in patterns:
        whole = str(folder / Path(pattern).expanduser())
        if glob.has_magic(pattern):
            found_by_glob = glob.glob(str(Path(pattern).expanduser()), root_dir=folder, recursive=True)
            matches = [folder / name for name in sorted(found_by_glob) if _looks_like_bag(folder / name)]
            # The files of a bag that is a folder are no bags of their own.
            matches = [path for path in matches if path.is_dir() or path.parent not in matches]
        else:
            matches = [Path(whole)] if Path(whole).exists() else []
        if not matches:
            raise ConfigError(f"bags: '{pattern}' names no bag below {folder}; give the path of a bag's folder, of a "
                              ".mcap or .db3 file, or a glob like bags/*")
        for match in map(Path.resolve, matches):
            if match in found:
                raise ConfigError(f"bags: {match} is named twice, by '{found[match]}' and '{pattern}'; name it once")
            found[match] = pattern
    return list(found)


def name_bags(paths: Sequence[Path]) -> dict[str, Path]:
    """Each bag by the end of its path, as long as it takes to tell all apart, in letters that a file's name may have.

    :raises ConfigError: when even their whole paths read the same so
    """
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        named = {re.sub(r"[^\w.+-]+", "-", "-".join(path.parts[-length:])).strip("-"): path for path in paths}
        if len(named) == len(paths):
            return named
    raise ConfigError(f"bags: the names of {', '.join(map(str, paths))} differ in special characters only; rename one")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys and values, got {type(values).__name__}; take a file of config/ as "
                          "an example")
    return values


def _check_keys(path: Path, values: Mapping[str, Any]) -> None:
    for name in values:
        if name not in _KEYS:
            raise ConfigError(f"{path}: unknown key '{name}'; known are {', '.join(_KEYS)}")
    for name in _NEEDED:
        if not values.get(name):
            raise ConfigError(f"{path}: {name} is missing or empty; give {_KEYS[name][2]}")
    for name, value in values.items():
        kind, item, wanted = _KEYS[name]
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        if not _is(value, kind) or value == [] or (item is not None and not all(_is(one, item) for one in items)):
            raise ConfigError(f"{path}: {name} is {value!r}; it must be {wanted}")
        if kind is list and len(set(items)) != len(items):
            raise ConfigError(f"{path}: {name} is {value!r}, which names something twice; name each once")
    if values.get("limit", 0) < 0:
        raise ConfigError(f"{path}: limit is {values['limit']}; it must be {_KEYS['limit'][2]}")


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)


def _expand_methods(names: Sequence[str], rules: Sequence[str], ratios: Sequence[float]) -> tuple[Method, ...]:
    methods: dict[str, Method] = {}
    for name in names:
        written = parse_method(name)
        if written.recipe == FLOAT or written.rule != "none":
            crossed = [written]
        else:
            crossed = [Method(written.recipe, rule, float(ratio)) if ratio and rule != "none"
                       else Method(written.recipe) for rule in rules for ratio in ratios]
        for method in crossed:
            build_config(method.knobs)
            methods.setdefault(method.name, method)
    return tuple(methods.values())


def _read_knobs(folder: Path, values: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    # And the checkpoint that a parameter file names, which may stand in for the sweep's own key.
    told = values.get("knobs", {})
    for name in DECIDED:
        if name in told:
            raise ConfigError(f"knobs: {name} is for the sweep to say, by checkpoint, methods, rules, ratios and "
                              "seeds; leave it out")
    file = folder / values["params_file"] if "params_file" in values else None
    knobs = {**(read_parameter_file(file, values.get("namespace", "")) if file else {}), **told}
    config = {name: value for name, _, value in iterate_knobs(build_config(knobs))}
    return {name: list(config[name]) if isinstance(config[name], tuple) else config[name]
            for name in knobs if name not in DECIDED}, config["model.checkpoint"]


def _find_checkpoint(folder: Path, name: str) -> str:
    # A name in the package is no path.
    path = folder / Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _looks_like_bag(path: Path) -> bool:
    if path.is_dir():
        return (path / "metadata.yaml").is_file() or any(entry.name.endswith(_STORAGE) for entry in path.iterdir())
    return path.name.endswith(_STORAGE)
