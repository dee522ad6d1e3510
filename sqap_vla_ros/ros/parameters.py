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

"""The knobs of ``config.py`` as ROS parameters: same names, types, ranges and sentences.

A knob marked read-only may be set until the node is configured, and again after cleanup; the others at any time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from sqap_vla_ros.config import Config, build_config, iterate_knobs
from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.knobs import Knob

_INT_LIMIT = 2**63 - 1


def declare_parameters(node: Node, defaults: Config | None = None) -> None:
    """Declare every knob.

    :param node: where
    :param defaults: values of parameters that nobody overrides
    :raises rclpy.exceptions.ParameterException: when an override has another type or is out of range
    """
    for name, knob, value in iterate_knobs(defaults or Config()):
        node.declare_parameter(name, list(value) if isinstance(value, tuple) else value,
                               make_descriptor(knob, value))


def make_descriptor(knob: Knob, value: Any) -> ParameterDescriptor:
    """What ``ros2 param describe`` shows, and rclpy checks, of a knob with this default."""
    constraints = [f"one of {knob.choices_text}"] if knob.choices else []
    if knob.read_only:
        constraints.append("fixed while the node is configured")
    descriptor = ParameterDescriptor(description=knob.description, additional_constraints="; ".join(constraints))
    if knob.minimum is None and knob.maximum is None:
        return descriptor
    # Arrays have their items checked by build_config: rclpy knows ranges of single numbers only.
    if isinstance(value, float):
        descriptor.floating_point_range = [FloatingPointRange(
            from_value=-sys.float_info.max if knob.minimum is None else float(knob.minimum),
            to_value=sys.float_info.max if knob.maximum is None else float(knob.maximum))]
    elif isinstance(value, int):
        descriptor.integer_range = [IntegerRange(
            from_value=-_INT_LIMIT if knob.minimum is None else int(knob.minimum),
            to_value=_INT_LIMIT if knob.maximum is None else int(knob.maximum))]
    return descriptor


def read_config(node: Node) -> Config:
    """The configuration that the node's parameters describe.

    :raises ConfigError: when two knobs contradict each other, or one is not allowed
    """
    return build_config({name: node.get_parameter(name).value for name, _, _ in iterate_knobs(Config())})


def change_config(config: Config, parameters: Iterable[Parameter], *, configured: bool) -> Config:
    """The configuration after a request to set parameters.

    :param config: the one in force
    :param parameters: what is to be set; parameters that are no knobs are left alone
    :param configured: whether the node is past configure
    :raises ConfigError: when one is not allowed, or fixed by now
    """
    knobs = {name: knob for name, knob, _ in iterate_knobs(config)}
    changes = {item.name: item.value for item in parameters if item.name in knobs}
    fixed = [name for name in changes if knobs[name].read_only]
    if configured and fixed:
        raise ConfigError(f"{', '.join(fixed)} cannot change while the node is configured; "
                          "deactivate and clean up first")
    return build_config(changes, config)


def differ_in_actuation_alone(before: Config, changed: Config) -> bool:
    """Whether two configurations are the same, but for ``control.enable_actuation``."""
    control = replace(changed.control, enable_actuation=before.control.enable_actuation)
    return replace(changed, control=control) == before
