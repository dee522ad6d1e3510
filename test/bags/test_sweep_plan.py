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

"""What a sweep.yaml says, what it may not say, and what each cell has on disk and in the table."""

import json
import os
from pathlib import Path

import pytest
import yaml

from sqap_vla_ros.bags.sweep_file import find_bags, name_bags, read_sweep
from sqap_vla_ros.bags.sweep_folder import SweepFolder, begin_cell, read_finished
from sqap_vla_ros.bags.sweep_plan import Made, Sweep, count_threads, needs_gpu, plan_cells
from sqap_vla_ros.bags.sweep_results import Landed, build_row, say_row, write_markdown
from sqap_vla_ros.config import build_config
from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.evaluation.methods import Method
from sqap_vla_ros.evaluation.summary import write_json

ROOT = Path(__file__).parents[2]
COMPARISON = {"policy": "w4a4+sqap@0.4", "with": "float", "looks": 7, "mse": 1.25e-4, "mae": 0.01,
              "cosine": {"mean": 0.99, "min": 0.9}, "gripper_agreement": 0.875, "dimensions": {}}
SUMMARY = {"kind": "replay", "bag": {"looks": 8}, "compared": [COMPARISON, {**COMPARISON, "with": "recorded"}],
           "tokens": {"w4a4+sqap@0.4": {"kept_mean": 154.0, "total": 256, "gripper_kept_mean": 0.96}},
           "timing": {"w4a4+sqap@0.4": {"latency_ms": {"total": {"p50": 10.0, "p95": 12.5, "p99": 13.0, "max": 14.0}},
                                        "deadline_ms": 50.0, "deadline_misses": 1}}}


@pytest.fixture
def write(tmp_path):
    """Writer of a sweep.yaml beside two bags, ``bags/one`` (a folder) and ``bags/two.mcap``."""
    (tmp_path / "bags/one").mkdir(parents=True)
    (tmp_path / "bags/one/one_0.db3").write_bytes(b"x")
    (tmp_path / "bags/two.mcap").write_bytes(b"xy")
    (tmp_path / "bags/README.md").write_text("no bag")

    def write(**values):
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({"methods": ["float", "w4a4"], "bags": ["bags/*"], **values}))
        return path

    return write


def plan(sweep, made=None):
    return plan_cells(sweep, Path("/out/cells"), made or {}, {"checkpoint_sha256": {}})


def test_cells_are_methods_ratios_bags_and_seeds_and_none_is_there_twice(write):
    sweep = read_sweep(write(methods=["float", "w4a4", "w8a8", "w4a4+random@0.4", "w4a4+sqap@0.4"],
                             rules=["sqap", "fastv"], ratios=[0, 0.4], seeds=[0, 7]))
    names = ["float", "w4a4", "w4a4+sqap@0.4", "w4a4+fastv@0.4", "w8a8", "w8a8+sqap@0.4", "w8a8+fastv@0.4",
             "w4a4+random@0.4"]
    assert [method.name for method in sweep.methods] == names
    cells = plan(sweep)
    assert [cell.name for cell in cells] == [f"{name}__{bag}__seed{seed}" for bag in ("one", "two.mcap")
                                             for name in names for seed in (0, 7)]
    assert len({cell.folder for cell in cells}) == len(cells) == 32
    assert cells[0].folder == Path("/out/cells/float__one__seed0") and cells[0].bag.name == "one"


def test_policies_of_a_cell_differ_in_what_the_sweep_says_alone(write):
    path = write(knobs={"prune.layer": 2, "model.threads": 2, "control.step_period_s": 0.2}, ratios=[0.4], seeds=[3],
                 instruction="lift the cup", namespace="/left", remap={"a": "/b"}, limit=5)
    first, second = plan(read_sweep(path), {"w4a4": Made("/out/compressed/w4a4", {"sha256": "ab"})})[:2]
    (label, float_knobs), = first.policies
    shared = {"model.threads": 2, "prune.layer": 2, "prune.seed": 3}
    assert (label, float_knobs, first.against) == ("float", {
        **shared, "model.checkpoint": "demo", "model.recipe": "float", "prune.rule": "none",
        "prune.pruned_ratio": 0.0}, "")
    assert second.policies == (("w4a4+sqap@0.4", {
        **shared, "model.checkpoint": "/out/compressed/w4a4", "model.recipe": "stored", "prune.rule": "sqap",
        "prune.pruned_ratio": 0.4}), ("float", float_knobs))
    assert second.against == "float" and second.knobs == {"control.step_period_s": 0.2}
    assert (second.instruction, second.namespace, second.remap, second.limit) == ("lift the cup", "/left", {"a": "/b"},
                                                                                  5)
    for cell in (first, second):
        for _, knobs in cell.policies:
            build_config({**knobs, **cell.knobs})


