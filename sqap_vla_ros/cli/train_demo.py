"""`sqap train-demo`; all of it is in :mod:`sqap_vla_ros.training.train`."""

from __future__ import annotations

from sqap_vla_ros.training.train import add_arguments, run

__all__ = ["add_arguments", "run"]
