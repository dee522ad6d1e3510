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

"""One look of a replay as it is kept on disk, a line of JSON: what was seen, recorded, and done by each policy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# What stands where a policy's label stands, for what the bag itself holds.
RECORDED = "recorded"


@dataclass(frozen=True)
class Answer:
    """What one policy made of one look.

    :param steps: (T, 7) nested lists; columns are :data:`~sqap_vla_ros.data.ACTION_NAMES`: m and rad for one step in
        the base frame, gripper 0 (closed) to 1 (open)
    :param milliseconds: wall time by stage
    :param kept: visual tokens that stayed, of all cameras
    :param total: visual tokens there were
    :param rules: how many of the kept ones each rule kept, by its name in lower case
    :param gripper_kept: share of the tokens that show the protected frames which stayed; None where it is not known
        where those are
    """

    steps: list[list[float]]
    milliseconds: dict[str, float]
    kept: int
    total: int
    rules: dict[str, int]
    gripper_kept: float | None = None


@dataclass(frozen=True)
class LookRecord:
    """One complete set of pictures of the bag.

    :param index: of the set, from 0
    :param stamp_ns: the oldest of the pictures' stamps
    :param log_ns: when the last of them was recorded
    :param instruction: in force; empty where none was
    :param tf: what TF knew of the moment: 'exact', 'latest', 'none' or 'unasked', the worst of all cameras
    :param no_protection: why the robot was not protected; empty where it was
    :param refused: why the policy was not asked; empty where it was
    :param frame_id: of the first camera's picture
    :param tool: (7,) the tool in the base frame, x, y, z in m and the quaternion x, y, z, w; None where TF did not know
    :param recorded: (7,) the action that was recorded for the step that begins with this picture; None where none was,
        a gripper of None where only that is not known
    :param answers: by the policy's label
    """

    index: int
    stamp_ns: int
    log_ns: int
    instruction: str
    tf: str
    no_protection: str = ""
    refused: str = ""
    frame_id: str = ""
    tool: list[float] | None = None
    recorded: list[float | None] | None = None
    answers: dict[str, Answer] = field(default_factory=dict)

    def to_line(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))


def read_look(line: str) -> LookRecord:
    """What :meth:`LookRecord.to_line` has written.

    :raises ValueError: when the line is not whole
    """
    values: Mapping[str, Any] = json.loads(line)
    try:
        answers = {label: Answer(**answer) for label, answer in values["answers"].items()}
        return LookRecord(**{**values, "answers": answers})
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not the line of a look: {error}") from error
