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

import pytest

from sqap_vla_ros.standalone import import_ros_module


def test_an_installed_module_is_taken(tmp_path, monkeypatch):
    (tmp_path / "installed_ros_module.py").write_text("REAL = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert import_ros_module("installed_ros_module").REAL


def test_an_installed_module_that_is_broken_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "broken_ros_module.py").write_text("import there_is_no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_module"):
        import_ros_module("broken_ros_module")


@pytest.mark.parametrize(("name", "contents"), [
    ("tf2_ros", ("Buffer", "TransformListener", "TransformBroadcaster", "StaticTransformBroadcaster")),
    ("cv_bridge", ("CvBridge", "CvBridgeError"))])
def test_a_missing_module_has_a_stand_in(name, contents):
    chosen = import_ros_module(name)
    assert chosen.__name__ in (name, f"sqap_vla_ros.standalone.{name}")
    assert all(hasattr(chosen, item) for item in contents)
