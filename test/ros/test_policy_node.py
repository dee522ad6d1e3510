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

import itertools
import math
import re

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters

from sqap_vla_ros.ros import codecs, health, interface


def moves(message):
    return message.twist.linear.x != 0.0 or message.twist.linear.y != 0.0


def rests(message):
    return codecs.decode_twist(message)[0].any() == codecs.decode_twist(message)[1].any() == np.False_


def start(launch, peer, instruction="go", **parameters):
    running = launch(autostart=True, **parameters)
    peer.wait(lambda: running.node.phase == "active", "activation")
    peer.instruct(instruction)
    return running


def test_a_step_becomes_a_velocity_that_is_sent_again_with_fresh_stamps(launch, peer):
    start(launch, peer)
    received = []
    for message in peer.wait_twists(moves, "motion", count=20):
        linear, angular = codecs.decode_twist(message)
        # 2 cm and 0.05 rad per 0.1 s.
        np.testing.assert_allclose(linear, (0.2, 0.0, 0.0))
        np.testing.assert_allclose(angular, (0.0, 0.0, 0.5))
        assert message.header.frame_id == "panda_link0"
        received.append(codecs.stamp_to_ns(message.header.stamp))
    gaps = np.diff(received) * 1e-9
    assert gaps.min() > 0.0
    # Servo halts when a command is 0.1 s old; 50 Hz are asked for.
    assert np.median(gaps) < 0.05
    assert 0.0 <= peer.clock_ns() * 1e-9 - received[-1] * 1e-9 < 1.0


def test_the_gripper_gets_a_goal_only_when_its_opening_changes(launch, peer):
    start(launch, peer)
    peer.wait_twists(moves, "motion", count=20)
    assert [goal.position for goal in peer.heard["gripper"]] == [0.08]
    assert peer.heard["gripper"][0].max_effort == 40.0
    peer.instruct("shift")
    peer.wait_twists(lambda message: message.twist.linear.y == pytest.approx(0.1), "the other motion", count=20)
    assert [goal.position for goal in peer.heard["gripper"]] == [0.08, 0.0]


def test_speed_is_capped_along_its_direction_and_counted_once_per_step(launch, peer):
    running = start(launch, peer, "race")
    message = peer.wait_twists(moves, "motion", count=5)[-1]
    # 5 m/s are asked for along (0.6, 0.8); 0.6 m/s is the cap.
    np.testing.assert_allclose(codecs.decode_twist(message)[0], (0.36, 0.48, 0.0), rtol=1e-9)
    _, values = peer.diagnosis(lambda status, values: int(values["count.clamped"]) > 0, "count of clamped steps")
    assert int(values["count.clamped"]) <= 6 * len(running.policy.observations)


def test_the_observation_has_the_picture_the_words_and_the_robot_in_it(launch, peer):
    running = start(launch, peer)
    # While discovery is at it, pictures may come before the first calibration or transform.
    peer.wait_streaming(lambda: running.policy.observations and running.policy.observations[-1].footprints[0],
                        "a picture with the robot in it")
    seen = running.policy.observations[-1]
    assert seen.instruction == "go" and seen.footprint_reason == ""
    np.testing.assert_array_equal(seen.images[0], peer.picture())
    footprint = seen.footprints[0]
    assert footprint.frames == ("panda_hand", "panda_leftfinger", "panda_rightfinger")
    # f = 80 px, depth 0.8 m, 4 cm to the sides, principal point (32, 24).
    np.testing.assert_allclose(footprint.centers_px, [(32, 24), (28, 24), (36, 24)], atol=1e-6)
    np.testing.assert_allclose(footprint.radii_px, 80 * np.array([0.05, 0.025, 0.025]) / 0.8, rtol=0.01)