def test_settings_of_a_cell_change_with_what_decides_it_and_with_nothing_else(write):
    def describe(made="ab", **values):
        sweep = read_sweep(write(**{"seeds": [0], **values}))
        cells = plan(sweep, {"w4a4": Made("/out/w4a4", {"sha256": made}), "w8a8": Made("/out/w8a8", {"sha256": "q"})})
        return {cell.name: cell.settings for cell in cells}["w4a4__one__seed0"]

    first = describe()
    assert first == describe(methods=["w8a8", "w4a4"], seeds=[1, 0], bags=["bags/one"])
    assert json.loads(json.dumps(first)) == first
    for other in ({"made": "cd"}, {"limit": 3}, {"against": ""}, {"knobs": {"prune.layer": 2}}, {"remap": {"a": "b"}}):
        assert describe(**other) != first, other
    bag = write().parent / "bags/one/one_0.db3"
    os.utime(bag, (1, 1))
    assert describe() != first


def test_parameter_file_of_a_node_gives_knobs_that_single_ones_replace(write):
    path = write(params_file="node.yaml", knobs={"control.execute_steps": 1})
    (path.parent / "node.yaml").write_text(
        "/**/policy_node:\n  ros__parameters:\n    use_sim_time: true\n    model:\n      recipe: w8a8\n      "
        "device: cuda:1\n    control:\n      execute_steps: 4\n    input.transport: compressed\n"
        "/**/watchdog_node:\n  ros__parameters:\n    timeout_s: 0.1\n")
    sweep = read_sweep(path)
    assert sweep.knobs == {"model.device": "cuda:1", "control.execute_steps": 1, "input.transport": "compressed"}
    assert needs_gpu(sweep) and count_threads(sweep) == 1


def test_parameter_files_of_the_package_are_taken(write):
    for name in ("policy.yaml", "cogact_widowx.yaml", "openvla_oft_libero.yaml"):
        assert read_sweep(write(params_file=str(ROOT / "config" / name))).knobs["input.cameras"]


def test_example_is_read_and_meets_bags_beside_it(write):
    path = write()
    path.write_text((ROOT / "config/sweep.yaml").read_text())
    sweep = read_sweep(path)
    assert [method.name for method in sweep.methods] == ["float", "w4a4", "w4a4+sqap@0.4", "w4a4+sqap@0.6"]
    assert list(sweep.bags) == ["one", "two.mcap"] and sweep.against == Method("float")


