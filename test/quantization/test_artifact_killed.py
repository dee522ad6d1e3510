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

"""An artifact is whole whenever its writer is killed."""

import os
import subprocess
import sys
from pathlib import Path

KILLS = 40
# One process that imports torch, and a child of it for each kill.
SCRIPT = """
import os, random, shutil, signal, sys, time
from pathlib import Path

import torch

from sqap_vla_ros.models.demo import DemoConfig, DemoVla
from sqap_vla_ros.models.llama import LlamaConfig
from sqap_vla_ros.models.registry import load_model
from sqap_vla_ros.models.vit import VitConfig
from sqap_vla_ros.models.vla import ActionSpec
from sqap_vla_ros.quantization.artifact import Origin
from sqap_vla_ros.quantization.artifact_writer import save_artifact
from sqap_vla_ros.quantization.quantize import W4A4, quantize_

torch.set_num_threads(1)
place, kills = Path(sys.argv[1]), int(sys.argv[2])
config = DemoConfig(VitConfig(64, 16, 16, 32, 1, 2), LlamaConfig(64, 96, 2, 4, 2), ("reach",),
                    ActionSpec(4, (-1.0,) * 7, (1.0,) * 7, (True,) * 6 + (False,)))
models = [DemoVla(config).eval() for _ in range(2)]
reports = [quantize_(model, W4A4()) for model in models]
states = [model.state_dict() for model in models]

def save(index):
    save_artifact(models[index], place, "w4a4-rtn", W4A4(), reports[index], config=config.to_json(),
                  origin=Origin("0", "x", {}), pruning={}, replace=True)

def recognise():
    # Loading refuses whatever is not whole.
    found = load_model(place).state_dict()
    return [all(torch.equal(found[name], state[name]) for name in state) for state in states].index(True)

save(0)
began = time.monotonic()
save(1)
save(0)
both_s = time.monotonic() - began  # however busy the machine is
shutil.rmtree(place)
random.seed(0)
seen = [0, 0]
for _ in range(kills):
    child = os.fork()
    if not child:
        while True:
            save(0)
            save(1)
    time.sleep(random.random() * 3 * both_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if place.exists():
        seen[recognise()] += 1
    else:
        assert not sum(seen), "it was there and is gone"
save(0)
print(*seen, *sorted(path.name for path in place.parent.iterdir()))
"""


def test_killed_at_any_moment_there_is_one_whole_artifact(tmp_path) -> None:
    answer = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "out"), str(KILLS)], text=True,
                            capture_output=True, timeout=110, cwd=Path(__file__).parents[2], check=False,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert answer.returncode == 0, answer.stderr
    first, second, *left = answer.stdout.split()
    assert int(first) >= 5 and int(second) >= 5 and int(first) + int(second) > KILLS / 2
    assert left == ["out"]