def test_each_inference_is_told_with_its_stages_and_tokens(launch, peer, monkeypatch):
    monkeypatch.setattr(health, "REMEMBERED_S", 0.5)
    start(launch, peer)
    peer.wait_streaming(lambda: any(array.status[0].level == DiagnosticStatus.OK for array in peer.heard["latency"]),
                        "a protected inference")
    status = peer.heard["latency"][-1].status[0]
    values = {item.key: item.value for item in status.values}
    assert status.name == "policy_node: latency"
    assert [values[f"{stage}_ms"] for stage in ("preprocess", "vision", "llm", "head", "total")] == [
        "1.000", "2.000", "3.000", "4.000", "10.000"]
    assert [int(values[key]) for key in ("tokens", "kept", "attention", "protected", "coverage")] == [16, 5, 1, 2, 2]
    assert 0.0 < float(values["image_age_ms"]) < 1000.0
    status, values = peer.diagnosis(lambda status, values: status.message == "running", "a running summary")
    assert status.level == DiagnosticStatus.OK and status.name == "policy_node: policy"
    assert values["llm_p50_ms"] == values["llm_p95_ms"] == "3.000"
    assert values["policy.family"] == "fake" and float(values["rate_hz"]) > 0.0


def test_the_overlay_is_drawn_only_for_subscribers(launch, peer):
    running = start(launch, peer)
    peer.wait_twists(moves, "motion", count=5)
    end = interface.OVERLAY
    peer.node.create_subscription(end.type, "policy_node/overlay", peer.heard["overlay"].append, end.qos.profile())
    peer.wait_streaming(lambda: peer.heard["overlay"], "an overlay")
    message = peer.heard["overlay"][0]
    assert (message.encoding, message.width, message.header.frame_id) == ("rgb8", 512, "camera_optical_frame")
    stamps = [observation.stamp_ns for observation in running.policy.observations]
    # None of the pictures from before the subscription was drawn.
    assert stamps.index(codecs.stamp_to_ns(message.header.stamp)) >= 1


def test_commands_go_on_during_a_slow_inference_and_end_with_the_chunk(launch, peer):
    running = start(launch, peer)
    peer.wait_twists(moves, "motion", count=5)
    running.policy.pause.set()
    done = len(running.policy.observations)
    peer.wait_streaming(lambda: len(running.policy.observations) > done, "the slow inference")
    peer.wait_twists(moves, "motion from the old chunk", count=3)
    peer.wait_twists(rests, "rest when the old chunk has ended", count=3)
    _, _ = peer.diagnosis(lambda status, values: values["hold"] == "the next actions are not ready", "the hold")
    running.policy.pause.clear()
    running.policy.unblock.set()
    peer.wait_twists(moves, "motion after the slow inference", count=3)


def test_a_new_instruction_voids_what_the_old_one_still_computes(launch, peer):
    running = start(launch, peer, "block")
    peer.wait_streaming(lambda: running.policies and running.policy.observations, "the blocked inference")
    peer.instruct("shift")
    running.policy.unblock.set()
    twists = peer.wait_twists(moves, "motion", count=3)
    assert {message.twist.linear.x for message in twists} == {0.0}
    _, _ = peer.diagnosis(lambda status, values: values["count.dropped_chunk"] == "1", "the dropped chunk")
    assert not any(message.twist.linear.x for message in peer.heard["twist"])


# --- answers that take their time, and answers that are blended

def find_runs(twists):
    """Stamps of each stretch of motion that was followed by rest."""
    runs, run = [], []
    for message in twists:
        if moves(message):
            run.append(codecs.stamp_to_ns(message.header.stamp))
        elif run:
            runs.append(run)
            run = []
    return runs


