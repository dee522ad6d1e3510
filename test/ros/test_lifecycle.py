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

import threading
from dataclasses import replace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import GetParameters

from sqap_vla_ros.config import build_config
from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.models import registry
from sqap_vla_ros.models.demo import DemoVla
from sqap_vla_ros.models.own_format import save_model
from sqap_vla_ros.policy.policy import build_policy
from sqap_vla_ros.ros import codecs
from sqap_vla_ros.ros.commands import HALTS
from sqap_vla_ros.ros.inference import load_policy


def moves(message):
    return codecs.decode_twist(message)[0].any()


def rests(message):
    return not np.concatenate(codecs.decode_twist(message)).any()


def test_the_whole_life_and_back(launch, peer):
    running = launch()
    assert peer.state_label() == "unconfigured"
    assert peer.transition("configure") and peer.state_label() == "inactive"
    assert running.policy.warm_ups == 1
    assert peer.transition("activate") and peer.state_label() == "active"
    assert peer.transition("deactivate") and peer.state_label() == "inactive"
    assert peer.transition("activate") and peer.transition("deactivate")
    assert peer.transition("cleanup") and peer.state_label() == "unconfigured"
    # A second life with a policy of its own.
    assert peer.transition("configure") and len(running.policies) == 2
    assert peer.transition("activate")
    peer.instruct("go")
    peer.wait_twists(moves, "motion in the second life", count=3)
    assert peer.transition("active_shutdown") and peer.state_label() == "finalized"


def test_the_executor_goes_on_while_a_model_loads(launch, peer, fake):
    loading, go_on = threading.Event(), threading.Event()

    def slow_policy(config):
        loading.set()
        assert go_on.wait(30.0)
        return fake.FakePolicy(config)

    launch(slow_policy)
    peer.get_acquainted()
    answer = peer.change.call_async(transition_request("configure"))
    peer.wait(loading.is_set, "loading")
    # Parameters, state and diagnostics all answer meanwhile; so does a second, refused, transition.
    client = peer.node.create_client(GetParameters, "policy_node/get_parameters")
    recipe = peer.call(client, GetParameters.Request(names=["model.recipe"])).values[0].string_value
    assert recipe == "w4a4"
    assert peer.state_label() == "configuring"
    assert peer.transition("activate") is False
    peer.diagnosis(lambda status, values: values["state"] == "configuring", "a summary", streaming=False)
    assert not answer.done()
    go_on.set()
    peer.wait(answer.done, "the answer")
    assert answer.result().success and peer.state_label() == "inactive"


def transition_request(name):
    return ChangeState.Request(transition=Transition(label=name))


@pytest.mark.parametrize(("error", "sentence"), [
    (CheckpointError("/there/is/nothing does not exist"), "could not configure: /there/is/nothing does not exist"),
    (ZeroDivisionError("nobody foresaw this"), "could not configure: ZeroDivisionError: nobody foresaw this")])
def test_a_failed_configure_is_told_and_can_be_tried_again(launch, peer, fake, error, sentence):
    broken = [error]

    def build(config):
        if broken:
            raise broken.pop()
        return fake.FakePolicy(config)

    launch(build)
    assert peer.transition("configure") is False
    assert peer.state_label() == "unconfigured"
    status, _ = peer.diagnosis(lambda status, values: status.level == DiagnosticStatus.ERROR, "it", streaming=False)
    assert status.message == sentence
    assert peer.transition("configure")
    status, _ = peer.diagnosis(lambda status, values: values["state"] == "inactive", "all well", streaming=False)
    assert (status.level, status.message) == (DiagnosticStatus.OK, "inactive")


@pytest.mark.parametrize("damage", ["missing", "corrupt"])
def test_a_checkpoint_that_cannot_be_read_fails_configure_with_a_sentence(launch, peer, tmp_path, damage):
    folder = tmp_path / "checkpoint"
    if damage == "corrupt":
        folder.mkdir()
        (folder / "config.json").write_text("{ this is no JSON")
        (folder / "model.safetensors").write_bytes(b"rubbish")
    launch(build_policy, model__checkpoint=str(folder))
    assert peer.transition("configure") is False
    status, _ = peer.diagnosis(lambda status, values: status.level == DiagnosticStatus.ERROR, "it", streaming=False)
    assert status.message.startswith("could not configure: ") and str(folder) in status.message