@pytest.mark.parametrize(("values", "sentence"), [
    ({"ratio": [0.4]}, "unknown key 'ratio'; known are checkpoint, calibration, methods"),
    ({"methods": []}, "methods is missing or empty; give a list of recipes or methods, like [float, w4a4]"),
    ({"methods": None}, "methods is missing or empty"),
    ({"methods": "w4a4"}, "methods is 'w4a4'; it must be a list of recipes or methods"),
    ({"methods": ["w4a4", 4]}, "methods is ['w4a4', 4]; it must be a list"),
    ({"methods": ["w4a4", "w4a4"]}, "names something twice; name each once"),
    ({"methods": ["w3a3"]}, "model.recipe is 'w3a3'; allowed are float, stored, w4a4"),
    ({"methods": ["w4a4+sqap"]}, "'w4a4+sqap' is no method; write RECIPE or RECIPE+RULE@SHARE"),
    ({"rules": ["best"], "ratios": [0.4]}, "prune.rule is 'best'; allowed are none, sqap"),
    ({"ratios": 0.4}, "ratios is 0.4; it must be a list of the shares"),
    ({"ratios": [True]}, "ratios is [True]; it must be a list"), ({"ratios": [0, 0.0]}, "names something twice"),
    ({"ratios": [0.99]}, "prune.pruned_ratio is 0.99; the largest allowed is 0.95"),
    ({"seeds": [0.5]}, "seeds is [0.5]; it must be a list of whole numbers"), ({"seeds": []}, "seeds is []; it must"),
    ({"seeds": [-1]}, "prune.seed is -1; the smallest allowed is 0"),
    ({"against": "none"}, "model.recipe is 'none'; allowed are float"), ({"limit": -1}, "limit is -1; it must be"),
    ({"bags": ["bags/x*"]}, "'bags/x*' names no bag below"), ({"bags": ["three"]}, "'three' names no bag below"),
    ({"bags": ["bags/*.md"]}, "'bags/*.md' names no bag below"),
    ({"bags": ["bags/*", "bags/one"]}, "is named twice, by 'bags/*' and 'bags/one'; name it once"),
    ({"knobs": {"prune.seed": 1}}, "prune.seed is for the sweep to say, by checkpoint, methods"),
    ({"knobs": {"prune.depth": 1}}, "unknown knob 'prune.depth'"), ({"knobs": ["a"]}, "knobs is ['a']; it must be"),
    ({"remap": {"a": 1}}, "remap is {'a': 1}; it must be topics by topics"),
    ({"params_file": "none.yaml"}, "none.yaml cannot be read: No such file or directory"),
    ({"params_file": "sweep.yaml"}, "sets no parameter of policy_node; below 'policy_node:' or")])
def test_what_cannot_be_is_one_sentence(write, values, sentence):
    with pytest.raises(ConfigError) as refusal:
        read_sweep(write(**values))
    assert sentence in str(refusal.value) and str(refusal.value).count("\n") == 0
    assert "sweep.yaml" in str(refusal.value)


@pytest.mark.parametrize(("text", "sentence"), [
    ("methods: [", "is no YAML"), ("- float\n", "must hold keys and values, got list"), ("", "got NoneType")])
def test_file_that_is_no_sweep_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_sweep(path)
    with pytest.raises(ConfigError, match=r"other.yaml cannot be read: No such file or directory; give the path"):
        read_sweep(tmp_path / "other.yaml")