def test_a_policy_of_one_step_that_thinks_for_longer_than_a_step_moves_the_robot_once_per_look(launch, peer, fake):
    class Slow(fake.FakePolicy):
        delay_s, chunk_steps = 0.3, 1

    running = start(lambda **options: launch(Slow, **options), peer)
    peer.wait_streaming(lambda: len(find_runs(peer.heard["twist"])) >= 4, "four steps")
    assert {round(message.twist.linear.x, 9) for message in peer.heard["twist"]} == {0.0, 0.2}
    runs, looks = find_runs(peer.heard["twist"]), [seen.stamp_ns for seen in running.policy.observations]
    for run in runs:
        assert run[-1] - run[0] < fake.STEP_NS
    assert max(run[-1] - run[0] for run in runs) > 0.5 * fake.STEP_NS
    for before, after in itertools.pairwise(runs):
        # What the arm does next was seen when it stood again, and thought about for 0.3 s.
        assert any(before[-1] < look <= after[0] - 300_000_000 for look in looks)
        assert len([look for look in looks if before[0] < look < after[0]]) == 1
    _, values = peer.diagnosis(lambda status, values: int(values["inferences"]) >= 4, "the count")
    assert (values["count.late_answer"], values["count.over_chunk"], values["count.dropped_chunk"]) == ("0", "0", "0")
    assert float(values["image_age_p50_ms"]) >= 300.0


def test_an_answer_to_a_picture_that_is_too_old_moves_nothing_until_the_knob_allows_it(launch, peer, fake):
    class Slow(fake.FakePolicy):
        delay_s = 0.2

    start(lambda **options: launch(Slow, **options), peer, safety__max_answer_age_s=0.1)
    status, values = peer.diagnosis(lambda status, values: int(values["count.late_answer"]) >= 2
                                    and "an answer came" in status.message, "the count")
    assert status.level == DiagnosticStatus.WARN and values["count.inference"] == "0"
    assert re.fullmatch(r"an answer came \d+\.\d\d s after its image, and safety\.max_answer_age_s is 0\.1 s; raise "
                        r"that, or take a faster model\.recipe or model\.engine", values["reason.late_answer"])
    assert values["hold"].startswith("an answer came ")
    assert peer.heard["twist"] and all(map(rests, peer.heard["twist"]))
    assert set_parameter(peer, "safety.max_answer_age_s", 30.0).successful
    peer.wait_twists(moves, "motion", count=3)


def test_an_ensemble_blends_what_follows_one_instruction(launch, peer, fake):
    class Wavering(fake.FakePolicy):
        def infer(self, observation):
            inference = super().infer(observation)
            if observation.instruction == "go" and len(self.observations) % 2 == 0:
                inference.chunk.steps[:, 0] = 0.04
            return inference

    start(lambda **options: launch(Wavering, **options), peer, control__ensemble_horizon=2,
          control__ensemble_alpha=0.0, control__execute_steps=1, safety__max_linear_m_s2=1000.0)
    # 2 and 4 cm in turn, per 0.1 s.
    peer.wait_twists(lambda message: message.twist.linear.x == pytest.approx(0.3), "the blend", count=20)
    refused = set_parameter(peer, "control.execute_steps", 2)
    assert not refused.successful and "set control.execute_steps to 1, or control.ensemble_horizon" in refused.reason
    peer.instruct("shift")
    peer.wait_twists(lambda message: message.twist.linear.y == pytest.approx(0.1), "the other motion", count=10)
    # Nothing of the first instruction was in any chunk of the second.
    assert not any(message.twist.linear.x and message.twist.linear.y for message in peer.heard["twist"])
    assert [goal.position for goal in peer.heard["gripper"]] == [0.08, 0.0]


# --- what can be wrong with the words

@pytest.mark.parametrize(("said", "counter", "sentence"), [
    ("", "empty_instruction", "the instruction is empty"),
    ("   ", "empty_instruction", "the instruction is empty"),
    ("dance", "instruction", "the fake policy does not know 'dance'")])
def test_words_that_cannot_be_followed_hold_the_robot(launch, peer, said, counter, sentence):
    start(launch, peer)
    peer.wait_twists(moves, "motion", count=3)
    peer.instruct(said, echo="")
    peer.wait_twists(rests, "rest", count=5)
    status, _ = peer.diagnosis(lambda status, values: values[f"count.{counter}"] == "1", counter)
    assert status.level == DiagnosticStatus.WARN and sentence in status.message
    peer.instruct("go")
    peer.wait_twists(moves, "motion again", count=3)


# --- what can be wrong with the picture

