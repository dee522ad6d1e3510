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

"""A folder appears whole or not at all, whenever its writer dies."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sqap_vla_ros.quantization import folder as folders
from sqap_vla_ros.quantization.folder import write_folder

SIZE = 200_000
# Writes, replaces and is killed again and again: a child for each kill, since to start Python takes longer than all.
SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
from sqap_vla_ros.quantization.folder import write_folder

place, size, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def write(letter):
    with write_folder(place, replace=True) as draft:
        for name in ("first", "second"):
            with (draft / name).open("wb") as file:
                for _ in range(10):
                    file.write(letter * (size // 10))
                    file.flush()

random.seed(0)
seen = {"nothing": 0, "a": 0, "b": 0}
for round in range(kills):
    child = os.fork()
    if not child:
        while True:
            write(b"a")
            write(b"b")
    time.sleep(random.random() * 0.03)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if not place.exists():
        assert not seen["a"] + seen["b"], "it was there and is gone"
        seen["nothing"] += 1
        continue
    contents = [(place / name).read_bytes() for name in ("first", "second")]
    letter = contents[0][:1]
    assert contents == [letter * size] * 2, [len(content) for content in contents]
    seen[letter.decode()] += 1
write(b"c")
print(seen, sorted(path.name for path in place.parent.iterdir()))
"""


def test_killed_at_any_moment_there_is_one_whole_folder(tmp_path) -> None:
    answer = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "out"), str(SIZE), "80"], text=True,
                            capture_output=True, timeout=100, cwd=Path(__file__).parents[2], check=False)
    assert answer.returncode == 0, answer.stderr
    seen, left = answer.stdout.strip().split("} ")
    counts = eval(seen + "}")  # a dictionary that this test printed
    assert sum(counts.values()) == 80 and counts["a"] >= 10 and counts["b"] >= 10
    # What the killed left behind is gone with the next that is written.
    assert left == "['out']"


def fill(place: Path, text: str, **more: bool) -> None:
    with write_folder(place, replace=more.get("replace", False)) as draft:
        (draft / "file").write_text(text)


def test_folder_appears_at_the_end(tmp_path) -> None:
    place = tmp_path / "above" / "out"
    with write_folder(place, replace=False) as draft:
        (draft / "file").write_text("x")
        assert not place.exists() and draft.parent == place.parent and draft.name.startswith(".out.")
    assert (place / "file").read_text() == "x"
    assert place.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in place.parent.iterdir()] == ["out"]


def test_error_leaves_what_was_there(tmp_path) -> None:
    fill(tmp_path / "out", "old")
    with pytest.raises(RuntimeError), write_folder(tmp_path / "out", replace=True) as draft:
        (draft / "file").write_text("new")
        raise RuntimeError
    with pytest.raises(OSError, match="not empty"):
        fill(tmp_path / "out", "new")
    assert (tmp_path / "out/file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_link_is_followed(tmp_path) -> None:
    fill(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    fill(tmp_path / "link", "new", replace=True)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real/file").read_text() == "new"


def test_drafts_of_the_living_are_left_alone(tmp_path) -> None:
    with write_folder(tmp_path / "out", replace=False) as mine:
        dead = tmp_path / ".out.dead.draft"
        dead.mkdir()
        (dead / "file").write_text("half")
        other = tmp_path / ".outer.dead.draft"
        other.mkdir()
        fill(tmp_path / "out", "theirs")
        assert mine.is_dir() and not dead.exists() and other.is_dir()
        (mine / "file").write_text("mine")
        (tmp_path / "out/file").unlink()
        (tmp_path / "out").rmdir()
    assert (tmp_path / "out/file").read_text() == "mine"


def test_file_system_without_exchange(tmp_path, monkeypatch) -> None:
    def cannot(first: Path, second: Path) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(folders, "_rename_exchanging", cannot)
    fill(tmp_path / "out", "old")
    fill(tmp_path / "out", "new", replace=True)
    assert (tmp_path / "out/file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    rename, calls = Path.rename, []

    def fail_second(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(OSError, match="Input/output"):
        fill(tmp_path / "out", "newest", replace=True)
    assert len(calls) == 3 and (tmp_path / "out/file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_any_other_failure_to_exchange_is_told(tmp_path, monkeypatch) -> None:
    def cannot(first: Path, second: Path) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(folders, "_rename_exchanging", cannot)
    fill(tmp_path / "out", "old")
    with pytest.raises(PermissionError):
        fill(tmp_path / "out", "new", replace=True)
    assert (tmp_path / "out/file").read_text() == "old"
