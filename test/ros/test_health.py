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

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from sqap_vla_ros.data import ActionChunk, Inference, StageTimes, TokenUse
from sqap_vla_ros.ros.health import REMEMBERED_S, Health, Summary

S = 1_000_000_000
TOKENS = TokenUse((4, 4), np.arange(10), np.array([0, 1, 1, 2, 2, 2, 4, 4, 4, 4], dtype=np.int8))


def inference(llm_ms=3.0):
    return Inference(ActionChunk(5 * S, S // 10, np.zeros((4, 7))), StageTimes({"vision": 1.0, "llm": llm_ms}),
                     (TOKENS,))


def read(array):
    status, = array.status
    return status, {item.key: item.value for item in status.values}


def summarise(health, wall_ns=0, **changes):
    now = Summary(**{"state": "active", "failure": "", "hold": "", "instruction": "go", "policy": {}} | changes)
    return read(health.summary(now, 7 * S, wall_ns))


def test_one_inference_in_numbers():
    health = Health("node")
    health.record(inference(), 12.5, 0, deadline_ms=5.0)
    array = health.latency(inference(), 12.5, "", 7 * S)
    status, values = read(array)
    assert (array.header.stamp.sec, status.name, status.level) == (7, "node: latency", DiagnosticStatus.OK)
    assert (values["vision_ms"], values["llm_ms"], values["total_ms"], values["image_age_ms"]) == (
        "1.000", "3.000", "4.000", "12.500")
    assert [values[key] for key in ("tokens", "kept", "attention", "protected", "coverage", "random")] == [
        "16", "10", "1", "2", "3", "4"]
    assert values["image_stamp_ns"] == str(5 * S)


def test_a_robot_without_protection_is_a_warning_with_the_reason():
    status, values = read(Health("node").latency(inference(), 1.0, "no transform", 0))
    assert status.level == DiagnosticStatus.WARN and values["no_protection"] == "no transform"


def test_percentiles_are_those_of_the_window():
    health = Health("node")
    for index in range(101):
        health.record(inference(llm_ms=float(index)), 2.0 * index, 0, deadline_ms=91.0)
    _, values = summarise(health)
    assert [values[f"llm_p{percent}_ms"] for percent in (50, 95, 99)] == ["50.000", "95.000", "99.000"]
    # 91 ms at most, of which the other stage takes 1: ten are slower.
    assert values["count.deadline"] == "10"
    assert (values["image_age_p50_ms"], values["image_age_p95_ms"]) == ("100.000", "190.000")
    assert values["inferences"] == "101"


def test_tokens_of_all_cameras_count_together():
    both = Inference(ActionChunk(5 * S, S // 10, np.zeros((4, 7))), StageTimes({}), (TOKENS, TOKENS))
    _, values = read(Health("node").latency(both, 1.0, "", 0, "cpu"))
    assert (values["tokens"], values["kept"], values["protected"], values["engine"]) == ("32", "20", "4", "cpu")


def test_ages_of_inputs_and_the_share_of_footprints_that_tf_could_give():
    health = Health("node")
    _, values = summarise(health, ages_s={"image": 0.0123, "joint_states": None})
    assert (values["age.image_s"], values["age.joint_states_s"]) == ("0.012", "never")
    assert "tf_hit_ratio" not in values
    for kind, count in (("exact", 5), ("latest", 2), ("none", 1)):
        for _ in range(count):
            health.note_lookup(kind)
    _, values = summarise(health)
    assert (values["tf_hit_ratio"], values["tf_exact_ratio"]) == ("0.875", "0.625")


def test_the_rate_is_that_of_the_last_seconds():
    health = Health("node")
    for index in range(20):
        health.record(inference(), 1.0, index * S // 4, deadline_ms=5.0)
    assert float(summarise(health, wall_ns=20 * S // 4)[1]["rate_hz"]) == pytest.approx(4.0, abs=0.2)
    assert float(summarise(health, wall_ns=60 * S)[1]["rate_hz"]) == 0.0


def test_everything_is_counted_but_the_same_is_not_logged_again_at_once():
    health = Health("node")
    logged = [health.note("image", "bad", wall_ns) for wall_ns in (0, S, 2 * S)]
    assert logged == [True, False, False]
    assert health.note("image", "worse", 2 * S) is True
    assert [health.note("no_image", f"none for {age:.1f} s", S) for age in (0.5, 0.6)] == [True, False]
    assert health.note("image", "worse", 3 * S + round(REMEMBERED_S * S)) is True
    _, values = summarise(health)
    assert values["count.image"] == "5" and values["reason.image"] == "worse"
    assert values["count.stale_image"] == "0"


@pytest.mark.parametrize(("changes", "notes", "level", "message"), [
    ({"failure": "could not configure: no file"}, [], DiagnosticStatus.ERROR, "could not configure: no file"),
    ({"state": "inactive"}, [("image", "bad")], DiagnosticStatus.OK, "inactive"),
    ({}, [], DiagnosticStatus.OK, "running"),
    ({"stop": ("estop", "the e-stop is pressed"), "hold": "x"}, [("inference", "boom")], DiagnosticStatus.ERROR,
     "stopped: the e-stop is pressed"),
    ({"stop": ("actuation", "it is off"), "hold": "x"}, [], DiagnosticStatus.WARN, "stopped: it is off"),
    ({"hold": "no camera"}, [], DiagnosticStatus.WARN, "holding: no camera"),
    ({}, [("no_protection", "no transform")], DiagnosticStatus.WARN, "no transform"),
    ({"hold": "waiting"}, [("inference", "boom")], DiagnosticStatus.ERROR, "inference failed: boom")])
def test_how_things_stand_in_one_sentence(changes, notes, level, message):
    health = Health("node")
    for kind, sentence in notes:
        health.note(kind, sentence, 0)
    status, _ = summarise(health, wall_ns=S, **changes)
    assert (status.level, status.message) == (level, message)


def test_what_is_long_over_colours_nothing():
    health = Health("node")
    health.note("inference", "boom", 0)
    status, values = summarise(health, wall_ns=round((REMEMBERED_S + 1) * S))
    assert (status.level, values["count.inference"]) == (DiagnosticStatus.OK, "1")