BAD_IMAGES = [
    ({"encoding": "16UC1", "step": 128}, "not 8 bits per channel"),
    ({"encoding": "chocolate"}, "'chocolate' cannot be taken; allowed are rgb8"),
    ({"encoding": ""}, "'' cannot be taken"),
    ({"width": 0}, "0 x 48 px"),
    ({"height": 0}, "64 x 0 px"),
    ({"data": b"\x00" * 100}, "100 bytes"),
    ({"step": 100}, "step is 100 bytes")]


@pytest.mark.parametrize(("changes", "sentence"), BAD_IMAGES, ids=[sentence for _, sentence in BAD_IMAGES])
def test_a_picture_that_cannot_be_read_holds_the_robot_and_is_named(launch, peer, changes, sentence):
    running = start(launch, peer)
    peer.wait_twists(moves, "motion", count=3)
    peer.wait_twists(rests, "rest", count=3, image=changes)
    status, values = peer.diagnosis(lambda status, values: int(values["count.image"]) > 0, "the count", image=changes)
    assert sentence in values["reason.image"] and sentence in status.message
    assert status.level == DiagnosticStatus.WARN
    done = len(running.policy.observations)
    peer.wait_twists(moves, "motion again", count=3)
    assert len(running.policy.observations) > done


@pytest.mark.parametrize(("offset_s", "sentence"), [(-2.0, "the oldest allowed is 0.5 s"),
                                                    (5.0, "ahead of the node's clock")])
def test_a_picture_of_another_time_is_refused(launch, peer, offset_s, sentence):
    running = start(launch, peer)

    def refused(status, values):
        peer.send_frame(stamp_ns=peer.clock_ns() + int(offset_s * 1e9))
        return sentence in values.get("reason.stale_image", "")

    status, values = peer.diagnosis(refused, "the refusal", streaming=False)
    assert int(values["count.stale_image"]) > 0 and status.level == DiagnosticStatus.WARN
    assert running.policy.observations == []
    assert peer.heard["twist"] and all(map(rests, peer.heard["twist"]))


def test_without_a_camera_the_robot_rests_and_says_why(launch, peer):
    start(launch, peer)
    _, values = peer.diagnosis(lambda status, values: values["count.no_image"] == "1", "the count",
                                    streaming=False)
    assert values["hold"] == "no image has arrived on camera/image_raw"
    assert peer.heard["twist"] and all(map(rests, peer.heard["twist"]))


def test_a_camera_that_stops_is_told_once(launch, peer):
    start(launch, peer)
    peer.wait_twists(moves, "motion", count=3)
    peer.diagnosis(lambda status, values: "is the camera running?" in values.get("reason.no_image", ""), "the sentence",
                   streaming=False)
    peer.heard["diagnostics"].clear()
    _, values = peer.diagnosis(lambda status, values: True, "another summary", streaming=False)
    assert (values["count.no_image"], values["count.stale_image"]) == ("1", "0")
    assert rests(peer.heard["twist"][-1])


# --- what can be wrong with the robot's place in the picture

UNPROTECTED = [
    ({"tf": False}, "no transform from 'panda_hand' to 'camera_optical_frame'"),
    ({"info": None}, "no camera_info has arrived on camera/camera_info"),
    ({"info": {"k": [0.0] * 9}}, "K[0] is 0"),
    ({"info": {"distortion_model": "barrel"}}, "'barrel' is not known"),
    ({"info": {"width": 640, "height": 480}}, "camera_info is for 640 x 480 px, the image has 64 x 48"),
    ({"frame_id": ""}, "the image has no frame_id"),
    ({"frame_id": "another_camera"}, "another_camera")]


