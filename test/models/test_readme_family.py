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

"""The family in README.md works as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from sqap_vla_ros.config import build_config
from sqap_vla_ros.data import Observation
from sqap_vla_ros.models import registry
from sqap_vla_ros.models.llama import LlamaConfig
from sqap_vla_ros.models.own_format import save_model
from sqap_vla_ros.models.vla import VlaModel
from sqap_vla_ros.policy.compression import compress_checkpoint
from sqap_vla_ros.policy.policy import build_policy

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def names(monkeypatch):
    """What the example defines."""
    (code,) = re.findall(r"```python\n(from dataclasses.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) <= 42
    defined = {"__name__": "mine"}
    exec(compile(code, str(README), "exec"), defined)
    monkeypatch.setitem(registry.FAMILIES, "mine", defined["FAMILY"])
    return defined


def test_it_is_saved_compressed_pruned_and_asked(names, tmp_path):
    torch.manual_seed(0)
    model = names["Mine"](names["MineConfig"](LlamaConfig(64, 128, 3, 4, 4))).eval()
    assert isinstance(model, VlaModel)
    save_model(model, tmp_path / "float")
    compress_checkpoint(tmp_path / "float", tmp_path / "w4a4", "w4a4-rtn")
    picture = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    observation = Observation(0, (picture,), "go", (None,))
    steps = {}
    for checkpoint, recipe in (("float", "float"), ("w4a4", "stored")):
        for ratio in (0.0, 0.5):
            policy = build_policy(build_config({
                "model.checkpoint": str(tmp_path / checkpoint), "model.recipe": recipe, "prune.pruned_ratio": ratio}))
            policy.warm_up()
            inference = policy.infer(observation)
            assert len(inference.tokens[0].kept) == round(256 * (1 - ratio))
            steps[checkpoint, ratio] = inference.chunk.steps
    plain = steps["float", 0.0]
    assert plain.shape == (4, 7)
    for other in (steps["float", 0.5], steps["w4a4", 0.0], steps["w4a4", 0.5]):
        assert 0.0 < np.abs(other - plain)[:, :6].max() < 0.02