def test_files_of_a_bag_are_no_bags_and_names_are_as_long_as_it_takes(tmp_path):
    for name in ("day 1/bag/a_0.mcap", "day 2/bag/a_0.mcap", "day 2/alone.db3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_bags(tmp_path, ["**"]) == [tmp_path / "day 1/bag", tmp_path / "day 2", tmp_path / "day 2/bag"]
    bags = find_bags(tmp_path, ["day*/bag"])
    assert name_bags(bags) == {"day-1-bag": bags[0], "day-2-bag": bags[1]}
    assert list(name_bags(bags[:1])) == ["bag"]
    with pytest.raises(ConfigError, match="differ in special characters only"):
        name_bags([Path("/a b"), Path("/a-b")])


def cells_in(folder, write, **values):
    sweep = read_sweep(write(methods=["w4a4+sqap@0.4"], **values))
    return sweep, plan_cells(sweep, folder / "cells", {}, {})


def test_cell_is_finished_by_a_whole_summary_of_the_same_settings(write, tmp_path):
    _, (cell, _) = cells_in(tmp_path, write)
    cell.folder.mkdir(parents=True)
    write_json(cell.folder / "summary.json", SUMMARY)
    assert read_finished(cell) is None
    # What lay there is of nobody knows what.
    assert begin_cell(cell, alone=True) == Landed(cell, None, begun=1, alone=True)
    assert not (cell.folder / "summary.json").exists()
    (cell.folder / "overlays").mkdir()
    assert begin_cell(cell, alone=False).begun == 2 and (cell.folder / "overlays").exists()
    (cell.folder / "summary.json").write_text(json.dumps(SUMMARY)[:50])
    assert read_finished(cell) is None
    write_json(cell.folder / "summary.json", SUMMARY)
    assert read_finished(cell) == Landed(cell, SUMMARY, begun=2)
    _, (other, _) = cells_in(tmp_path, write, limit=3)
    assert other.folder == cell.folder and read_finished(other) is None
    assert begin_cell(other, alone=True).begun == 1 and [path.name for path in cell.folder.iterdir()] == ["cell.json"]


def test_folder_with_results_is_taken_when_told_to_go_on_alone(write, tmp_path):
    out = tmp_path / "out"
    sweep, cells = cells_in(out, write)
    with SweepFolder(out, sweep, cells) as folder:
        cells[0].folder.mkdir(parents=True)
        begin_cell(cells[0], alone=True)
        write_json(cells[0].folder / "summary.json", SUMMARY)
        folder.add(Landed(cells[0], SUMMARY, begun=1, alone=True))
        folder.add(Landed(cells[1], None, "the bag is empty"))
        with pytest.raises(ConfigError, match="another sweep writes to"):
            SweepFolder(out, sweep, cells, resume=True)
    lines = (out / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["finished", "failed"]
    with pytest.raises(ConfigError, match="holds results of this sweep; say --resume"):
        SweepFolder(out, sweep, cells)
    other, others = cells_in(out, write, seeds=[0, 1])
    with pytest.raises(ConfigError, match=r"holds results of a sweep with seeds \[0\], not \[0, 1\]; say --resume"):
        SweepFolder(out, other, others)
    assert (out / "results.jsonl").read_text().splitlines() == lines
    # A line that a kill has cut is no harm: the cell's folder says that it is finished.
    (out / "results.jsonl").write_text(lines[0][:40])
    with SweepFolder(out, other, others, resume=True) as folder:
        assert [landed.cell.name for landed in folder.landed] == [cells[0].name]
    assert (out / "results.jsonl").read_text().splitlines() == lines[:1]


def test_results_are_told_with_what_they_were_compared_with(write, tmp_path):
    _, (cell, other) = cells_in(tmp_path, write)
    row = build_row(Landed(cell, SUMMARY, begun=1))
    assert row["against"] == {name: COMPARISON[name] for name in ("with", "looks", "mse", "mae", "cosine",
                                                                  "gripper_agreement")}
    assert row["recorded"]["with"] == "recorded" and row["latency_ms"] == {"p50": 10.0, "p95": 12.5}
    assert (row["kept_mean"], row["total"], row["gripper_kept_mean"], row["looks"]) == (154.0, 256, 0.96, 8)
    assert say_row(row) == ("w4a4+sqap@0.4", "one", "0", "8", "float", "1.25e-04", "1.00e-02", "0.9900 / 0.9000",
                            "87.5%", "154.0 of 256", "96.0%", "10.0 / 12.5")
    bare = {**SUMMARY, "compared": [{**COMPARISON, "mse": None, "cosine": None, "gripper_agreement": None}],
            "tokens": {"w4a4+sqap@0.4": {"kept_mean": None, "total": None, "gripper_kept_mean": None}},
            "timing": {"w4a4+sqap@0.4": {"latency_ms": {}, "deadline_misses": 0}}}
    assert say_row(build_row(Landed(cell, bare)))[5:] == ("-", "1.00e-02", "-", "-", "-", "-", "-")
    assert say_row(build_row(Landed(cell, {**SUMMARY, "compared": []})))[4:9] == ("-",) * 5
    table = write_markdown([row, build_row(Landed(other, None, "the bag is empty"))], "2 cells")
    assert "| w4a4+sqap@0.4 | one | 0 | 8 | float |" in table
    assert "- `w4a4+sqap@0.4__two.mcap__seed0`: the bag is empty" in table and "compare it with nothing" in table
    assert "one cell at a time" in write_markdown([{**row, "alone": True}], "1 cell")
    assert "No cell is finished." in write_markdown([], "none")


def test_sweep_that_compares_with_nothing_has_one_policy_a_cell(write):
    for nothing in ("", None):
        sweep = read_sweep(write(against=nothing))
        assert sweep.against is None and sweep.all_methods == sweep.methods
        assert all(len(cell.policies) == 1 and cell.against == "" for cell in plan(sweep))
    assert Sweep("demo", (Method("float"),), {}, against=Method("float")).all_methods == (Method("float"),)
