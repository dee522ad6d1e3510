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

"""What policies made of a bag, as a bag beside it: to be played, or looked at in Foxglove with the pictures' stamps."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage

from sqap_vla_ros.bags.bag_writer import BagWriter
from sqap_vla_ros.bags.looks import RECORDED
from sqap_vla_ros.data import ActionChunk
from sqap_vla_ros.errors import ConfigError, SqapError
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.codecs import encode_twist, make_header
from sqap_vla_ros.ros.command_codecs import ToolPose, encode_chunk, encode_path
from sqap_vla_ros.ros.interface import Endpoint

_OVERLAY = replace(interface.OVERLAY, name="overlay/compressed", type=CompressedImage)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9]+")


@dataclass(frozen=True)
class Velocity:
    """A commanded velocity.

    :param linear: (3,) m/s
    :param angular: (3,) rad/s
    :param frame_id: in which it is given
    """

    linear: Sequence[float]
    angular: Sequence[float]
    frame_id: str


@dataclass(frozen=True)
class Route:
    """Where a chunk leads.

    :param chunk: its steps count from the picture's stamp
    :param poses: T poses of the tool in the base frame, one after each step
    :param base_frame: name
    :param tool_frame: name
    """

    chunk: ActionChunk
    poses: Sequence[ToolPose]
    base_frame: str
    tool_frame: str


class ResultBag:
    """Context manager that leaves a rosbag2 folder of MCAP storage, or nothing when what is done inside fails.

    :param path: the folder; one of an earlier run is replaced, at the end
    :raises SqapError: when it cannot be written, here and in every method
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # The file inside is named as the folder, so the folder must have its name already.
        self._unfinished = path.with_name(f".{path.name}-unfinished")

    def __enter__(self) -> ResultBag:
        try:
            shutil.rmtree(self._unfinished, ignore_errors=True)
            self._unfinished.mkdir(parents=True)
        except OSError as error:
            raise SqapError(f"{self._unfinished} cannot be written: {error.strerror}; take another folder") from error
        self._bag = BagWriter(self._unfinished / self._path.name)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            if kind is not None:
                self._bag.discard()
                return
            self._bag.close()
            shutil.rmtree(self._path, ignore_errors=True)
            if self._bag.counts.total():
                (self._unfinished / self._path.name).rename(self._path)
        except OSError as failure:
            raise SqapError(f"{self._path} cannot be written: {failure.strerror}; take another folder") from failure
        finally:
            shutil.rmtree(self._unfinished, ignore_errors=True)

    def write_look(self, label: str, stamp_ns: int, *, velocity: Velocity | None = None, route: Route | None = None,
                   latency: DiagnosticArray | None = None, overlay_jpeg: bytes | None = None,
                   frame_id: str = "") -> None:
        """What one policy made of one set of pictures; what there is none of is left out.

        :param label: of the policy; topics are below ``/replay/`` and its name
        :param stamp_ns: the pictures' stamp, which all messages bear and are recorded at
        :param latency: as :meth:`sqap_vla_ros.ros.health.Health.latency` makes it; only its header is made anew
        :param overlay_jpeg: the picture with tokens drawn in
        :param frame_id: of that picture
        """
        if velocity is not None:
            self._write(label, interface.TWIST, stamp_ns,
                        encode_twist(velocity.linear, velocity.angular, stamp_ns, velocity.frame_id))
        if route is not None:
            chunk = replace(route.chunk, stamp_ns=stamp_ns)
            self._write(label, interface.CHUNK, stamp_ns,
                        encode_chunk(chunk, route.poses, route.base_frame, route.tool_frame))
            self._write(label, interface.PATH, stamp_ns, encode_path(chunk, route.poses, route.base_frame))
        if latency is not None:
            self._write(label, interface.LATENCY, stamp_ns,
                        DiagnosticArray(header=make_header(stamp_ns, ""), status=latency.status))
        if overlay_jpeg is not None:
            self._write(label, _OVERLAY, stamp_ns, CompressedImage(
                header=make_header(stamp_ns, frame_id), format="rgb8; jpeg compressed bgr8", data=overlay_jpeg))

    def _write(self, label: str, endpoint: Endpoint, stamp_ns: int, message: Any) -> None:
        topic = f"/replay/{name_label(label)}/{endpoint.name.removeprefix('~/')}"
        if topic not in self._bag.counts:
            self._bag.add_topic(topic, endpoint.type_name, [interface.source_profile(endpoint)])
        self._bag.write(topic, stamp_ns, serialize_message(message))


def check_labels(labels: Iterable[str]) -> None:
    """Tell before anything is done that labels cannot be told apart in ROS, or are taken.

    :raises ConfigError: naming them
    """
    names: dict[str, str] = {}
    for label in labels:
        if label == RECORDED:
            raise ConfigError(f"no policy may be called '{RECORDED}', which is what the bag itself holds; rename its "
                              "folder")
        other = names.setdefault(name_label(label), label)
        if other != label:
            raise ConfigError(f"policies '{label}' and '{other}' would both be '{name_label(label)}' in ROS; name one "
                              "of them otherwise")


def name_label(label: str) -> str:
    """A label as a part of a topic's name: letters, digits and single underscores, a letter first.

    :raises ConfigError: when nothing is left of it
    """
    name = _NOT_IN_NAMES.sub("_", label).strip("_")
    if not name:
        raise ConfigError(f"policy '{label}' has no letter or digit in its name")
    return name if name[0].isalpha() else f"policy_{name}"