@pytest.mark.parametrize(("frame", "sentence"), UNPROTECTED, ids=[sentence for _, sentence in UNPROTECTED])
def test_a_robot_that_cannot_be_found_is_not_protected_and_the_reason_is_told(launch, peer, frame, sentence):
    running = start(launch, peer, footprint__required=False)
    # While discovery is at it, there may be another reason first.
    peer.wait_streaming(lambda: running.policy.observations and sentence
                        in running.policy.observations[-1].footprint_reason, "the reason", **frame)
    assert all(seen.footprints == (None,) for seen in running.policy.observations)
    peer.wait_twists(moves, "motion", count=3, **frame)
    status, values = peer.diagnosis(lambda status, values: sentence in values.get("reason.no_protection", ""),
                                    "the reason in the summary", **frame)
    assert int(values["count.no_protection"]) > 0 and status.level == DiagnosticStatus.WARN
    peer.heard["latency"].clear()
    peer.wait_streaming(lambda: peer.heard["latency"], "the next inference", **frame)
    latency = peer.heard["latency"][0].status[0]
    assert latency.level == DiagnosticStatus.WARN and sentence in latency.message


@pytest.mark.parametrize(("frame", "sentence"), UNPROTECTED, ids=[sentence for _, sentence in UNPROTECTED])
def test_a_robot_that_cannot_be_found_is_held_unless_told_otherwise(launch, peer, frame, sentence):
    running = start(launch, peer)
    status, values = peer.diagnosis(lambda status, values: sentence in values.get("reason.no_protection", ""),
                                    "the reason in the summary", **frame)
    assert int(values["count.no_protection"]) > 0 and status.level == DiagnosticStatus.WARN
    assert all(map(rests, peer.wait_twists(rests, "rest", count=10, **frame)))
    assert running.policy.observations == []


# --- what can be wrong with the policy

@pytest.mark.parametrize(("instruction", "sentence"), [
    ("fail", "the action has 1 of 42 values that are not finite"),
    ("crash", "ZeroDivisionError: nobody foresaw this"),
    ("nan", "the commanded velocity has 1 of 6 values that are not finite")])
def test_a_policy_that_fails_holds_the_robot_and_is_an_error(launch, peer, instruction, sentence):
    start(launch, peer, safety__max_failures=1000)
    peer.wait_twists(moves, "motion", count=3)
    peer.instruct(instruction)
    status, _ = peer.diagnosis(lambda status, values: int(values["count.inference"]) > 0, "the count")
    assert status.level == DiagnosticStatus.ERROR and sentence in status.message
    assert all(map(rests, peer.wait_twists(rests, "rest", count=10)))
    assert all(math.isfinite(value) for message in peer.heard["twist"]
               for value in np.concatenate(codecs.decode_twist(message)))
    peer.instruct("go")
    peer.wait_twists(moves, "motion again", count=3)


# --- parameters

def set_parameter(peer, name, value):
    client = peer.node.create_client(SetParameters, "policy_node/set_parameters")
    kind, field = {float: (ParameterType.PARAMETER_DOUBLE, "double_value"),
                   int: (ParameterType.PARAMETER_INTEGER, "integer_value"),
                   str: (ParameterType.PARAMETER_STRING, "string_value")}[type(value)]
    typed = ParameterValue(type=kind, **{field: value})
    request = SetParameters.Request(parameters=[Parameter(name=name, value=typed)])
    return peer.call(client, request).results[0]


def test_a_cap_can_change_at_run_time_but_not_leave_its_range(launch, peer):
    start(launch, peer)
    peer.wait_twists(lambda message: message.twist.linear.x == pytest.approx(0.2), "motion", count=3)
    refused = set_parameter(peer, "safety.max_linear_m_s", -1.0)
    assert not refused.successful
    assert set_parameter(peer, "safety.max_linear_m_s", 0.05).successful
    peer.wait_twists(lambda message: message.twist.linear.x == pytest.approx(0.05), "slower motion", count=3)


def test_what_configure_fixed_is_refused_until_cleanup(launch, peer):
    running = start(launch, peer)
    refused = set_parameter(peer, "model.recipe", "float")
    assert not refused.successful and "model.recipe cannot change while the node is configured" in refused.reason
    assert peer.transition("deactivate") and peer.transition("cleanup")
    assert set_parameter(peer, "model.recipe", "float").successful
    assert peer.transition("configure")
    assert [policy.config.model.recipe for policy in running.policies] == ["w4a4", "float"]
