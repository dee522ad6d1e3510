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

"""Replays kept on disk: the same twice, and on from where one was cut."""

import fcntl
import json
from dataclasses import replace as change

import numpy as np
import pytest

from sqap_vla_ros.bags import answering
from sqap_vla_ros.bags.looks import read_look
from sqap_vla_ros.bags.replaying import ReplayRequest, read_looks, replay
from sqap_vla_ros.errors import CheckpointError, ConfigError, InputError
from sqap_vla_ros.models.own_format import save_model

FLOAT = {"model.recipe": "float", "prune.rule": "none"}
PRUNED = {"model.recipe": "w4a4-rtn", "prune.rule": "sqap", "prune.pruned_ratio": 0.5, "prune.layer": 0}


@pytest.fixture
def ask(simulated_bag, tiny_demo, tmp_path):
    """``ask(out, **changes)`` makes a request for the tiny policy."""
    save_model(tiny_demo(), tmp_path / "policy")

    def ask(out="out", **changes):
        model = {"model.checkpoint": str(tmp_path / "policy")}
        policies = (("pruned", {**model, **PRUNED}), ("float", {**model, **FLOAT}))
        values = {"bag": simulated_bag, "policies": policies, "instruction": "pick up the red block", **changes}
        return ReplayRequest(out=tmp_path / out, **values)

    return ask


def silent(stage, done, total):
    """Nobody listens."""


def without_times(summary):
    return {key: value for key, value in summary.items() if key not in ("timing", "machine")}


def test_every_picture_is_answered_by_each_policy_and_compared(ask):
    steps = []
    request = ask()
    summary = replay(request, lambda *step: steps.append(step))
    assert summary["bag"]["looks"] == summary["answered"] == 12 and summary["bag"]["refused"] == {}
    assert {(row["policy"], row["with"]) for row in summary["compared"]} == {
        ("pruned", "recorded"), ("float", "recorded"), ("pruned", "float")}
    assert summary["tokens"]["pruned"]["kept_mean"] == 32 and summary["tokens"]["float"]["gripper_kept_mean"] == 1.0
    assert summary["tf"] == {"looks": 12, "exact": 12, "latest": 0, "none": 0, "hit_rate": 1.0}
    assert steps[0] == ("pruned", 0, 12) and ("float", 12, 12) in steps
    looks = read_looks(request.out)
    assert [look.index for look in looks] == list(range(12)) and len(looks[0].recorded) == 7
    assert looks[0].answers["pruned"].rules.keys() <= {"attention", "robot", "coverage"}
    assert json.loads((request.out / "summary.json").read_text()) == summary
    assert len(list((request.out / "overlays").glob("*.jpg"))) == 12
    row = next(row for row in summary["compared"] if row["with"] == "float")
    steps = {label: np.array([look.answers[label].steps[0] for look in looks]) for label in ("pruned", "float")}
    assert row["mae"] == pytest.approx(np.abs(steps["pruned"] - steps["float"])[:, :6].mean(), rel=1e-5)


