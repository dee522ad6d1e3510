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

"""Pictures of the expert at work, and the verb that stores them."""

import itertools
import json
from collections import Counter

import numpy as np

from sqap_vla_ros.cli import main as cli
from sqap_vla_ros.policy.observations import read_observations
from sqap_vla_ros.simulation.observing import FIRST_SEED, mix_suites, observe_expert
from sqap_vla_ros.simulation.suite import SEED_RANGES, SUITES
from sqap_vla_ros.training.settings import TRAIN_SEEDS


def test_pictures_show_both_suites_at_work_and_repeat():
    first, second = (list(observe_expert(6)) for _ in range(2))
    assert [words for _, words in first] == [trial.task.instruction for trial in mix_suites(6, FIRST_SEED)]
    assert all(np.array_equal(one, other) for (one, _), (other, _) in zip(first, second, strict=True))
    pictures = np.stack([picture for picture, _ in first])
    assert pictures.shape == (6, 224, 224, 3) and pictures.dtype == np.uint8
    assert min(np.abs(one.astype(int) - other).mean() for one, other in itertools.pairwise(pictures)) > 1.0


def test_every_group_of_every_suite_has_its_share_of_scenes():
    trials = mix_suites(36, FIRST_SEED)
    assert sorted(trial.seed for trial in trials) == [*range(FIRST_SEED, FIRST_SEED + 36)]
    assert Counter(trial.group for trial in trials) == {
        **dict.fromkeys(SUITES["base"], 6), **dict.fromkeys(SUITES["hard"], 3)}
    assert {trial.group in SUITES["base"] for trial in trials[:2]} == {True, False}


def test_scenes_are_those_of_nobody_else():
    assert FIRST_SEED not in TRAIN_SEEDS
    assert all(seeds.start >= FIRST_SEED + 100_000 or seeds.stop <= FIRST_SEED for seeds in SEED_RANGES.values())


def test_verb_writes_what_compress_reads(tmp_path, capsys):
    assert cli.main(["observe", str(tmp_path / "pictures"), "--count", "3"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line == {"observations": str(tmp_path / "pictures"), "count": 3}
    stored = read_observations(tmp_path / "pictures")
    for (picture, words), entry in zip(observe_expert(3), stored, strict=True):
        assert np.array_equal(entry.images[0], picture) and entry.instruction == words
