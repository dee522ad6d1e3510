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

"""Dependencies point one way, heavy libraries stay where they belong, and files stay short."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sqap_vla_ros"
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
ORDER = (
    {"errors"}, {"knobs"}, {"compiled", "config", "data", "standalone"}, {"fused_rows", "parameter_file"},
    {"quantization", "pruning", "geometry"}, {"models"}, {"policy"},
    {"ros", "simulation", "training", "evaluation"}, {"bags", "report"}, {"cli"},
)
# Siblings do not import each other, with three exceptions: the simulated robot's node is a ROS node, the demo policy
# learns from the simulated expert, and policies are evaluated on the simulated table.
EXCEPTIONS = {"simulation/robot_node.py": {"ros"}, "training": {"simulation"},
              "evaluation/plan.py": {"simulation"}, "evaluation/closed_loop.py": {"simulation"},
              "evaluation/fidelity.py": {"simulation"}}
# The licence's header and an empty line begin each file.
LICENSE_LINES = 14
ROS = {"rclpy", "tf2_ros", "cv_bridge", "ament_index_python", "launch", "launch_ros"}
NUMERIC = {"numpy", "torch", "transformers", "safetensors", "cv2", "scipy", "mujoco"}
# Selection ends in `data.TokenUse`, which crosses borders as NumPy, and its loop over a few tokens is quicker there.
ONLY = {"quantization": {"torch", "safetensors"}, "pruning": {"torch", "numpy"}, "geometry": {"numpy"}}


def imports_of(module):
    """Absolute dotted names that a module imports, wherever in the file."""
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            whole = node.module == PACKAGE.name
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if whole else (node.module,)


def breaches_of(module, imported):
    """What ``module`` imports against the rules."""
    part = module.split("/")[0].removesuffix(".py")
    rank = next((index for index, layer in enumerate(ORDER) if part in layer), len(ORDER))
    allowed = {part}.union(*ORDER[:rank], EXCEPTIONS.get(part, ()), EXCEPTIONS.get(module, ()))
    for name in imported:
        top, _, rest = name.partition(".")
        if top == PACKAGE.name:
            breach = rest != "" and rest.split(".")[0] not in allowed
        elif top in ROS:
            breach = part not in {"ros", "standalone", "bags"} and module != "simulation/robot_node.py"
        else:
            breach = part in ONLY and top in NUMERIC - ONLY[part]
        if breach:
            yield f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_module_keeps_to_its_place(module):
    assert not list(breaches_of(module, imports_of(module)))
    length = len((PACKAGE / module).read_text().splitlines()) - LICENSE_LINES
    assert length <= 300, f"{module} has {length} lines"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_happens_at_import(module):
    for statement in ast.parse((PACKAGE / module).read_text()).body:
        working = isinstance(statement, (ast.For, ast.While, ast.With)) or (
            isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Constant)
            and not ast.unparse(statement).startswith("os.environ."))  # some libraries read it when imported
        assert not working, f"{module}:{statement.lineno} does something when it is imported"


@pytest.mark.parametrize(("module", "name"), [
    ("geometry/camera.py", "torch"), ("pruning/scores.py", "sqap_vla_ros.quantization.integer"),
    ("policy/policy.py", "rclpy.node"), ("evaluation/report.py", "sqap_vla_ros.simulation"),
    ("simulation/tabletop.py", "sqap_vla_ros.ros.codecs"), ("errors.py", "sqap_vla_ros.data"),
])
def test_breach_is_found(module, name):
    assert list(breaches_of(module, [name])) == [f"{module} imports {name}"]
