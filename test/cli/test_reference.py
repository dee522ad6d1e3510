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

"""README and config/ say what the code says."""

from pathlib import Path

import pytest
import yaml

from sqap_vla_ros.cli import demo, reference, staging
from sqap_vla_ros.config import Config, build_config, iterate_knobs
from sqap_vla_ros.evaluation.methods import parse_methods
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.parameters import PARAMETERS

ROOT = Path(__file__).parents[2]
RENEW = "run `python -m sqap_vla_ros.cli.reference`"


def flatten(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def parameters(file, node):
    return dict(flatten(yaml.safe_load((ROOT / "config" / file).read_text())[f"/**/{node}"]["ros__parameters"]))


def test_readme_tables_are_up_to_date():
    readme = (ROOT / "README.md").read_text()
    assert reference.fill_markers(readme, reference.format_sections()) == readme, RENEW


def test_policy_yaml_holds_every_knob_at_its_default():
    assert (ROOT / "config/policy.yaml").read_text() == reference.format_policy_yaml(), RENEW
    values = parameters("policy.yaml", "policy_node")
    knobs = {name: value for name, value in values.items() if "." in name}
    assert knobs.keys() == {name for name, _, _ in iterate_knobs(Config())}
    assert build_config(knobs) == Config()


def test_demo_yaml_says_what_the_demo_does():
    robot, policy = parameters("demo.yaml", "sim_robot"), parameters("demo.yaml", "policy_node")
    assert robot.keys() <= PARAMETERS.keys()
    assert robot | {"real_time_factor": 0.0} == staging.ROBOT_PARAMETERS
    assert policy.items() >= staging.POLICY_PARAMETERS.items()
    knobs = {name: value for name, value in policy.items() if "." in name}
    build_config(knobs)
    compressed = parse_methods(demo.DEFAULT_METHODS)[1]
    assert knobs.items() >= compressed.knobs.items()


def test_layout_fields_are_described():
    assert reference.read_field_texts().keys() == Layout.__dataclass_fields__.keys()


def test_missing_marker_is_named():
    with pytest.raises(ValueError, match="lacks the markers '<!-- results -->'"):
        reference.fill_markers("# title", {"results": "x"})


def test_results_table_shows_both_methods():
    row = {"method": "float", "successes": 11, "episodes": 12, "interval": [0.6461, 0.9851], "kept_tokens": 256,
           "total_tokens": 256, "weight_bytes": 20_000_000, "latency_ms": {"llm": {"p50": 30.04, "p95": 41.0}}}
    table = reference.format_results({
        "float": row, "compressed": row | {"method": "w4a4-rtn", "kept_tokens": 154}, "settings": {"first_seed": 5},
        "machine": {"processor": "A CPU", "cores": 2}, "versions": {"torch": "2.13.0"}, "success": 0.9})
    assert "| success | 11 of 12 | 11 of 12 |" in table and "| llm, ms p50 / p95 | 30.0 / 41.0 |" in table
    assert "154 of 256" in table and "65% to 99%" in table and "--seed 5` on A CPU, 2 cores, torch 2.13.0" in table
