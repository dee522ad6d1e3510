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

"""Two interlocks, stops that stay, and parameters that change while the node runs; over DDS."""

import weakref

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

from sqap_vla_ros.ros import codecs, interface


def speed(message):
    return float(np.linalg.norm(codecs.decode_twist(message)[0]))


def moves(message):
    return speed(message) > 0.0


def rests(message):
    return not np.concatenate(codecs.decode_twist(message)).any()


def start(launch, peer, **parameters):
    running = launch(autostart=True, **parameters)
    peer.wait(lambda: running.node.phase == "active", "activation")
    peer.instruct("go")
    return running


@pytest.fixture
def ask(peer):
    """``ask(type, service, **request)``: the response of one of the node's services."""

    def call(kind, name, **request):
        client = peer.node.create_client(kind, f"policy_node/{name}")
        return peer.call(client, kind.Request(**request), repeat_s=float("inf"))

    return call


@pytest.fixture
def change(ask):
    """``change(name, value)``: set a parameter."""

    def call(name, value):
        kinds = {float: ("double_value", ParameterType.PARAMETER_DOUBLE), bool: ("bool_value",
                                                                                 ParameterType.PARAMETER_BOOL)}
        field, kind = kinds[type(value)]
        parameter = Parameter(name=name, value=ParameterValue(type=kind, **{field: value}))
        return ask(SetParameters, "set_parameters", parameters=[parameter]).results[0]

    return call


def reset(ask, *, until=None):
    """Ask for a reset, again and again where its time has not come yet."""
    answer = ask(Trigger, "reset_fault")
    while until is not None and not until(answer):
        answer = ask(Trigger, "reset_fault")
    return answer


def test_nothing_moves_before_the_second_interlock_opens_and_speed_rises_from_zero_then(launch, peer, ask):
    running = start(launch, peer, control__enable_actuation=False, safety__ramp_in_s=1.0)
    peer.wait_streaming(lambda: len(running.policy.observations) >= 2, "looks")
    assert peer.heard["twist"] and all(map(rests, peer.heard["twist"]))
    assert peer.heard["gripper"] == []
    status, _ = peer.diagnosis(lambda status, values: values["stop"], "why it stands still")
    assert status.level == DiagnosticStatus.WARN and "control.enable_actuation is false" in status.message
    assert ask(SetBool, "enable_actuation", data=True).message == "actuation is on"
    assert running.node.get_parameter("control.enable_actuation").value is True
    peer.heard["twist"].clear()
    peer.wait_twists(lambda message: speed(message) == pytest.approx(0.2), "full speed", count=3)
    # 0.2 m/s after a second, no step above what 50 Hz, or a few times as long, make of that.
    speeds = [speed(message) for message in peer.heard["twist"]]
    rising = speeds[:speeds.index(max(speeds)) + 1]
    assert sum(0.0 < value < 0.19 for value in rising) > 10
    assert ask(SetBool, "enable_actuation", data=False).success
    peer.wait_twists(rests, "rest", count=3)


def test_a_dry_run_shows_what_the_robot_would_get_and_leaves_it_alone(launch, peer):
    end, shown = interface.in_dry_run(interface.TWIST), []
    peer.node.create_subscription(end.type, end.name.replace("~", "policy_node"), shown.append, end.qos.profile())
    start(launch, peer, control__dry_run=True)
    peer.wait_streaming(lambda: sum(map(moves, shown)) > 5, "motion that is shown")
    assert peer.heard["twist"] == [] and peer.heard["gripper"] == []
    assert peer.node.count_publishers(interface.TWIST.name) == 0


def test_the_e_stop_stays_until_it_is_released_and_reset(launch, peer, ask):
    start(launch, peer)
    estop = interface.advertise(peer.node, interface.ESTOP)
    peer.wait_twists(moves, "motion", count=3)
    peer.wait(lambda: estop.get_subscription_count() > 0, "an ear for the e-stop")
    estop.publish(Bool(data=True))
    peer.wait_twists(rests, "rest", count=5)
    answer = reset(ask)
    assert not answer.success and "the e-stop is pressed" in answer.message
    estop.publish(Bool(data=False))
    status, _ = peer.diagnosis(lambda status, values: "was pressed; call ~/reset_fault" in values["stop"], "the stop")
    assert status.level == DiagnosticStatus.ERROR
    assert all(map(rests, peer.wait_twists(rests, "rest still", count=5)))
    assert reset(ask).success
    # Nothing moves by a reset alone.
    assert all(map(rests, peer.wait_twists(rests, "rest still", count=10)))
    peer.instruct("go")
    peer.wait_twists(moves, "motion again", count=3)


def test_a_button_that_told_of_itself_before_the_node_was_there_is_heard(launch, peer):
    late = interface.Qos.LATCHED.profile()
    peer.node.create_publisher(Bool, interface.ESTOP.name, late).publish(Bool(data=True))
    running = launch(autostart=True)
    peer.wait(lambda: running.node.phase == "active", "activation")
    peer.diagnosis(lambda status, values: "the e-stop is pressed" in values["stop"], "the stop")


