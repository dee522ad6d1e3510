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

"""What the float model did is kept, and a model that does something else is refused."""

import math

import numpy as np
import pytest
import torch

from sqap_vla_ros.cli.main import main
from sqap_vla_ros.config import build_config
from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.knobs import PruneKnobs
from sqap_vla_ros.policy.observations import StoredObservation
from sqap_vla_ros.policy.policy import build_policy
from sqap_vla_ros.policy.reference import REFERENCE_FILE, Reference, load_reference


def make_reference(state=None):
    rng = np.random.default_rng(0)
    images = tuple(rng.integers(0, 256, (4 + index, 6, 3), dtype=np.uint8) for index in range(2))
    return Reference(StoredObservation(images, "go, then stop", "test", state), rng.normal(size=(3, 7)))


@pytest.mark.parametrize("state", [None, np.array([0.25, -1.5])])
def test_a_file_gives_back_what_was_saved(tmp_path, state):
    saved = make_reference(state)
    loaded = load_reference(saved.save(tmp_path))
    for one, other in zip(loaded.observation.images, saved.observation.images, strict=True):
        np.testing.assert_array_equal(one, other)
    assert loaded.observation.instruction == "go, then stop"
    np.testing.assert_array_equal(loaded.actions, saved.actions)
    if state is None:
        assert loaded.observation.state is None
    else:
        np.testing.assert_array_equal(loaded.observation.state, state)


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    path = make_reference().save(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r"reference\.npz', what the float model did, cannot be read"):
        load_reference(path)


def test_signal_to_noise_in_numbers():
    reference = make_reference()
    assert reference.measure_sqnr_db(reference.actions) == math.inf
    assert reference.measure_sqnr_db(1.1 * reference.actions) == pytest.approx(20.0)
    assert reference.measure_sqnr_db(np.zeros((3, 7))) == pytest.approx(0.0)
    with pytest.raises(CheckpointError, match=r"shape \(3, 7\), and the model gives \(1, 7\)"):
        reference.measure_sqnr_db(np.zeros((1, 7)))


def read_db(sentence):
    return float(sentence.partition(" have ")[2].split()[0])


def test_a_policy_compares_itself_with_the_float_model_before_and_after_it_is_stored(tmp_path, capsys):
    torch.set_num_threads(1)
    assert main(["compress", "demo", str(tmp_path / "small"), "--recipe", "w4a4-rtn"]) == 0
    capsys.readouterr()
    assert (tmp_path / "small" / REFERENCE_FILE).is_file()
    made = {"prune.rule": "none"}
    fresh = build_policy(build_config({"model.recipe": "w4a4-rtn", **made}))
    small = {"model.checkpoint": str(tmp_path / "small"), "model.recipe": "stored"}
    stored = build_policy(build_config(small | made))
    fresh_db, stored_db = read_db(fresh.check_itself()), read_db(stored.check_itself())
    # What stays float was rounded to the type that it is stored in.
    assert abs(fresh_db - stored_db) < 3.0
    assert 10.0 < stored_db < 60.0
    # Fewer tokens, farther from the float model; the knob says how far is too far.
    stored.adapt(PruneKnobs(rule="fastv", pruned_ratio=0.9))
    assert read_db(stored.check_itself()) < stored_db
    strict = build_policy(build_config({"model.recipe": "w4a4-rtn", "model.min_sqnr_db": 80.0, **made}))
    with pytest.raises(CheckpointError, match=r"dB signal to noise .*model.min_sqnr_db is 80; drop fewer"):
        strict.check_itself()


def test_a_float_model_has_nothing_to_compare():
    policy = build_policy(build_config({"model.recipe": "float"}))
    assert policy.check_itself() == "self-check: the model is not quantized"
