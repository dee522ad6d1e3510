"""API-compatible subsets of ROS Python packages that no package registry carries."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


def import_ros_module(name: str) -> ModuleType:
    """Import a ROS module, or its stand-in from this package where it is not installed.

    An installed module that fails to import is an error, never a reason to fall back.

    :param name: ``tf2_ros`` or ``cv_bridge``
    """
    installed = importlib.util.find_spec(name) is not None
    return importlib.import_module(name if installed else f"{__name__}.{name}")
