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

"""What an evaluation's rows say."""

from sqap_vla_ros.evaluation.table import build_sections, describe_conditions, write_markdown

SETTINGS = {"suite": "hard", "scene": ["dim-light"], "blind": "", "language": "scene", "episodes": 40,
            "first_seed": 2_000_000, "checkpoint": "demo", "execute_steps": 2}
FLOAT = {
    "method": "float", "success": 0.95, "interval": [0.8350, 0.9862], "successes": 38, "episodes": 40,
    "steps_to_success": {"median": 21.5, "p90": 40.0}, "path_to_success_m": 0.4321, "jerk_m_s3": 1.234,
    "tasks": {"small": {"successes": 18, "episodes": 20}, "stack": {"successes": 20, "episodes": 20}},
    "fidelity": {"action_mse": 0.0, "action_cosine": 1.0, "score_rank_correlation": None, "observations": 8}}
SMALL = {
    "method": "w4a4", "success": 0.9, "interval": [0.7695, 0.9604], "successes": 18, "episodes": 20,
    "steps_to_success": {"median": 22.0, "p90": 41.0}, "path_to_success_m": None, "jerk_m_s3": None,
    "tasks": {"small": {"successes": 18, "episodes": 20}},
    "fidelity": {"action_mse": 0.000123, "action_cosine": 0.98765, "score_rank_correlation": 0.875, "observations": 8}}
NOTHING = {"method": "w8a8", "success": 0.0, "interval": [0.0, 1.0], "successes": 0, "episodes": 0,
           "steps_to_success": None, "path_to_success_m": None, "jerk_m_s3": None, "tasks": {}}
COMPARED = {
    "w4a4": {"difference": -0.05, "interval": [-0.124, 0.021], "episodes": 20, "only_first": 2, "only_this": 1,
             "jerk": {"ratio": 1.05, "interval": [1.011, 1.098], "episodes": 20}, "path": None,
             "steps": {"ratio": 0.98, "interval": [0.9, 1.07], "episodes": 17}},
    "w8a8": {"difference": 0.0, "interval": [-1.0, 1.0], "episodes": 0, "only_first": 0, "only_this": 0, "jerk": None,
             "path": None, "steps": None}}
SUMMARY = {"settings": SETTINGS, "methods": {row["method"]: row for row in (FLOAT, SMALL, NOTHING)},
           "compared": COMPARED}


def test_every_method_is_a_row_in_every_section():
    success, groups, motion, ratios, fidelity = build_sections(SUMMARY)
    assert success.headings == ("success", "95 % interval", "change against float, points", "only first / only this")
    assert success.cells == (("38/40  95.0%", "83.5 to 98.6", "-", "-"),
                             ("18/20  90.0%", "77.0 to 96.0", "-5.0 (-12.4 to +2.1)", "2 / 1"), ("-",) * 4)
    assert groups.headings == ("small", "stack")
    assert groups.cells == (("18/20", "20/20"), ("18/20", "-"), ("-", "-"))
    assert motion.cells == (("21.5 / 40", "0.432", "1.23"), ("22 / 41", "-", "-"), ("-",) * 3)
    assert ratios.cells == (("-",) * 3, ("0.98 (0.90 to 1.07)", "-", "1.05 (1.01 to 1.10)"), ("-",) * 3)
    assert fidelity.headings == ("action MSE", "action cosine", "rank correlation of scores")
    assert fidelity.cells == (("0.00e+00", "1.0000", "-"), ("1.23e-04", "0.9877", "0.875"), ("-",) * 3)


def test_markdown_has_one_table_that_says_what_it_is_of():
    lines = write_markdown(SUMMARY).splitlines()
    assert lines[0] == "# hard suite, dim-light: 40 episodes per method"
    assert lines[2] == ("Checkpoint `demo`, scenes 2000000 to 2000039, 2 steps per look; 60 of 120 episodes are "
                        "finished.")
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 3 and {row.count("|") for row in rows} == {1 + 1 + 4 + 2 + 3 + 3 + 3}
    assert rows[3].startswith("| w4a4 | 18/20  90.0% | 77.0 to 96.0 | -5.0 (-12.4 to +2.1) | 2 / 1 | 18/20 | - |")


def test_one_method_is_compared_with_nothing():
    row = {key: value for key, value in FLOAT.items() if key != "fidelity"}
    sections = build_sections({"methods": {"float": row}, "compared": {}})
    assert [section.title for section in sections] == ["Same scenes, same instructions", "Success by group", "Motion"]
    assert sections[0].headings == ("success", "95 % interval")


def test_exchanged_instructions_are_told():
    row = FLOAT | {"went_to": {"named": 30, "replaced": 8, "elsewhere": 2}}
    places = build_sections({"methods": {"float": row}, "compared": {}})[-1]
    assert places.cells == (("30/40", "8/40", "2/40"),)
    assert describe_conditions(SETTINGS | {"blind": "target", "language": "other"}) == (
        "hard suite, dim-light, target tokens blanked, another block named")
