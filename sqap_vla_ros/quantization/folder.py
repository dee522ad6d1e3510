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

"""A folder that appears whole or not at all, and the hash of a file.

It is written beside its place under a hidden name, brought to the disk, and renamed. One that is there already is
exchanged for it in a single step of the file system, so that at no moment there is neither or half of one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# linux/fs.h and fcntl.h, for renameat2.
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


@contextmanager
def write_folder(place: Path, *, replace: bool) -> Iterator[Path]:
    """Give an empty folder to write into, and put it in its place when the block ends without an error.

    A process that is killed leaves at most a hidden folder beside the place; the next one that writes there removes it.

    :param place: where it shall be; folders above it are created
    :param replace: whether a folder that is there is replaced; whoever calls has found out that it may be
    :raises OSError: when it cannot be written, or something is there that is not to be replaced; all is as before then
    """
    place = place.resolve()  # of a link, what it names is replaced and not the link
    place.parent.mkdir(parents=True, exist_ok=True)
    draft, lock = _make_draft(place)
    try:
        yield draft
        for path in draft.iterdir():
            _sync(path)
        _sync(draft)
        if replace and place.exists():
            _exchange(draft, place)
        else:
            draft.rename(place)
        _sync(place.parent)
    finally:
        # What is left under this name is the draft of a failure, or the folder that was replaced.
        shutil.rmtree(draft, ignore_errors=True)
        os.close(lock)


def hash_file(path: Path, told: Callable[[int], None] = lambda size: None) -> str:
    """SHA-256 of a file of any size.

    :param told: of the bytes of each part, as it is done
    :raises OSError: when it cannot be read
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 24):
            digest.update(part)
            told(len(part))
    return digest.hexdigest()


def _make_draft(place: Path) -> tuple[Path, int]:
    # Whoever writes holds a lock on the draft, which ends with the process: a draft that can be locked is a dead one's.
    # The parent is locked meanwhile, so that none is taken for dead between its making and its locking.
    parent = os.open(place.parent, os.O_RDONLY)
    try:
        fcntl.flock(parent, fcntl.LOCK_EX)
        for other in place.parent.glob(f".{glob.escape(place.name)}.*.draft"):
            with suppress(OSError):
                descriptor = os.open(other, os.O_RDONLY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(other, ignore_errors=True)
                finally:
                    os.close(descriptor)
        draft = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".draft", dir=place.parent))
        draft.chmod(0o755)  # as any folder; a temporary one is its owner's alone
        lock = os.open(draft, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return draft, lock
    finally:
        os.close(parent)


def _exchange(draft: Path, place: Path) -> None:
    # Where the file system cannot exchange, the old one steps aside first: for a moment none is there, but never half.
    try:
        _rename_exchanging(draft, place)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        aside = draft.with_suffix(".replaced")
        place.rename(aside)
        try:
            draft.rename(place)
        except OSError:
            aside.rename(place)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _rename_exchanging(first: Path, second: Path) -> None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if function(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), ctypes.c_uint(_RENAME_EXCHANGE)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(second))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
