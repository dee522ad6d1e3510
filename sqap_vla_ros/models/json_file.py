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

"""An object in a JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqap_vla_ros.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file.

    :raises CheckpointError: when the file is missing, damaged or holds something else
    """
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing; give a folder that holds all of a checkpoint's files")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' is not readable as JSON: {error}; copy it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"'{path}' must hold a JSON object, it holds {type(values).__name__}")
    return values
