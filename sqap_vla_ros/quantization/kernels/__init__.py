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
