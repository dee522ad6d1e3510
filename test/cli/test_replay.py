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

"""`sqap replay` as a person runs it."""

import json

import pytest
from rosbags.highlevel import AnyReader

from sqap_vla_ros.cli import main as cli
from sqap_vla_ros.models.own_format import save_model

WORDS = ("--instruction", "pick up the red block", "--set", "prune.layer=0")


@pytest.fixture
def policy(tiny_demo, tmp_path):
    """Folder of a tiny float policy."""
    save_model(tiny_demo(), tmp_path / "policy")
    return str(tmp_path / "policy")


def run(capsys, *words):
    """Exit code, the last line of stdout, stderr."""
    code = cli.main(["replay", *map(str, words)])
    told = capsys.readouterr()
    return code, json.loads(told.out.splitlines()[-1]) if told.out else None, told.err


def test_a_bag_becomes_figures_a_page_and_a_bag(simulated_bag, policy, tmp_path, capsys):
    out = tmp_path / "out"
    code, result, errors = run(capsys, simulated_bag, "--checkpoint", policy, "--method", "w4a4-rtn+sqap@0.5",
                               "--against", "float", "--out", out, *WORDS)
    assert code == 0 and result["answered"] == 12, errors
    assert {(row["policy"], row["with"]) for row in result["compared"]} == {
        ("w4a4-rtn+sqap@0.5", "recorded"), ("float", "recorded"), ("w4a4-rtn+sqap@0.5", "float")}
    assert "12/12 w4a4-rtn+sqap@0.5" in errors
    page = (out / "report.html").read_text()
    assert "w4a4-rtn+sqap@0.5" in page and "data:image/jpeg;base64," in page
    with AnyReader([out / "replay"]) as reader:
        counts = {connection.topic: connection.msgcount for connection in reader.connections}
        stamps = [at_ns for _, at_ns, _ in reader.messages(
            [item for item in reader.connections if item.topic == "/replay/float/latency"])]
    assert counts == {f"/replay/{label}/{topic}": 12 for label in ("w4a4_rtn_sqap_0_5", "float")
                      for topic in ("delta_twist_cmds", "chunk", "path", "latency")} | {
        "/replay/w4a4_rtn_sqap_0_5/overlay/compressed": 12}
    assert stamps == [1_000_000_000 + step * 100_000_000 for step in range(12)]


def test_the_same_again_only_reads_what_is_there_and_fresh_forgets_it(simulated_bag, policy, tmp_path, capsys):
    words = (simulated_bag, "--checkpoint", policy, "--method", "float", "--out", tmp_path / "out", "--no-overlays",
             *WORDS)
    first = run(capsys, *words, "--limit", 3)
    again = run(capsys, *words, "--limit", 3)
    assert first[1] == again[1] and first[1]["looks"] == 3
    code, _, errors = run(capsys, *words)
    assert code == 1 and "holds another replay, as its run.json says" in errors
    code, result, _ = run(capsys, *words, "--fresh")
    assert code == 0 and result["looks"] == 12


def test_fresh_empties_no_other_folder(simulated_bag, policy, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    # As `sqap evaluate` leaves one.
    (tmp_path / "run.json").write_text('{"methods": ["float"]}')
    code, _, errors = run(capsys, simulated_bag, "--checkpoint", policy, "--method", "float", "--out", tmp_path,
                          "--fresh", *WORDS)
    assert code == 1 and "holds no replay, so --fresh does not empty it" in errors
    assert (tmp_path / "mine.txt").read_text() == "precious"
    code, _, errors = run(capsys, simulated_bag, "--checkpoint", policy, "--method", "float", "--out", tmp_path, *WORDS)
    assert code == 1 and "holds something else than a replay; take another folder" in errors


def test_a_list_says_what_is_there_and_what_is_missing(simulated_bag, capsys):
    code, result, errors = run(capsys, simulated_bag, "--list", "--set", "input.cameras=[wrist]")
    assert code == 0 and not result["can_be_replayed"]
    assert result["topics"]["/camera/image_raw"] == {"type": "sensor_msgs/msg/Image", "count": 12}
    assert "--remap /wrist/image_raw:=/camera/image_raw" in result["missing"]["/wrist/image_raw"]
    assert "missing: /wrist/image_raw is not there" in errors
    code, result, _ = run(capsys, simulated_bag, "--list")
    assert result["can_be_replayed"] and result["missing"] == {}


def test_the_nodes_own_parameter_file_says_which_policy_and_topics(simulated_bag, policy, tmp_path, capsys):
    file = tmp_path / "robot.yaml"
    file.write_text("/**/policy_node:\n  ros__parameters:\n    use_sim_time: true\n    model:\n      checkpoint: "
                    f"{policy}\n      recipe: float\n    prune: {{rule: sqap, pruned_ratio: 0.25, layer: 0}}\n")
    _, result, _ = run(capsys, simulated_bag, "--config", file, "--out", tmp_path / "out", "--no-overlays", *WORDS)
    assert result["tokens"]["float+sqap@0.25"]["kept_mean"] == 48


def test_another_checkpoint_is_compared_by_its_folders_name(simulated_bag, policy, tiny_demo, tmp_path, capsys):
    save_model(tiny_demo(seed=1), tmp_path / "other")
    _, result, _ = run(capsys, simulated_bag, "--checkpoint", policy, "--method", "float", "--against",
                       tmp_path / "other", "--out", tmp_path / "out", "--no-overlays", *WORDS)
    row = next(row for row in result["compared"] if row["with"] == "other")
    assert row["looks"] == 12 and row["mae"] > 0.0


@pytest.mark.parametrize(("words", "sentence"), [
    (("nowhere",), "nowhere"), (("{bag}", "--against", "w3a3"), "--against 'w3a3' is neither a folder nor a method"),
    (("{bag}", "--method", "float", "--against", "float"), "'float', which is there already"),
    (("{bag}", "--remap", "a=b"), "'a=b' remaps nothing"),
    (("{bag}", "--config", "nowhere.yaml"), "the parameter file nowhere.yaml cannot be read")])
def test_what_cannot_be_is_a_sentence(simulated_bag, capsys, words, sentence):
    code, _, errors = run(capsys, *(word.format(bag=simulated_bag) for word in words))
    assert code == 1 and sentence in errors and errors.startswith("sqap replay: ")


def test_wrong_use_exits_with_2(simulated_bag, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["replay", str(simulated_bag), "--method", "w3a3"])
    assert end.value.code == 2 and "w3a3" in capsys.readouterr().err
