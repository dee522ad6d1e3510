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

"""Parameter changes that the node must take, and such that it must refuse, one after the other."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rcl_interfaces.srv import SetParameters
from rclpy.client import Client
from rclpy.parameter import Parameter
from rclpy.task import Future

from sqap_vla_ros.config import Config, build_config
from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.ros.rig.judge import NONSENSE_TAKEN, Judge

_REFUSED: tuple[tuple[str, Any], ...] = (
    ("safety.max_linear_m_s", math.nan), ("safety.max_linear_m_s", -1.0), ("safety.max_linear_m_s", 1e9),
    ("safety.max_linear_m_s", "fast"), ("safety.max_image_age_s", math.inf), ("control.execute_steps", 0),
    ("control.command_hz", 10.0), ("model.recipe", "nonsense"), ("no.such_parameter", 1))


class Tampering:
    """One request at a time; what is in force at the end is what was at the beginning.

    :param client: of ~/set_parameters
    :param config: how the node was started
    :param judge: is told of other speed caps
    :param generator: chooses
    :param now_ns: system time
    """

    def __init__(self, client: Client, config: Config, judge: Judge, generator: random.Random,
                 now_ns: Callable[[], int]) -> None:
        self._client, self._judge, self._random, self._now_ns = client, judge, generator, now_ns
        self._config = self._begun = config
        self._asked: tuple[str, Any, Future] | None = None

    @property
    def pending(self) -> bool:
        """Whether a request is not answered yet."""
        self._take_answer()
        return self._asked is not None

    def tamper(self) -> None:
        """Ask for one more change if the last is answered."""
        if not self.pending:
            self._ask(*(self._random.choice(_REFUSED) if self._random.random() < 0.5 else self._choose_allowed()))

    def restore(self) -> bool:
        """Ask for what is not yet as it was at the beginning.

        :return: whether all is
        """
        if self.pending:
            return False
        for name in self._allowed():
            value = _read(self._begun, name)
            if _read(self._config, name) != value:
                self._ask(name, value)
                return False
        return True

    def _allowed(self) -> dict[str, Callable[[], Any]]:
        safety, draw = self._begun.safety, self._random
        return {"safety.max_linear_m_s": lambda: draw.uniform(0.01, 1.0) * safety.max_linear_m_s,
                "safety.max_angular_rad_s": lambda: draw.uniform(0.01, 1.0) * safety.max_angular_rad_s,
                "safety.max_image_age_s": lambda: draw.uniform(0.5, 1.0) * safety.max_image_age_s,
                "control.execute_steps": lambda: draw.randint(1, 4),
                "footprint.joined": lambda: draw.random() < 0.5}

    def _choose_allowed(self) -> tuple[str, Any]:
        name, value = self._random.choice(list(self._allowed().items()))
        return name, value()

    def _ask(self, name: str, value: Any) -> None:
        # What is no configuration will be refused.
        with suppress(ConfigError):
            self._loosen(build_config({name: value}, self._config))
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        self._asked = name, value, self._client.call_async(request)

    def _loosen(self, asked: Config) -> None:
        # Commands under looser caps may be here before the answer.
        now, then = self._config.safety, asked.safety
        self._judge.change_caps(max(now.max_linear_m_s, then.max_linear_m_s),
                                max(now.max_angular_rad_s, then.max_angular_rad_s), self._now_ns())

    def _take_answer(self) -> None:
        if self._asked is None or not self._asked[2].done():
            return
        (name, value, answer), self._asked = self._asked, None
        if answer.result().results[0].successful:
            if any(name == refused and value is wrong for refused, wrong in _REFUSED):
                self._judge.count(NONSENSE_TAKEN, f"parameter {name} was set to {value}")
                return
            self._config = build_config({name: value}, self._config)
        safety = self._config.safety
        self._judge.change_caps(safety.max_linear_m_s, safety.max_angular_rad_s, self._now_ns())


def _read(config: Config, name: str) -> Any:
    section, _, leaf = name.partition(".")
    return getattr(getattr(config, section), leaf)
