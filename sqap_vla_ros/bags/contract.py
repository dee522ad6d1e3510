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

"""Which topics of a bag the node would listen to, by the knobs of the node itself; what a bag holds of them.

Names are those of :mod:`~sqap_vla_ros.ros.interface`, in a namespace and remapped as ROS would.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqap_vla_ros.bags.reading import TopicFacts
from sqap_vla_ros.config import Config
from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.interface import Endpoint


@dataclass(frozen=True)
class Wanted:
    """One topic that a replay reads.

    :param name: absolute
    :param type_name: of its messages
    :param without: what cannot be done where the bag lacks it; empty where nothing is lost
    :param required: whether nothing at all can be done then
    """

    name: str
    type_name: str
    without: str
    required: bool = False


@dataclass(frozen=True)
class Names:
    """How relative names become those of a bag.

    :param namespace: of the node; empty or '/' for the root
    :param remap: names to other names, both as the node has them or absolute
    """

    namespace: str
    remap: Mapping[str, str]

    def resolve(self, name: str) -> str:
        """The absolute name of a topic of the node.

        ``~/`` is below the node's own name.
        """
        absolute = self._expand(name)
        for old, new in self.remap.items():
            if self._expand(old) == absolute:
                return self._expand(new)
        return absolute

    def _expand(self, name: str) -> str:
        name = name.replace("~", "policy_node", 1) if name.startswith("~/") else name
        if name.startswith("/"):
            return name
        return "/" + "/".join(part for part in (self.namespace.strip("/"), name) if part)


def parse_remap(words: Collection[str]) -> dict[str, str]:
    """Read ``FROM:=TO``, as ROS takes it.

    :raises ConfigError: when one is written otherwise
    """
    remap: dict[str, str] = {}
    for word in words:
        old, sign, new = word.partition(":=")
        if not (sign and old and new):
            raise ConfigError(f"'{word}' remaps nothing; write FROM:=TO, for example "
                              "camera/image_raw:=/wrist/color/image_raw")
        remap[old] = new
    return remap


def list_wanted(config: Config, names: Names, instruction: str) -> list[Wanted]:
    """What a replay reads.

    :param instruction: that is given instead of the bag's; empty for the bag's own
    """
    wanted = []
    compressed = config.input.transport == "compressed"
    for camera in config.input.cameras:
        picture = interface.of_camera(interface.IMAGE_COMPRESSED if compressed else interface.IMAGE, camera)
        info = interface.of_camera(interface.CAMERA_INFO, camera)
        wanted += [_want(names, picture, "there is nothing to look at", required=True),
                   _want(names, info, "the robot cannot be found in the picture")]
    wanted += [_want(names, interface.TF, "the robot cannot be found in the picture"),
               _want(names, interface.TF_STATIC, "" if config.footprint.extrinsics_frame else
                     "frames that are fixed to another are not known")]
    if not instruction:
        wanted.append(_want(names, interface.INSTRUCTION, "there is no instruction; give --instruction", required=True))
    if config.input.state != "none":
        wanted.append(_want(names, interface.JOINT_STATES, "the robot's state is not known", required=True))
    else:
        wanted.append(_want(names, interface.JOINT_STATES, "what the gripper did is not known"))
    return [*wanted, _want(names, interface.TWIST, "actions are compared with no recorded ones"),
            _want(names, interface.GRIPPER_TRAJECTORY, ""), _want(names, interface.CLOCK, "")]


def find_missing(wanted: Collection[Wanted], topics: Mapping[str, TopicFacts]) -> list[tuple[Wanted, str]]:
    """The topics that a bag lacks, or holds as another type, each with a sentence that says what to do."""
    missing = []
    for item in wanted:
        facts = topics.get(item.name)
        if facts is not None and facts.type_name == item.type_name and facts.count:
            continue
        if facts is not None and facts.type_name != item.type_name:
            what = f"{item.name} holds {facts.type_name}, not {item.type_name}"
        else:
            what = f"{item.name} is empty" if facts is not None else f"{item.name} is not there"
        missing.append((item, f"{what}{_suggest(item, topics)}"))
    return missing


def _want(names: Names, endpoint: Endpoint, without: str, *, required: bool = False) -> Wanted:
    return Wanted(names.resolve(endpoint.name), endpoint.type_name, without, required)


def _suggest(item: Wanted, topics: Mapping[str, TopicFacts]) -> str:
    others = [name for name, facts in topics.items()
              if facts.type_name == item.type_name and facts.count and name != item.name]
    if not others:
        return ""
    return f"; of its type there {'is' if len(others) == 1 else 'are'} {', '.join(others)}: --remap " \
           f"{item.name}:={others[0]}"
