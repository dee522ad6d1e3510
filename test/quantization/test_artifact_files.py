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

"""Files that a model needs beside its weights go with an artifact, and are held to their hashes."""

import hashlib
import json

import pytest

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.quantization import artifact as artifacts
from sqap_vla_ros.quantization.artifact import Origin, check_place, read_artifact
from sqap_vla_ros.quantization.artifact_writer import save_artifact
from sqap_vla_ros.quantization.quantize import W4A4, quantize_


@pytest.fixture
def save(tiny, tmp_path):
    """Write an artifact with the file words.json: ``save(**more)``."""
    report = quantize_(tiny.model, W4A4())

    def write(**more):
        (tmp_path / "words").write_bytes(b'["red"]')
        save_artifact(tiny.model, tmp_path / "out", "its-name", W4A4(), report, config=tiny.model.config.to_json(),
                      origin=Origin("0.0.0", "x", {}), pruning={}, **{"files": {"words.json": tmp_path / "words"},
                                                                      **more})
        return tmp_path / "out"

    return write


def read(folder):
    return read_artifact(folder, json.loads((folder / "config.json").read_text()))


def test_a_copy_goes_with_the_artifact(save):
    folder = save()
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "words.json"]
    assert (folder / "words.json").read_bytes() == b'["red"]'
    assert read(folder).files == {"words.json": hashlib.sha256(b'["red"]').hexdigest()}


def test_an_artifact_of_before_has_none(save):
    folder = save(files=None)
    values = json.loads((folder / "config.json").read_text())
    del values["sqap"]["files"]
    values["sqap"]["sha256"] = artifacts.digest_config(values)
    (folder / "config.json").write_text(json.dumps(values))
    assert read(folder).files == {}
    check_place(folder, replace=True)


def test_another_file_or_none_is_found_out(save):
    folder = save()
    (folder / "words.json").write_bytes(b'["red" ]')
    with pytest.raises(CheckpointError, match=r"words\.json' is not the file that .*config\.json' was written with"):
        read(folder)
    (folder / "words.json").unlink()
    with pytest.raises(CheckpointError, match=r"words\.json', which the model needs beside its weights, cannot"):
        read(folder)


def test_a_file_outside_the_folder_is_never_read(save):
    folder = save()
    values = json.loads((folder / "config.json").read_text())
    values["sqap"]["files"] = {"../words": values["sqap"]["files"]["words.json"]}
    values["sqap"]["sha256"] = artifacts.digest_config(values)
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"words' is not the file that"):
        read(folder)


def test_an_artifact_with_files_may_be_replaced_and_one_with_others_not(save):
    folder = save()
    save(replace=True)
    (folder / "diary.txt").write_text("dear diary")
    with pytest.raises(CheckpointError, match="holds other files as well, and is not replaced"):
        save(replace=True)


def test_a_missing_source_leaves_nothing(save, tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere', which the model needs beside its weights, cannot be read"):
        save(files={"words.json": tmp_path / "nowhere"})
    assert not (tmp_path / "out").exists()
