"""Private copies of a store's files: to be looked at as closely as need be, while the originals are only read.

SQLite tidies up the files that it opens, read-only ones too: so it gets a copy.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from livetuned.store.interface import StoreError, StoreLockedError, StoreOpenError

BESIDE = ("-wal", "-journal", "-head")
"""What belongs to a store and stands beside its file: SQLite's write-ahead log and rollback journal, the head mark."""

# SQLite's file format, section "File locking": who uses a database holds a lock on some of these bytes.
_LOCK_BYTES = (0x4000_0000, 512)
_FLOCK = struct.Struct("hhqqi4x")


class NoRoomError(StoreError):
    """There is no room for the copy."""


@dataclass(frozen=True, slots=True)
class PrivateCopy:
    """A copy of a store's files that is nobody else's."""

    path: Path
    """The copy of the store's file; what stood beside the original stands beside it."""
    size: int
    """Bytes of the original's files."""


def lock(file: int, *, exclusive: bool = False) -> bool:
    """Takes SQLite's lock on an open file until the file is closed, and tells whether it was to be had.

    A daemon that is started meanwhile is told that its store is in use.

    Args:
        file: A file descriptor; open for writing if `exclusive`.
        exclusive: Nobody else may read either.
    """
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, *_LOCK_BYTES, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


@contextmanager
def private_copy(path: Path) -> Iterator[PrivateCopy]:
    """Copies a store's files into a private folder, which is removed afterwards.

    The folder is made where temporary files belong (``TMPDIR``).

    Args:
        path: The store's file.

    Raises:
        StoreLockedError: A daemon uses it.
        StoreOpenError: It is not there, no file, or not readable.
        NoRoomError: There is no room for the copy. The message says how much is needed where.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="livetuned-"))
    except OSError as error:
        raise NoRoomError(f"no folder for temporary files: {error.strerror or error}; set TMPDIR") from error
    try:
        yield PrivateCopy(folder / path.name, _copy(path, folder))
    finally:
        shutil.rmtree(folder)


def _copy(path: Path, folder: Path) -> int:
    try:
        with _open(path) as file:
            if not lock(file.fileno()):
                raise StoreLockedError(f"{path} is in use by a running livetuned")
            beside = {suffix: file_beside(path, suffix) for suffix in BESIDE}
            sizes = {suffix: other.stat().st_size for suffix, other in beside.items() if other.is_file()}
            size = os.fstat(file.fileno()).st_size + sum(sizes.values())
            # SQLite moves the write-ahead log into the copy.
            _check_room(path, folder, size + sizes.get("-wal", 0))
            with (folder / path.name).open("xb") as target:
                shutil.copyfileobj(file, target, 1 << 20)
            for suffix in sizes:
                shutil.copyfile(beside[suffix], folder / f"{path.name}{suffix}")
    except FileNotFoundError as error:
        raise StoreOpenError(f"{path} does not exist") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise NoRoomError(f"no room for a copy of {path} in {folder.parent}") from error
        raise StoreOpenError(f"{path} can't be read: {error.strerror or error}") from error
    return size


def file_beside(path: Path, suffix: str) -> Path:
    """Returns where a file of `BESIDE` stands: SQLite follows links, the head mark does not."""
    return path.with_name(path.name + suffix) if suffix == "-head" else Path(f"{path.resolve()}{suffix}")


def _open(path: Path) -> BinaryIO:
    if path.is_dir():
        raise StoreOpenError(f"{path} is a folder: name a file, or the folder with --state")
    # Not blocking, should it be a pipe.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise StoreOpenError(f"{path} is not a file")
    return file


def _check_room(path: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoRoomError(
            f"looking at {path} needs a private copy of {needed:,} bytes; {folder.parent} has {free:,} bytes free: "
            "set TMPDIR to a folder with more room"
        )
