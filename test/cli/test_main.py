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

"""The command line's manners."""

import json
import sys

import pytest

from sqap_vla_ros.cli import main as cli
from sqap_vla_ros.errors import ConfigError


@pytest.mark.parametrize("words", [[], ["dance"], ["demo", "--episodes", "0"], ["demo", "--episodes", "many"],
                                   ["demo", "--methods", "float+sqap"], ["demo", "--methods", "w3a3"],
                                   ["demo", "--methods", "float,float"], ["demo", "--speed", "-1"],
                                   ["demo", "--seed", "-1"], ["info", "--what"], ["info", "--linears"],
                                   ["info", "demo", "--knobs"]])
def test_wrong_use_exits_with_2_and_a_sentence(words, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert "error:" in captured.err and captured.out == ""


def test_number_out_of_range_names_the_range(capsys):
    with pytest.raises(SystemExit):
        cli.main(["demo", "--episodes", "many"])
    assert "argument --episodes: many is not allowed; take a whole number from 1 to 1000" in capsys.readouterr().err


def test_folder_that_cannot_be_is_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--out", str(tmp_path / "file")]) == 1
    assert "cannot be written: Not a directory; take another folder" in capsys.readouterr().err


def test_info_ends_with_one_line_of_json(capsys):
    assert cli.main(["info", "--knobs"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["knobs"]["model.recipe"] == "w4a4"
    assert "Share of the visual tokens dropped" in captured.err


def test_failure_exits_with_1_and_one_sentence(monkeypatch, capsys):
    def fail(_):
        raise ConfigError("this cannot be")

    monkeypatch.setattr("sqap_vla_ros.cli.info.run", fail)
    assert cli.main(["info"]) == 1
    assert capsys.readouterr().err == "sqap info: this cannot be\n"


def test_missing_ros_says_what_to_do(monkeypatch, capsys):
    known = ("sqap_vla_ros.cli.demo", "sqap_vla_ros.cli.staging", "sqap_vla_ros.ros")
    for name in [name for name in sys.modules if name.startswith(known)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rclpy", None)
    assert cli.main(["demo"]) == 1
    assert "'rclpy' is not installed; source your ROS 2 installation, or run `make`" in capsys.readouterr().err


def test_every_verb_has_a_module_with_a_parser():
    for verb in cli.VERBS:
        assert verb in cli.build_parser(verb).format_help()
