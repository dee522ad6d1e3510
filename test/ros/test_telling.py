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

import math

import numpy as np
import pytest

from sqap_vla_ros.data import ActionChunk
from sqap_vla_ros.knobs import ControlKnobs
from sqap_vla_ros.ros import codecs, interface
from sqap_vla_ros.ros.telling import ChunkTeller

STAMP_NS, STEP_NS = 7_950_000_000, 100_000_000
# A quarter turn about z, in which the tool already is.
TOOL = (np.array([0.5, 0.1, 0.3]), np.array([0.0, 0.0, math.sqrt(0.5), math.sqrt(0.5)]))
STEPS = np.array([[0.02, 0.0, 0.0, 0.0, 0.0, 0.1, 1.0], [0.0, -0.01, 0.03, 0.0, 0.0, -0.3, 0.0]])
POSITIONS = [(0.52, 0.1, 0.3), (0.52, 0.09, 0.33)]
TURNS_RAD = [math.pi / 2 + 0.1, math.pi / 2 - 0.2]


@pytest.fixture
def teller(bare_node):
    teller = ChunkTeller(bare_node, ControlKnobs(base_frame="base", tool_frame="tool"))
    yield teller
    teller.close()


def listen(peer, end):
    heard = []
    peer.node.create_subscription(end.type, f"policy_node/{end.name.removeprefix('~/')}", heard.append, 10)
    return heard


def chunk(steps=STEPS, stamp_ns=STAMP_NS):
    return ActionChunk(stamp_ns, STEP_NS, steps)


def check_pose(position, turn, number):
    np.testing.assert_allclose((position.x, position.y, position.z), POSITIONS[number], atol=1e-12)
    half = TURNS_RAD[number] / 2
    np.testing.assert_allclose((turn.x, turn.y, turn.z, turn.w), (0.0, 0.0, math.sin(half), math.cos(half)), atol=1e-12)


def test_an_answer_is_told_as_the_tools_poses_after_each_step(peer, bare_node, teller):
    chunks, paths = listen(peer, interface.CHUNK), listen(peer, interface.PATH)
    bare_node.trigger_activate()
    peer.wait(lambda: chunks and paths, "the chunk", meanwhile=lambda: teller.tell(chunk(), TOOL))
    trajectory, path = chunks[0], paths[0]
    assert (trajectory.header.frame_id, codecs.stamp_to_ns(trajectory.header.stamp)) == ("base", STAMP_NS)
    assert list(trajectory.joint_names) == ["tool"] and len(trajectory.points) == 2
    for number, point in enumerate(trajectory.points):
        assert codecs.stamp_to_ns(point.time_from_start) == (number + 1) * STEP_NS
        (transform,) = point.transforms
        check_pose(transform.translation, transform.rotation, number)
    assert (path.header.frame_id, codecs.stamp_to_ns(path.header.stamp)) == ("base", STAMP_NS)
    assert len(path.poses) == 2
    for number, stamped in enumerate(path.poses):
        assert stamped.header.frame_id == "base"
        assert codecs.stamp_to_ns(stamped.header.stamp) == STAMP_NS + (number + 1) * STEP_NS
        check_pose(stamped.pose.position, stamped.pose.orientation, number)


class Topic:
    """A publisher that keeps what it is given."""

    def __init__(self, listeners):
        self.listeners, self.sent = listeners, []

    def get_subscription_count(self):
        return self.listeners

    def publish(self, message):
        self.sent.append(message)


@pytest.mark.parametrize("listeners", [(0, 0), (1, 0), (0, 1), (2, 3)])
def test_only_what_someone_listens_to_is_made(listeners):
    topics = [Topic(count) for count in listeners]

    class Node:
        def create_lifecycle_publisher(self, kind, *_, **__):
            return topics[kind is interface.PATH.type]

    teller = ChunkTeller(Node(), ControlKnobs())
    assert teller.wanted is any(listeners)
    teller.tell(chunk(), TOOL)
    assert [len(topic.sent) for topic in topics] == [int(count > 0) for count in listeners]


def test_an_answer_that_is_not_finite_is_not_told(peer, bare_node, teller):
    chunks = listen(peer, interface.CHUNK)
    bare_node.trigger_activate()
    peer.wait(lambda: teller.wanted, "subscription")
    broken = STEPS.copy()
    broken[1, 2] = np.nan
    teller.tell(chunk(broken), TOOL)
    teller.tell(chunk(stamp_ns=STAMP_NS + 1), TOOL)
    peer.wait(lambda: chunks, "the next chunk")
    assert codecs.stamp_to_ns(chunks[0].header.stamp) == STAMP_NS + 1