def test_twice_is_the_same_but_for_times(ask):
    first, second = (replay(ask(out), silent) for out in ("one", "two"))
    assert without_times(first) == without_times(second)
    texts = [json.dumps(without_times(json.loads((ask(out).out / "summary.json").read_text())))
             for out in ("one", "two")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("damage", ["between lines", "within a line"])
def test_a_replay_that_was_cut_goes_on_behind_the_last_whole_line(ask, monkeypatch, damage):
    whole = replay(ask("whole"), silent)
    request, asked = ask("cut"), []
    infer = answering.Policy.infer

    def count(self, observation):
        asked.append(observation.stamp_ns)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return infer(self, observation)

    monkeypatch.setattr(answering.Policy, "infer", count)
    with pytest.raises(KeyboardInterrupt):
        replay(request, silent)
    part = request.out / "answers" / "pruned.part"
    assert len(part.read_text().splitlines()) == 5
    if damage == "within a line":
        part.write_bytes(part.read_bytes()[:-20])
    asked.clear()
    monkeypatch.setattr(answering.Policy, "infer", lambda *what: asked.append(0) or infer(*what))
    assert without_times(replay(request, silent)) == without_times(whole)
    assert len(asked) == 24 - (5 if damage == "between lines" else 4)
    asked.clear()
    assert without_times(replay(request, silent)) == without_times(whole)
    assert asked == []


def test_a_folder_of_another_replay_is_refused(ask):
    replay(ask(limit=1), silent)
    with pytest.raises(ConfigError, match=r"holds another replay, as its run\.json says; take another folder"):
        replay(ask(limit=2), silent)


def test_two_processes_do_not_share_a_folder(ask):
    request = ask(limit=1)
    replay(request, silent)
    with (request.out / "answers" / "in_use").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process replays into"):
            replay(request, silent)
    assert replay(request, silent)["answered"] == 1


def test_what_one_policy_refuses_is_told_with_its_name(ask, tiny_demo, tmp_path):
    other = tiny_demo()
    save_model(type(other)(change(other.config, vocabulary=("dance",))), tmp_path / "dancer")
    model = {"model.checkpoint": str(tmp_path / "policy"), **FLOAT}
    request = ask(policies=(("float", model), ("dancer", {**model, "model.checkpoint": str(tmp_path / "dancer")})))
    summary = replay(request, silent)
    sentence, = summary["bag"]["refused"]
    assert sentence.startswith("dancer: ") and summary["answered"] == 0 and summary["bag"]["looks"] == 12


def test_what_is_wrong_with_a_bag_is_told_in_every_run(ask):
    request = ask(remap={"/tf": "/nowhere"}, limit=2)
    first = replay(request, silent)["bag"]["complaints"]
    assert first == replay(request, silent)["bag"]["complaints"]
    assert any(sentence.startswith("/nowhere is not there") for sentence in first)


def test_a_policy_that_does_not_fit_one_arm_is_refused_before_anything_is_asked(ask):
    with pytest.raises(CheckpointError, match="the model sees 1 camera"):
        replay(ask(knobs={"input.cameras": ["camera", "wrist"], "footprint.camera_frames": ["", ""]},
                   remap={"wrist/image_raw": "/camera/image_raw"}), silent)


def test_only_so_many_looks_as_asked_for(ask):
    summary = replay(ask(limit=3, overlays=False), silent)
    assert summary["bag"]["looks"] == 3 and not (ask().out / "overlays").exists()


def test_without_tf_it_is_looked_at_all_the_same(ask):
    summary = replay(ask(remap={"/tf": "/nowhere"}), silent)
    assert summary["answered"] == 12 and summary["tf"]["hit_rate"] == 0.0
    assert summary["tokens"]["pruned"]["gripper_kept_mean"] is None
    look = read_looks(ask().out)[0]
    assert look.tf == "none" and "panda_hand" in look.no_protection


def test_what_is_missing_ends_it_with_what_to_do(ask):
    with pytest.raises(InputError, match=r"/lens/image_raw is not there; of its type there is /camera/image_raw: "
                                         r"--remap /lens/image_raw:=/camera/image_raw: there is nothing to look at"):
        replay(ask(knobs={"input.cameras": ["lens"]}), silent)
    with pytest.raises(InputError, match="there is no instruction; give --instruction"):
        replay(ask(instruction="", remap={"instruction": "words"}), silent)


def test_an_instruction_that_the_policy_does_not_know_is_counted(ask):
    summary = replay(ask(instruction="fly away"), silent)
    sentence, = summary["bag"]["refused"]
    assert "fly" in sentence and summary["bag"]["refused"][sentence] == 12 and summary["compared"] == []


def test_a_line_that_is_no_look_is_told():
    with pytest.raises(ValueError, match="not the line of a look"):
        read_look('{"index": 0}')
