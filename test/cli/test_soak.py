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

"""A soak as a person runs it, only shorter."""

import json

import pytest

from sqap_vla_ros.cli import main as cli
from sqap_vla_ros.cli.soak_report import Leg, summarize
from sqap_vla_ros.ros.rig.judge import Judge
from sqap_vla_ros.ros.rig.soak import Trial

MEGABYTE = 1_000_000


def finish(process, timeout_s=110):
    output, errors = process.communicate(timeout=timeout_s)
    return process.returncode, json.loads(output.splitlines()[-1]), errors


@pytest.mark.timed
def test_faults_are_let_loose_in_both_kinds_of_time_and_nothing_unsafe_happens(sqap, tmp_path):
    names = {"camera-freezes", "clock-jumps", "parameter-changes"}
    _, result, errors = finish(sqap("soak", "--minutes", 0.3, "--checkpoint", "stand-in", "--out", tmp_path,
                                    "--faults", ",".join(sorted(names))))
    assert result["failure"] is None and result["unsafe"] == {} and result["crashes"] == 0, errors
    assert result["faults"].keys() == names
    assert result["commands"] > 400
    # 0.5 s is the oldest picture, 0.6 s the longest answer.
    assert 100.0 < result["faults"]["camera-freezes"]["reaction_ms"]["max"] < 1500.0
    assert all(0.0 <= row["recovery_ms"]["max"] < 5000.0 for row in result["faults"].values())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [leg["clock"] for leg in summary["legs"]] == ["system", "simulated"]
    assert all(len(leg["trials"]) == len(leg["memory_bytes"]) > leg["memory_warm"] > 0 for leg in summary["legs"])
    assert abs(result["memory_growth"]) < 0.2
    assert "camera-freezes" in errors and "memory growth" in errors
    assert (tmp_path / "logs" / "policy_node-simulated.log").exists()


@pytest.mark.timed
def test_latched_faults_are_reset(sqap, tmp_path):
    names = {"inference-raises", "inference-hangs", "inference-nan", "emergency-stop", "actuation-off"}
    _, result, errors = finish(sqap("soak", "--minutes", 0.5, "--checkpoint", "stand-in", "--out", tmp_path,
                                    "--clock", "system", "--faults", ",".join(sorted(names))))
    assert result["failure"] is None and result["unsafe"] == {} and result["faults"].keys() == names, errors


def test_a_policy_that_never_moves_is_told_and_exits_with_1(sqap, tmp_path):
    code, result, errors = finish(sqap("soak", "--minutes", 0.1, "--checkpoint", tmp_path / "nothing", "--out",
                                       tmp_path, "--clock", "system"))
    assert code == 1 and not result["worked"] and result["faults"] == {}
    assert "policy_node could not be configured" in result["failure"] and str(tmp_path / "nothing") in errors


@pytest.mark.parametrize(("words", "sentence"), [
    (["--minutes", "0"], "0 is not allowed; take a number from 0.05 to 100000"),
    (["--faults", "rain"], "'rain' is no fault; allowed are camera-stops, camera-freezes,"),
    (["--method", "w3a3"], "w3a3"), (["--set", "soak.x=1"], "'soak.x=1' sets no knob")])
def test_wrong_use_exits_with_2_and_says_what_is_allowed(words, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["soak", *words])
    assert end.value.code == 2 and sentence in capsys.readouterr().err


def test_help_names_every_fault(capsys):
    with pytest.raises(SystemExit):
        cli.main(["soak", "--help"])
    told = capsys.readouterr().out
    assert "  camera-freezes       SIGSTOP of the process that has camera and TF" in told
    assert "recovery is from the fault's end, or from the instruction after the reset, to the next motion" in told


def make_leg(memory, warm, **changes):
    leg = Leg("system", [Trial("tf-stops", 0.4, 0.1), Trial("tf-stops", 0.6, 0.3), Trial("tf-jumps", None, 0.01)],
              [int(value * MEGABYTE) for value in memory], warm, judge=Judge(0.6, 1.5))
    for name, value in changes.items():
        setattr(leg, name, value)
    return leg


def test_times_are_summed_up_by_fault():
    summary = summarize([make_leg((90, 100, 100.5), 2)])
    assert summary["faults"] == {
        "tf-stops": {"times": 2, "unsafe": 0, "reaction_ms": {"p50": 500.0, "max": 600.0},
                     "recovery_ms": {"p50": 200.0, "max": 300.0}},
        "tf-jumps": {"times": 1, "unsafe": 0, "reaction_ms": None, "recovery_ms": {"p50": 10.0, "max": 10.0}}}
    assert summary["memory_growth"] == pytest.approx(100.5 / 95 - 1.0)
    assert not summary["worked"]


def test_only_a_clean_run_has_worked():
    assert summarize([make_leg((100, 100.9), 1)])["worked"]
    assert not summarize([make_leg((100, 101.1), 1)])["worked"]
    assert not summarize([make_leg((100,), 1)])["worked"]
    assert not summarize([])["worked"]
    crashed = summarize([make_leg((100, 100), 1), make_leg((100, 100), 1, crashed=True, failure="it was killed")])
    assert (crashed["worked"], crashed["crashes"], crashed["failure"]) == (False, 1, "it was killed")
    leg = make_leg((100, 100), 1)
    leg.judge.begin("tf-stops", 0, None)
    leg.judge.count("stale", "the stamp is 0.200 s old")
    summary = summarize([leg])
    assert not summary["worked"] and summary["unsafe"] == {"stale": 1} and summary["faults"]["tf-stops"]["unsafe"] == 1
