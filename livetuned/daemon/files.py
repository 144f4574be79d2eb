"""New files that are either there whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FIRST_BYTE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)


class BeingWrittenError(Exception):
    """Another process is writing the same file."""


@contextmanager
def partial_file(target: Path) -> Iterator[Path]:
    """Makes an empty file ``TARGET.partial``, of mode 0600, which is to be renamed when it is whole.

    It is removed in the end if it was not renamed. One that a dead process left is taken over.

    Raises:
        BeingWrittenError: Another process has it.
        OSError: It can't be made.
    """
    path = target.with_name(f"{target.name}.partial")
    file = _ours(path)
    try:
        os.fchmod(file, 0o600)
        os.ftruncate(file, 0)
        yield path
    finally:
        if _is(path, file):
            path.unlink()
        os.close(file)


def _ours(path: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FIRST_BYTE)
        except OSError as error:
            os.close(file)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise BeingWrittenError(f"{path} is being written by another livetuned") from error
            raise
        if _is(path, file):
            return file
        # It was finished, and renamed, between the two calls: it is not ours to empty.
        os.close(file)


def _is(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(file))
    except FileNotFoundError:
        return False


def sync(path: Path) -> None:
    """Returns when a file, or what a folder holds, is on disk.

    Raises:
        OSError: It can't be.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
