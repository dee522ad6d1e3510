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