def test_a_model_that_no_one_arm_can_be_moved_by_is_refused_before_it_is_read(tiny_demo, tmp_path, monkeypatch):
    config = tiny_demo().config
    arms = replace(config.action, low=(0.0,) * 14, high=(1.0,) * 14, mask=(True,) * 14)
    for model, name in ((tiny_demo(), "arm"), (DemoVla(replace(config, action=arms)), "arms")):
        save_model(model, tmp_path / name)
    knobs = {"model.recipe": "float", "prune.rule": "none"}
    policy = load_policy(build_config({**knobs, "model.checkpoint": str(tmp_path / "arm")}))
    assert policy.describe()["family"] == "demo"
    monkeypatch.delattr(registry, "load_own_")
    with pytest.raises(CheckpointError, match="14 dimensions; to move one arm 7 are needed"):
        load_policy(build_config({**knobs, "model.checkpoint": str(tmp_path / "arms")}))


def test_a_transition_that_the_state_does_not_have_is_refused_and_nothing_else_happens(launch, peer):
    launch()
    for name in ("activate", "deactivate", "cleanup"):
        assert peer.transition(name) is False
    assert peer.call(peer.change, transition_request("dance")).success is False
    assert peer.state_label() == "unconfigured"


def test_deactivation_rests_the_robot_several_times_and_then_is_silent(launch, peer):
    launch(autostart=True)
    peer.instruct("go")
    peer.wait_twists(moves, "motion", count=5)
    assert peer.transition("deactivate")
    peer.wait(lambda: peer.heard["twist"] and rests(peer.heard["twist"][-1]), "rest")
    # Give what would still come the time of ten commands: three summaries.
    peer.heard["diagnostics"].clear()
    peer.wait(lambda: len(peer.heard["diagnostics"]) >= 3, "summaries")
    last_motion = max(index for index, message in enumerate(peer.heard["twist"]) if moves(message))
    # The newest is kept only, so some of the halts may have replaced each other on the way.
    assert 1 <= len(peer.heard["twist"]) - 1 - last_motion <= HALTS
    peer.heard["twist"].clear()
    peer.send_frame()
    peer.heard["diagnostics"].clear()
    peer.wait(lambda: len(peer.heard["diagnostics"]) >= 3, "summaries")
    assert peer.heard["twist"] == []


def test_after_deactivation_motion_needs_a_new_instruction(launch, peer):
    launch(autostart=True)
    peer.instruct("go")
    peer.wait_twists(moves, "motion", count=3)
    assert peer.transition("deactivate")
    peer.wait(lambda: peer.heard["active"][-1].data == "", "the end of the instruction")
    assert peer.transition("activate")
    _, values = peer.diagnosis(lambda status, values: values["state"] == "active" and values["hold"], "the hold")
    assert values["hold"] == "there is no instruction on instruction yet"
    assert rests(peer.heard["twist"][-1])
    peer.instruct("go")
    peer.wait_twists(moves, "motion again", count=3)


def test_a_hanging_inference_does_not_hold_up_deactivation(launch, peer):
    running = launch(autostart=True)
    peer.instruct("block")
    peer.wait_streaming(lambda: running.policy.observations, "the inference that hangs")
    assert peer.transition("deactivate") and peer.state_label() == "inactive"


def test_a_configure_that_fails_half_way_leaves_nothing_behind(launch, peer, fake):
    class Deaf(fake.FakePolicy):
        def warm_up(self):
            raise RuntimeError("the warm-up broke")

    def left_behind():
        return {thread.name for thread in threading.enumerate()} & {"inference", "overlay"}

    policies = [Deaf, fake.FakePolicy]
    running = launch(lambda config: policies.pop(0)(config))
    assert peer.transition("configure") is False
    assert peer.node.count_subscribers("instruction") == 0 and not hasattr(running.node, "_policy")
    assert not left_behind()
    assert peer.transition("configure") and left_behind()
    assert peer.transition("cleanup")
    peer.wait(lambda: peer.node.count_subscribers("instruction") == 0, "the end of the subscriptions")
    assert not left_behind() and not hasattr(running.node, "_policy")
