"""Putting a backup in a store's place. What was there is moved aside and never deleted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from livetuned.daemon.files import partial_file, sync
from livetuned.daemon.keeping import KeepingError, Written, copy_plan, sound, told
from livetuned.daemon.lifecycle import ExitCode
from livetuned.daemon.paths import DATABASE
from livetuned.service import clock
from livetuned.store.interface import StoreLockedError
from livetuned.store.private import BESIDE, file_beside, lock


@dataclass(frozen=True, slots=True)
class Restored:
    """A restore that was done."""

    written: Written
    aside: Path | None
    """Where the store that was there is now."""
    version: int
    """Schema of the backup."""


def restore(backup: Path, state: Path, *, aside: bool) -> Restored:
    """Makes a state folder's store that of a backup. The backup is only read.

    Args:
        backup: The backup.
        state: The state folder; it is made if need be.
        aside: A store that is there is moved aside.

    Raises:
        KeepingError: It was not done.
    """
    target = state / DATABASE
    with told():
        if target.exists() and backup.exists() and target.samefile(backup):
            raise KeepingError(ExitCode.USAGE, f"{backup} is the store itself, not a backup of it")
        with _held(target) as old:
            if old and not aside:
                raise KeepingError(
                    ExitCode.USAGE, f"{old[0]} exists: --replace moves it aside, with what belongs to it"
                )
            advice = f"livetuned doctor {backup} tells more, and can save what is well"
            with sound(backup, advice) as (source, found, plan):
                state.mkdir(mode=0o700, parents=True, exist_ok=True)
                with partial_file(target) as path:
                    written = replace(copy_plan(plan, source, path, found), path=target)
                    _give_to_owner(path, state)
                    return Restored(written, _install(path, target), source.version)


@contextmanager
def _held(target: Path) -> Iterator[list[Path]]:
    """Keeps daemons away from a store, and yields its files that are there.

    Raises:
        StoreLockedError: A daemon uses it.
    """
    there = [path for path in (target, *(file_beside(target, suffix) for suffix in BESIDE)) if os.path.lexists(path)]
    if target not in there:
        yield there
        return
    with target.open("r+b") as file:
        if not lock(file.fileno(), exclusive=True):
            raise StoreLockedError(f"{target} is in use by a running livetuned: stop it first")
        yield there


def _give_to_owner(path: Path, folder: Path) -> None:
    """Root restores for the user whose daemon is to open it."""
    owner = folder.stat()
    if os.geteuid() == 0:
        os.chown(path, owner.st_uid, owner.st_gid)


def _install(path: Path, target: Path) -> Path | None:
    """Puts a new store in place, moving the old one aside, in an order in which every moment is safe to die at.

    The old store's last commits may be in its write-ahead log: from when that is moved until the new store is in place,
    the old head mark makes a daemon refuse what it finds. The head mark goes last; to the new store it means nothing.
    """
    there = [suffix for suffix in BESIDE if os.path.lexists(file_beside(target, suffix))]
    if not there and not os.path.lexists(target):
        os.link(path, target)  # unlike a renaming this fails if a daemon was quicker
        path.unlink()
        sync(target.parent)
        return None
    aside = _free_name(target)
    with path.open("r+b") as file:
        lock(file.fileno(), exclusive=True)  # a daemon waits for the head mark to be moved
        if os.path.lexists(target):
            os.link(target, aside, follow_symlinks=False)
        for suffix in (suffix for suffix in there if suffix != "-head"):
            file_beside(target, suffix).rename(f"{aside}{suffix}")
        path.replace(target)
        if "-head" in there:
            file_beside(target, "-head").rename(f"{aside}-head")
    sync(target.parent)
    return aside


def _free_name(target: Path) -> Path:
    time = datetime.fromtimestamp(clock.wall_us() / 1e6, tz=timezone.utc)
    name = target.with_name(f"{target.name}.replaced-{time:%Y%m%dT%H%M%SZ}")
    number = 1
    while any(os.path.lexists(f"{name}{suffix}") for suffix in ("", *BESIDE)):
        number += 1
        name = target.with_name(f"{target.name}.replaced-{time:%Y%m%dT%H%M%SZ}-{number}")
    return name
