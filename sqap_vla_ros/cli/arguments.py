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

"""What several verbs read from the command line; a value that is not allowed is answered with what is."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Collection
from typing import Any

import yaml

from sqap_vla_ros.config import Config, iterate_knobs
from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.evaluation.methods import Method, parse_method, parse_methods


def read_number(kind: type[int] | type[float], low: float, high: float) -> Callable[[str], float]:
    """A reader of numbers from ``low`` to ``high``."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not allowed; take {'a whole' if kind is int else 'a'} number "
                                             f"from {low:g} to {high:g}")
        return value

    return read


def read_names(what: str, allowed: Collection[str], of: str = "") -> Callable[[str], tuple[str, ...]]:
    """A reader of comma-separated names, each allowed and none twice.

    :param what: one of them is, with its article, as 'an engine'
    :param of: said behind it where a name is unknown
    """

    def read(text: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(","))
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"'{name}' is no {what.partition(' ')[2]}{of}; allowed are "
                                                 f"{', '.join(allowed)}")
        if len(set(names)) != len(names):
            raise argparse.ArgumentTypeError(f"'{text}' names {what} twice")
        return names

    return read


def add_set_flag(parser: argparse.ArgumentParser, *parts: str) -> None:
    """``--set NAME=VALUE``, as often as wanted: a list of knobs and their values, which are not checked yet.

    :param parts: sections and single knobs that it takes, without those that a method says
    """
    allowed = [name for name, _, _ in iterate_knobs(Config())
               if (name.partition(".")[0] in parts or name in parts) and name not in Method("float").knobs]

    def read(text: str) -> tuple[str, Any]:
        name, equals, value = text.partition("=")
        if not equals or name not in allowed:
            raise argparse.ArgumentTypeError(f"'{text}' sets no knob; write NAME=VALUE, with a name of "
                                             f"{', '.join(allowed)}")
        try:
            return name, yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise argparse.ArgumentTypeError(f"'{value}' is no value of {name}: {error}") from error

    parser.add_argument("--set", type=read, action="append", default=[], metavar="NAME=VALUE",
                        help="a knob by its dotted name, as in a parameter file; may be given several times, for "
                             f"example --set prune.layer=2 (knobs of {', '.join(parts)}; default: as the node)")


def add_knob_flags(parser: argparse.ArgumentParser, **flags: str) -> None:
    """A flag for each of some knobs, with its meaning, its limits and its default.

    :param flags: dotted names of knobs by the words of their flags; a value is kept under the knob's name
    """
    knobs = {name: (knob, value) for name, knob, value in iterate_knobs(Config())}
    for flag, name in flags.items():
        knob, value = knobs[name]
        kind: Any = type(value)
        if knob.minimum is not None and knob.maximum is not None:
            kind = read_number(kind, knob.minimum, knob.maximum)
        meaning = f"{knob.description.removesuffix('.')}{f': {knob.choices_text}' if knob.choices else ''}"
        parser.add_argument(f"--{flag}", dest=name, type=kind, choices=knob.choices or None, default=value,
                            metavar="NAME" if isinstance(value, str) else "N",
                            help=f"{meaning[0].lower() if meaning[1].islower() else meaning[0]}{meaning[1:]} "
                                 f"(default: {value if value != '' else 'empty'})")


def read_prune(text: str) -> Method:
    """RULE@SHARE, or 'none': a method whose recipe is arbitrary, since another flag says it."""
    try:
        return parse_method("w4a4" if text == "none" else f"w4a4+{text}")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(f"'{text}' cannot be pruned by: {error}") from error


def count_cores() -> int:
    """Cores that this process may use; a container or taskset may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_method(text: str) -> Method:
    """A method by its name."""
    try:
        return parse_method(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def read_methods(text: str) -> tuple[Method, ...]:
    """Methods by their names, comma-separated."""
    try:
        return parse_methods(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
