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

"""Reading tensors one at a time, and refusing files that are not what they should be."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.models import shards
from sqap_vla_ros.models.shards import INDEX_FILE, open_pickle, open_safetensors

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(4, dtype=torch.bfloat16),
           "c.weight": torch.full((5, 5), 2.0, dtype=torch.float16)}


@pytest.fixture
def folder(tmp_path):
    save_file({"a.weight": TENSORS["a.weight"]}, tmp_path / FIRST)
    save_file({name: TENSORS[name] for name in ("b.weight", "c.weight")}, tmp_path / SECOND)
    write_index(tmp_path, {"a.weight": FIRST, "b.weight": SECOND, "c.weight": SECOND})
    return tmp_path


def write_index(folder, places):
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": places}))


def nested(path):
    torch.save({"model": {"x": {"a.weight": TENSORS["a.weight"]}, "y": TENSORS["b.weight"]}, "step": 3}, path)
    return path


def test_shards_are_read_as_they_were_written(folder):
    tensors = open_safetensors(folder)
    assert sorted(tensors.names) == sorted(TENSORS)
    assert tensors.path("c.weight") == folder / SECOND and tensors.shape("a.weight") == (2, 3)
    assert tensors.paths == (folder / FIRST, folder / SECOND) and tensors.stored("b.weight") == ("BF16", (4,))
    for name, expected in TENSORS.items():
        got = tensors.read(name, tuple(expected.shape))
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, atol=0, rtol=0)


def test_one_file_needs_no_index(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    torch.testing.assert_close(open_safetensors(tmp_path).read("a.weight"), TENSORS["a.weight"])


def test_a_pickle_is_flattened_below_its_root(tmp_path):
    tensors = open_pickle(nested(tmp_path / "a.pt"), root="model")
    assert tensors.names == ("x.a.weight", "y")
    torch.testing.assert_close(tensors.read("x.a.weight"), TENSORS["a.weight"], atol=0, rtol=0)
    assert tensors.read("y").dtype == torch.bfloat16
    assert tensors.stored("y") == ("BF16", (4,)) and tensors.stored("x.a.weight") == ("F32", (2, 3))
    assert {name: (tensor.shape, tensor.device.type) for name, tensor in tensors.outline("x.").items()} == {
        "a.weight": ((2, 3), "meta")}
    assert torch.equal(tensors.read_part("x.")["a.weight"], TENSORS["a.weight"])


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_what_was_read_does_not_stay_mapped(tmp_path, monkeypatch, kind):
    # 3 tensors of 8 MB, and a file that is opened anew after every 8.
    tensors = {name: torch.full((2_000_000,), float(index)) for index, name in enumerate("abc")}
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.pt")
    save_file(tensors, path) if kind == "safetensors" else torch.save(tensors, path)
    monkeypatch.setattr(shards, "REOPEN_BYTES", 8_000_000)
    files = open_safetensors(tmp_path) if kind == "safetensors" else open_pickle(path)
    for index, name in enumerate("abc"):
        assert files.read(name)[-1] == index
        assert str(path) not in Path("/proc/self/maps").read_text()


def test_tensors_outlive_their_file(folder):
    tensor = open_safetensors(folder).read("a.weight")
    (folder / FIRST).write_bytes(b"\0" * (folder / FIRST).stat().st_size)
    torch.testing.assert_close(tensor, TENSORS["a.weight"], atol=0, rtol=0)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda f: (f / SECOND).unlink(), rf"{SECOND}' is missing"),
    (lambda f: (f / SECOND).write_bytes((f / SECOND).read_bytes()[:-3]), rf"{SECOND}' is cut short .*'c\.weight'"),
    (lambda f: (f / SECOND).write_bytes(b"\xff" * 64), rf"header of '.*{SECOND}' is damaged"),
    (lambda f: write_index(f, {"a.weight": FIRST, "b.weight": SECOND}), rf"{SECOND}' has the tensor 'c\.weight'"),
    (lambda f: write_index(f, {"a.weight": FIRST, "d.weight": FIRST, "b.weight": SECOND, "c.weight": SECOND}),
     rf"{FIRST}' lacks the tensor 'd\.weight'"),
    (lambda f: write_index(f, {"a.weight": "../x"}), r"places the tensor 'a\.weight' in '\.\./x'"),
    (lambda f: (f / INDEX_FILE).write_text("{"), r"index\.json' is not readable"),
    (lambda f: (f / INDEX_FILE).write_text('{"weight_map": []}'), r"must map each tensor"),
    (lambda f: (f / INDEX_FILE).unlink(), r"has neither 'model\.safetensors\.index\.json' nor"),
])
def test_bad_shards_are_refused_before_reading(folder, damage, message):
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        open_safetensors(folder)


def test_bad_tensors_are_refused(folder):
    tensors = open_safetensors(folder)
    with pytest.raises(CheckpointError, match=rf"'a\.weight' in '.*{FIRST}' has shape \(2, 3\).* need \(3, 2\)"):
        tensors.read("a.weight", (3, 2))
    with pytest.raises(CheckpointError, match=rf"{FIRST}' and 1 more has no tensor 'z'"):
        tensors.read("z")
    save_file({"a": torch.tensor([1.0, float("nan")]), "b": torch.tensor([1])}, folder / "model.safetensors")
    (folder / INDEX_FILE).unlink()
    tensors = open_safetensors(folder)
    with pytest.raises(CheckpointError, match=r"'a' in '.*model\.safetensors' has values that are not finite"):
        tensors.read("a")
    with pytest.raises(CheckpointError, match=r"'b' in .* is torch\.int64; allowed are torch\.float32"):
        tensors.read("b")


class Spy:
    """Would write a file when unpickled by a careless reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "ran")


@pytest.mark.parametrize(("write", "message"), [
    (lambda p: None, r"a\.pt' is missing"),
    (lambda p: p.write_bytes(nested(p).read_bytes()[:-200]), r"a\.pt' is damaged, cut short"),
    (lambda p: p.write_bytes(b"nothing of the kind"), r"a\.pt' is damaged"),
    (lambda p: torch.save({"model": {"x": 3}}, p), r"a\.pt' holds int under 'x', where a tensor belongs"),
    (lambda p: torch.save({"state": {}}, p), r"not under 'model', but 'state'"),
    (lambda p: torch.save({"model": {"x": Spy(p.with_name("spied"))}}, p), r"a\.pt' is damaged, .* more than tensors"),
    (lambda p: torch.save({"model": {}}, p, _use_new_zipfile_serialization=False), r"a\.pt' is damaged"),
])
def test_bad_pickles_are_refused_and_never_run(tmp_path, write, message):
    write(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        open_pickle(tmp_path / "a.pt", root="model")
    assert not (tmp_path / "spied").exists()


def test_one_file_is_open_at_a_time(tmp_path):
    for number, name in enumerate("ab"):
        save_file({name: torch.full((4,), float(number))}, tmp_path / f"{name}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {
        "a": "a.safetensors", "b": "b.safetensors"}}))
    tensors = open_safetensors(tmp_path)
    for name, value in (("a", 0.0), ("b", 1.0), ("a", 0.0)):
        assert tensors.read(name).tolist() == [value] * 4
        assert [other for other in "ab" if tensors._file(other)._handle is not None] == [name]
