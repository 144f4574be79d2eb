"""Owns the file that a job writes its record to: opened once, written at safe points, given up at the first fault."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from collections import defaultdict, deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from livetune import messages as m
from livetune import records
from livetune._version import __version__
from livetune.specs import TriggerSpec, VariableSpec

__all__ = ["Recorder"]

log = logging.getLogger("livetune")


class Recorder:
    """Writes what a process applied. Not thread-safe: the job holds its lock. Raises nothing.

    All lines of a safe point are one write to the end of the file, without a buffer of our own: what was written
    survives the program's death by any signal, and only a full disk or a power cut can leave half a line. After the
    first fault nothing more is written, since a record with a hole would replay as something that never happened.

    Args:
        path: The file; one that exists is continued, with a header of its own for this process.
        job: Name of the job.
        rank: Of this process.
        world_size: Number of processes of the job.
    """

    def __init__(self, path: str, *, job: str, rank: int, world_size: int) -> None:
        self._path = path
        self._who = records.Who(job, rank, world_size)
        self._specs: list[VariableSpec | TriggerSpec] = []
        """What was declared before the first safe point."""
        self._begun = False
        self._store_id = ""
        self._step = 0
        self._lines = b""
        self._fired: defaultdict[str, deque[tuple[m.Show, str]]] = defaultdict(deque)
        """By trigger: firings that are visible and not consumed, oldest first, each with its store."""
        self._file: int | None = None
        try:
            self._file = self._open()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _open(self) -> int:
        file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError("it is no regular file")  # a pipe that nobody reads would hold training up
            _lock(file)
            if found.st_size and os.pread(file, 1, found.st_size - 1) != b"\n":
                self._lines = b"\n"  # a process before this one broke off within a line
        except BaseException:
            os.close(file)
            raise
        return file

    def declared(self, spec: VariableSpec | TriggerSpec) -> None:
        """Note a declaration."""
        if self._begun:
            self._add(records.declared_line(spec))
        else:
            self._specs.append(spec)

    def begin(self, step: int, store_id: str) -> None:
        """Write who writes, and what was declared: at the first safe point, when most of that is known."""
        if not self._begun:
            self._begun, self._step, self._store_id = True, step, store_id
            self._add(records.header_line(self._who, sdk_version=__version__, store_id=store_id, specs=self._specs))
            self._write()

    def safe_point(self, step: int, actions: Iterable[m.Action], store_id: str) -> None:
        """Write what takes effect at a safe point.

        Args:
            step: The job's step.
            actions: What is done at it.
            store_id: The store that revisions belong to.
        """
        for action in actions:
            if isinstance(action, m.Record):
                self._follow(store_id, step)
                self._add(records.change_line(action.change))
            elif isinstance(action, m.Show):
                self._fired[action.trigger].append((action, store_id))
        if self._lines:
            self._write()

    def consumed(self, trigger: str, step: int) -> None:
        """Write that the program consumed the oldest visible firing of a trigger."""
        firing, store_id = self._fired[trigger].popleft()
        self._follow(store_id, step)
        self._add(records.firing_line(trigger, firing.revision, step, firing.reason, firing.actor))
        self._write()

    def end(self, step: int, store_id: str, *, failed: bool) -> None:
        """Write that the program ends, and close the file."""
        self.begin(step, store_id)
        self._add(records.end_line(step, failed=failed))
        self._write()
        self.close()

    def close(self) -> None:
        """Close the file as it is; nothing is written any more."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # some file systems say only now that there was no room
                os.close(file)

    def _follow(self, store_id: str, step: int) -> None:
        if store_id != self._store_id:
            self._store_id = store_id
            self._add(records.store_line(store_id))
        if step < self._step and self._file is not None:
            self._give_up(
                ValueError(f"the program's steps fell from {self._step} to {step}, which no replay could follow")
            )
        self._step = step

    def _add(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._lines += records.to_bytes(line)

    def _write(self) -> None:
        lines, self._lines = self._lines, b""
        if self._file is None:
            return
        try:
            written = os.write(self._file, lines)
            if written < len(lines):
                raise OSError(0, f"only {written} of {len(lines)} bytes could be written")
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError | ValueError) -> None:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        log.warning("job %s: nothing is recorded any more in %s: %s; training goes on", self._who.job, self._path, why)
        self.close()


def _lock(file: int) -> None:
    """Keep others from writing to the same record, as programs do that inherit LIVETUNE_RECORD.

    Raises:
        ValueError: Somebody does.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            raise ValueError("another job writes to it") from None
        # A file system that knows no locks is no reason not to record.