def test_failures_in_a_row_are_a_fault_and_single_ones_are_not(launch, peer, ask):
    running = start(launch, peer, safety__max_failures=3)
    peer.instruct("fail")
    _, values = peer.diagnosis(lambda status, values: values["count.fault"] == "1", "the fault")
    assert "3 inferences in a row have failed" in values["reason.fault"]
    done = len(running.policy.observations)
    peer.instruct("go", echo="")
    peer.diagnosis(lambda status, values: "say the instruction again then" in values.get("reason.instruction", ""),
                   "the refusal")
    assert len(running.policy.observations) == done
    assert all(map(rests, peer.wait_twists(rests, "rest still", count=5)))
    assert reset(ask).success
    peer.instruct("go")
    peer.wait_twists(moves, "motion again", count=3)


def test_an_inference_that_hangs_is_a_fault(launch, peer, ask):
    running = start(launch, peer, safety__max_inference_s=0.3)
    peer.wait_twists(moves, "motion", count=3)
    running.policy.pause.set()
    peer.diagnosis(lambda status, values: "an inference has taken" in values.get("reason.fault", ""), "the fault")
    peer.wait_twists(rests, "rest", count=3)
    running.policy.pause.clear()
    running.policy.unblock.set()
    reset(ask, until=lambda answer: answer.success)
    peer.instruct("go")
    peer.wait_twists(moves, "motion again", count=3)


def test_only_sentences_of_the_list_are_taken(launch, peer):
    running = launch(autostart=True, input__instructions=["shift"])
    peer.wait(lambda: running.node.phase == "active", "activation")
    peer.instruct("go", echo="")
    peer.diagnosis(lambda status, values: "'go' is not allowed; input.instructions allows 'shift'"
                   in values.get("reason.instruction", ""), "the refusal")
    peer.instruct("shift")
    peer.wait_twists(moves, "motion", count=3)


def test_caps_rates_and_pruning_change_while_the_node_runs(launch, peer, change):
    running = start(launch, peer)
    peer.wait_twists(moves, "motion", count=3)
    assert change("safety.max_linear_m_s", 0.1).successful
    peer.wait_twists(lambda message: speed(message) == pytest.approx(0.1), "a slower motion", count=3)
    assert change("prune.pruned_ratio", 0.7).successful
    assert running.policy.config.prune.pruned_ratio == 0.7
    assert change("control.control_hz", 40.0).successful
    peer.wait_twists(moves, "motion still", count=3)
    refused = change("control.dry_run", True)
    assert not refused.successful and "control.dry_run cannot change while the node is configured" in refused.reason


def test_the_tool_stays_in_its_box_and_without_tf_it_stands_still(launch, peer):
    box = {"safety__workspace": True, "safety__workspace_min_m": [-1.0, -1.0, 0.0],
           "safety__workspace_max_m": [0.0, 1.0, 2.0], "control__base_frame": "camera_optical_frame"}
    start(launch, peer, **box)
    # The hand is at x = 0, on the wall, and is asked to move along x.
    peer.wait_streaming(lambda: len(peer.heard["latency"]) > 3, "answers")
    peer.diagnosis(lambda status, values: int(values["count.clamped"]) > 0, "the clamp")
    assert max(abs(codecs.decode_twist(message)[0][0]) for message in peer.heard["twist"]) == pytest.approx(0.0)


def test_without_the_tool_s_pose_a_box_holds_the_robot(launch, peer):
    start(launch, peer, safety__workspace=True)
    _, values = peer.diagnosis(lambda status, values: int(values["count.no_tool"]) > 0, "the count")
    assert "panda_link0" in values["reason.no_tool"]
    assert all(map(rests, peer.heard["twist"]))


def test_who_says_the_same_again_disturbs_nothing(launch, peer):
    running = start(launch, peer)
    peer.wait_twists(moves, "motion", count=5)
    for _ in range(5):
        peer.heard["twist"].clear()
        peer.instruct("go")
        peer.wait_twists(moves, "motion", count=2)
    assert running.node._report.health.counts["dropped_chunk"] == 0


def test_cleanup_lets_go_of_the_policy(launch, peer):
    running = start(launch, peer)
    peer.wait_twists(moves, "motion", count=3)
    held = weakref.ref(running.policies.pop())
    assert peer.transition("deactivate") and peer.transition("cleanup")
    assert held() is None


def test_an_answer_that_came_too_late_is_told_too(launch, peer):
    running = start(launch, peer, safety__max_answer_age_s=0.05)
    running.policy.delay_s = 0.1
    peer.wait_streaming(lambda: any("late_answer" in [item.value for item in array.status[0].values
                                                      if item.key == "dropped"] for array in peer.heard["latency"]),
                        "a late answer")
