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

"""The same bag through `sqap replay` and through the live node over DDS gives the same actions, picture by picture."""

import numpy as np
import pytest
from rclpy.serialization import deserialize_message

from sqap_vla_ros.bags.reading import open_bag
from sqap_vla_ros.bags.replaying import ReplayRequest, read_looks, replay
from sqap_vla_ros.policy.policy import build_policy
from sqap_vla_ros.ros import interface

# As a robot's computer may be busy, so that TF is waited for in both.
KNOBS = {"control.execute_steps": 1, "footprint.tf_wait_s": 1.0}
TOPICS = {f"/{end.name.lstrip('/')}": end for end in (
    interface.CLOCK, interface.TF, interface.TF_STATIC, interface.CAMERA_INFO, interface.IMAGE, interface.JOINT_STATES)}


class WatchedPolicy:
    """The real policy; what it decides is kept by the stamp of what it saw."""

    def __init__(self, config):
        self.policy, self.decided = build_policy(config), {}

    def infer(self, observation):
        inference = self.policy.infer(observation)
        self.decided[observation.stamp_ns] = inference.chunk.steps, inference.tokens, observation.footprint_reason
        return inference

    def __getattr__(self, name):
        return getattr(self.policy, name)


def told(message):
    """Of which image a message on ~/latency tells."""
    return int(next(entry.value for entry in message.status[0].values if entry.key == "image_stamp_ns"))


@pytest.mark.parametrize("recipe", ["float", "w4a4-rtn"])
def test_every_picture_gets_the_same_action_live_and_replayed(launch, simulated_peer, simulated_bag, tmp_path, recipe):
    model = {"model.checkpoint": "demo", "model.recipe": recipe, "prune.rule": "sqap", "prune.pruned_ratio": 0.4}
    summary = replay(ReplayRequest(simulated_bag, tmp_path / "replay", (("policy", model),), KNOBS),
                     lambda stage, done, total: None)
    assert summary["answered"] == 12 and summary["tf"]["hit_rate"] == 1.0
    peer = simulated_peer
    running = launch(WatchedPolicy, autostart=True, use_sim_time=True,
                     **{name.replace(".", "__"): value for name, value in {**model, **KNOBS}.items()})
    looks = read_looks(tmp_path / "replay")
    outs = {interface.CLOCK.name: peer.clock_out, interface.TF.name: peer.tf_out, interface.IMAGE.name: peer.image_out,
            interface.TF_STATIC.name: peer.static_out, interface.CAMERA_INFO.name: peer.info_out}
    with open_bag(simulated_bag) as bag:
        messages = [message for message in bag.messages(TOPICS) if TOPICS[message.topic].name in outs]
    for name, out in outs.items():
        peer.wait(lambda out=out: out.get_subscription_count() > 0, f"subscription to {name}")
    peer.instruct(looks[0].instruction)

    def send(since_ns):
        for message in moment:
            if message.log_ns >= since_ns or TOPICS[message.topic] is interface.TF_STATIC:
                end = TOPICS[message.topic]
                outs[end.name].publish(deserialize_message(message.data, end.type))

    moment = []
    for message in messages:
        moment.append(message)
        if TOPICS[message.topic] is not interface.IMAGE:
            continue
        now_ns = message.log_ns
        send(0)
        # Time goes on when the answer is in force, as in a simulation; what is sent to a node that is not known yet is
        # lost, so it is sent again and again.
        peer.wait(lambda now_ns=now_ns: any(told(message) == now_ns for message in peer.heard["latency"]),
                  f"an answer to {now_ns}", meanwhile=lambda now_ns=now_ns: send(now_ns))
        moment = []
    assert len(running.policy.decided) == len(looks) == 12
    for look in looks:
        steps, tokens, reason = running.policy.decided[look.stamp_ns]
        np.testing.assert_array_equal(steps, np.array(look.answers["policy"].steps))
        assert sum(len(use.kept) for use in tokens) == look.answers["policy"].kept
        assert reason == look.no_protection == ""
