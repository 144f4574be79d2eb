"""Backing up, restoring and saving stores: the files around what `store.copy` writes.

What is written is whole or not there; what was there is moved aside and never deleted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from livetuned.daemon.files import BeingWrittenError, partial_file, sync
from livetuned.daemon.lifecycle import ExitCode
from livetuned.daemon.paths import DATABASE
from livetuned.domain.job import Job
from livetuned.service import clock
from livetuned.store.copy import CopyError, Raw, StoreWriter, WriteError, copy_note
from livetuned.store.doctor import examine
from livetuned.store.findings import Check, Examination, number, span
from livetuned.store.interface import StoreError, StoreFullError, StoreLockedError, StoreOpenError
from livetuned.store.private import BESIDE, NoRoomError, file_beside, lock, private_copy
from livetuned.store.salvage import HopelessError, Plan, newest, prefix, whole
from livetuned.store.source import ChainError, Source

_BATCH = 10_000


class KeepingError(Exception):
    """It was not done; nothing was changed.

    Args:
        code: What the command exits with.
        message: Why, and what to do.
    """

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Written:
    """A store that was written."""

    path: Path
    store_id: str
    origin: int
    """Its records are those after this revision."""
    revision: int
    jobs: int
    size: int
    """Bytes of the file."""

    def words(self) -> str:
        """Tells people what is in it."""
        records = number(self.revision - self.origin, "record")
        if self.revision > self.origin:
            records += f" ({span(self.origin + 1, self.revision)})"
        return f"{records}, {number(self.jobs, 'job')}, revision {self.revision}, {self.size} bytes"


@contextmanager
def told() -> Iterator[None]:
    """Turns what may go wrong with files and stores into what the command says.

    Raises:
        KeepingError: In place of it.
    """
    try:
        yield
    except StoreLockedError as error:
        raise KeepingError(ExitCode.STORE_LOCKED, str(error)) from error
    except StoreOpenError as error:
        raise KeepingError(ExitCode.STORE_UNUSABLE, str(error)) from error
    except (StoreFullError, WriteError, NoRoomError, BeingWrittenError) as error:
        raise KeepingError(ExitCode.ERROR, str(error)) from error
    except StoreError as error:
        raise KeepingError(ExitCode.STORE_UNUSABLE, str(error)) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise KeepingError(ExitCode.ERROR, f"{where}{error.strerror or error}") from error


def check_target(target: Path, *, force: bool, way_out: str) -> None:
    """Refuses to write a store over something.

    Args:
        target: The file to be.
        force: A file may be there.
        way_out: What to tell whoever wants it replaced.

    Raises:
        KeepingError: There is something, or what would spoil the new file stands beside it.
        StoreLockedError: A daemon uses what is there.
    """
    if target.is_dir():
        raise KeepingError(ExitCode.USAGE, f"{target} is a folder: name a file")
    if os.path.lexists(target):
        if not force:
            raise KeepingError(ExitCode.USAGE, f"{target} exists{way_out}")
        if target.is_file():
            with target.open("rb") as file:
                if not lock(file.fileno()):
                    raise StoreLockedError(f"{target} is in use by a running livetuned")
    for suffix in BESIDE:
        # SQLite would take a log that stands there for the new file's.
        if os.path.lexists(other := file_beside(target, suffix)):
            raise KeepingError(ExitCode.USAGE, f"{other} stands where {target} would be: move it away")


def write(
    path: Path, origin: int, records: Iterable[Raw], jobs: Callable[[], Iterable[Job]], notes: dict[str, str]
) -> Written:
    """Writes a store and returns when it is on disk, under a name that nobody takes for a store yet.

    Args:
        path: The file, empty.
        origin: The revision before the first record.
        records: The records.
        jobs: Gives the jobs as of the last record, when all records were taken.
        notes: What is noted in it, by key.

    Raises:
        StoreError: What came is no store's content, or it can't be written.
        OSError: It can't be written.
    """
    with closing(StoreWriter(path, origin)) as writer:
        position = iter(records)
        while batch := list(islice(position, _BATCH)):
            writer.add(batch)
        count = 0

        def counted() -> Iterator[Job]:
            nonlocal count
            for job in jobs():
                count += 1
                yield job

        writer.finish(counted(), notes)
        revision = writer.revision
    sync(path)
    return Written(path, writer.store_id, origin, revision, count, path.stat().st_size)


def copy_plan(plan: Plan, source: Source, path: Path, found: Examination) -> Written:
    """Writes what a plan keeps of a store. See `write`."""
    records = (Raw(line.revision, line.time_us, line.job, line.kind, line.payload) for line in plan.lines(source))
    notes = {**plan.notes, **copy_note(found.store_id, plan.last, clock.wall_us())}
    try:
        return write(path, plan.origin, records, plan.jobs.values, notes)
    except ChainError as error:
        raise CopyError(f"{path}: {error}") from error


@contextmanager
def sound(path: Path, advice: str) -> Iterator[tuple[Source, Examination, Plan]]:
    """Opens a private copy of a store that is well, whole.

    Args:
        path: The store's file.
        advice: What to do if it is not.

    Raises:
        KeepingError: It is damaged, or can't be read.
        StoreError: It is in use, or can't be copied.
    """
    with private_copy(path) as copy:
        found = Examination()
        for _ in examine(copy.path, found):
            pass
        try:
            plan = whole(found)
        except HopelessError as error:
            raise KeepingError(ExitCode.STORE_UNUSABLE, f"{path}: {error} ({advice})") from error
        with closing(Source(copy.path)) as source:
            yield source, found, plan


def backup_stopped(state: Path, target: Path, *, force: bool) -> Written:
    """Backs up the store of a daemon that is not running.

    Raises:
        KeepingError: It was not done.
    """
    with told():
        check_target(target, force=force, way_out="; --force replaces it")
        try:
            advice = "livetuned doctor tells what can be saved"
            with sound(state / DATABASE, advice) as (source, found, plan), partial_file(target) as path:
                return put(path, target, copy_plan(plan, source, path, found), force=force)
        except StoreLockedError as error:
            raise KeepingError(
                ExitCode.STORE_LOCKED, f"{error}: leave --state out, then it is backed up while it runs"
            ) from error


def put(path: Path, target: Path, written: Written, *, force: bool) -> Written:
    """Gives a file that was written its name.

    Raises:
        KeepingError: Something has that name by now.
        OSError: It can't be renamed.
    """
    check_target(target, force=force, way_out=" by now")
    path.replace(target)
    sync(target.parent)
    return replace(written, path=target)


@dataclass(slots=True)
class Diagnosis:
    """What a doctor tells of a store."""

    path: Path
    size: int
    """Bytes of its files."""
    found: Examination
    plans: dict[str, Plan | str]
    """What could be kept, or why it could not, by the way of keeping. Empty if all is well."""
    recovered: Written | None = None


def diagnose(path: Path, tell: Callable[[Check], None], *, save_to: Path | None, keep: str) -> Diagnosis:
    """Looks at everything in a store, and saves what is well of a damaged one into a new file if asked to.

    Args:
        path: The store's file; it and what stands beside it is only read.
        tell: Is told of each check when it is done.
        save_to: The new file, None for none.
        keep: ``"prefix"`` or ``"newest"``.

    Raises:
        KeepingError: It can't be looked at, or nothing can be saved.
    """
    with told():
        if save_to is not None:
            check_target(save_to, force=False, way_out=": choose another name")
        try:
            with private_copy(path) as copy:
                found = Examination()
                for check in examine(copy.path, found):
                    tell(check)
                diagnosis = Diagnosis(path, copy.size, found, {})
                if found.failed and found.readable:
                    with closing(Source(copy.path)) as source:
                        _plan(diagnosis, source)
                        if save_to is not None:
                            diagnosis.recovered = _save(diagnosis, source, save_to, keep)
                return diagnosis
        except StoreLockedError as error:
            raise KeepingError(
                ExitCode.STORE_LOCKED,
                f"{error}: make a copy with `livetuned backup FILE`, and look at that with `livetuned doctor FILE`",
            ) from error


def _plan(diagnosis: Diagnosis, source: Source) -> None:
    for name, plan in (("prefix", prefix), ("newest", newest)):
        try:
            diagnosis.plans[name] = plan(source, diagnosis.found)
        except HopelessError as error:
            diagnosis.plans[name] = str(error)


def _save(diagnosis: Diagnosis, source: Source, target: Path, keep: str) -> Written:
    plan = diagnosis.plans[keep]
    if isinstance(plan, str):
        raise KeepingError(ExitCode.STORE_UNUSABLE, f"--keep {keep} is not possible: {plan}")
    with partial_file(target) as path:
        return put(path, target, copy_plan(plan, source, path, diagnosis.found), force=False)
