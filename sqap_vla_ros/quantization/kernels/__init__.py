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

"""The integer matrix product behind one signature, with several engines that agree bit for bit."""

from __future__ import annotations

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.quantization.kernels import cpu, reference
from sqap_vla_ros.quantization.kernels.engine import Engine

ENGINES = {engine.name: engine for engine in (reference.ENGINE, cpu.ENGINE)}


def get_engine(name: str) -> Engine:
    """Find an engine by name; nothing else is tried when it is not there.

    :raises ConfigError: for an unknown name
    """
    if name not in ENGINES:
        raise ConfigError(f"unknown engine '{name}'; known are {', '.join(ENGINES)}")
    return ENGINES[name]
