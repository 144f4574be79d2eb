"""Owns the memory that a job shares with its worker processes, so that variables are current there too.

A worker (of a DataLoader, say) is a process of its own: it gets the variables as they were when it was started. So the
job keeps its values in a page of memory as well, and in a worker a variable reads from there. The page is made when
the first child needs it, by a fork or by a pickle; a job without children never has one.

The memory is a file without a name (``memfd_create``). A child that was forked has it already; a child that was spawned
finds it at ``/proc/PID/fd/FD``, which its pickles carry. A named segment (``multiprocessing.shared_memory``) would stay
in ``/dev/shm`` after a ``kill -9``, would fail where that is small, as in containers, and would bring in the resource
tracker's process and warnings; an anonymous ``mmap`` can't be reached from a spawned child.

One process writes, at its safe point; any number read. There is no lock between them, since a lock that a forked or
killed process holds is never released. Each variable has two records, written in turn, and a sequence number that says
which is in use: a reader meets a record that is being written only if it was overtaken twice meanwhile. It notices that
by the sequence number, and by the record's checksum, which also covers processors that reorder writes. A writer that is
killed at any moment leaves the record in use whole.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import struct
import threading
import weakref
from binascii import crc32
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, cast

from livetune.messages import Assign
from livetune.specs import MAX_TEXT_BYTES, Kind, Scalar, VariableSpec
from livetune.variable import T_co, Variable

__all__ = ["Page", "Reader", "WorkerVariable", "restore"]

log = logging.getLogger("livetune")

SEGMENT_BYTES = 1024 * 1024
"""Size of one piece of memory. Only what is written takes room: about 200 bytes a number, twice its size a text."""
TRIES = 100
"""How often a reader tries again when it was overtaken, before it goes on with the last value that it has read."""

_MAGIC = b"livetune"
_NONCE_BYTES = 16
_FIRST_SLOT = 64
_WORD = 8
_CHECKSUM = struct.Struct("=I")
_RECORD = struct.Struct("=IIQqqQ")
"""Checksum of all that follows, bytes of the value, sequence number, revision, step, changes; then the value."""
_FLOAT, _INT = struct.Struct("=d"), struct.Struct("=q")
_FILE_NAME = "livetune"
_LINK = f"/memfd:{_FILE_NAME}"
_MFD_NOEXEC_SEAL = 0x8  # os has no name for it


class Place(NamedTuple):
    """Where a variable is, for a process that has only a pickle."""

    pid: int
    fd: int
    nonce: bytes
    """Proves that it is the same memory: process ids, and numbers of files, are used again."""
    size: int
    at: int
    """Offset of the variable's slot, in bytes."""


class _Seen(NamedTuple):
    """One state of a variable: all of it is of one safe point."""

    sequence: int
    value: Scalar
    revision: int
    step: int
    changes: int
    """How many changes have given it another value."""


class _Segment:
    """Memory of the owning process, with room for many variables.

    Raises:
        OSError: The system does not give it.
    """

    def __init__(self, size: int) -> None:
        fd = _memory_file()
        try:
            os.ftruncate(fd, size)
            # A reader whose memory is cut off behind its back is killed by the system.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self.memory = mmap.mmap(fd, size)
        except OSError:
            os.close(fd)
            raise
        weakref.finalize(self, os.close, fd).atexit = False  # the end of the process closes it as well
        self.words = memoryview(self.memory).cast("Q")
        self.end = _FIRST_SLOT
        self.size = size
        self._fd, self._pid, self._nonce = fd, os.getpid(), os.urandom(_NONCE_BYTES)
        self.memory[: len(_MAGIC) + _NONCE_BYTES] = _MAGIC + self._nonce

    def place(self, at: int) -> Place:
        return Place(self._pid, self._fd, self._nonce, self.size, at)


def _memory_file() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(_FILE_NAME, flags | _MFD_NOEXEC_SEAL)  # hardened machines allow no other
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(_FILE_NAME, flags)  # before Linux 6.3


def _half(sequence: int) -> int:
    """Which of a variable's two records a sequence number is written to."""
    return sequence & 1


def _capacity(spec: VariableSpec) -> int:
    """Room for one value, in bytes; a multiple of a word."""
    if spec.kind is not Kind.STR:
        return _WORD
    longest = MAX_TEXT_BYTES if spec.choices is None else max(len(choice.encode()) for choice in spec.choices)
    return -(-longest // _WORD) * _WORD


def _slot_bytes(spec: VariableSpec) -> int:
    return _WORD + 2 * (_RECORD.size + _capacity(spec))


def _encode(kind: Kind, value: Scalar) -> bytes:
    if kind is Kind.STR:
        return cast("str", value).encode()
    return _FLOAT.pack(value) if kind is Kind.FLOAT else _INT.pack(value)


def _decode(kind: Kind, data: bytes) -> Scalar:
    if kind is Kind.STR:
        return data.decode()
    if kind is Kind.FLOAT:
        return cast("float", _FLOAT.unpack(data)[0])
    number = cast("int", _INT.unpack(data)[0])
    return bool(number) if kind is Kind.BOOL else number


class _Writer:
    """Writes one variable. Its page's lock is held."""

    def __init__(self, segment: _Segment, at: int, spec: VariableSpec) -> None:
        self.segment = segment
        self.at = at
        self.changes = 0
        self._kind = spec.kind
        self._stride = _RECORD.size + _capacity(spec)
        self._sequence = 0

    def write(self, value: Scalar, revision: int, step: int) -> None:
        sequence = self._sequence + 1
        data = _encode(self._kind, value)
        record = bytearray(_RECORD.pack(0, len(data), sequence, revision, step, self.changes) + data)
        start = self.at + _WORD + _half(sequence) * self._stride
        _CHECKSUM.pack_into(record, 0, crc32(memoryview(record)[_CHECKSUM.size :]))
        self.segment.memory[start : start + len(record)] = record
        self.segment.words[self.at // _WORD] = sequence  # one store of eight bytes: from here on it is in use
        self._sequence = sequence


class Page:
    """What the process that owns a job shares with its children. Made with the job; takes memory when it is needed."""

    def __init__(self) -> None:
        # Held while a variable takes over a value, and never while anything waits. Children don't use it.
        self._lock = threading.RLock()
        self._segments: list[_Segment] = []
        self._writers: dict[str, _Writer] = {}
        self._failed = False

    def put(self, variable: Variable[Any], action: Assign) -> None:
        """Give a variable a value, here and in all children; for the job at its safe point only."""
        with self._lock:
            variable._put(  # noqa: SLF001 - on behalf of the job, its only writer
                action.value, action.revision, action.step, changed=action.changed, inherited=action.inherited
            )
            writer = self._writers.get(variable.name)
            if writer is not None:
                writer.changes += action.changed
                writer.write(action.value, action.revision, action.step)

    def share(self, variables: Iterable[Variable[Any]]) -> None:
        """Put variables into the memory that children read. Variables that are there stay where they are."""
        with self._lock:
            for variable in variables:
                if variable.name not in self._writers and not self._failed:
                    self._place(variable)

    def _place(self, variable: Variable[Any]) -> None:
        spec = variable._spec  # noqa: SLF001 - ours
        needed = _slot_bytes(spec)
        try:
            if not self._segments or self._segments[-1].end + needed > self._segments[-1].size:
                self._segments.append(_Segment(max(SEGMENT_BYTES, _FIRST_SLOT + needed)))
        except OSError as error:
            self._failed = True
            log.warning("worker processes keep the values that they start with: no memory to share (%s)", error)
            return
        segment = self._segments[-1]
        writer = self._writers[spec.name] = _Writer(segment, segment.end, spec)
        segment.end += needed
        writer.write(variable.value, variable.revision, variable.applied_step)

    def place_of(self, variable: Variable[Any]) -> Place | None:
        """Say where a child can read a variable; None if it can't."""
        self.share((variable,))
        writer = self._writers.get(variable.name)
        return None if writer is None else writer.segment.place(writer.at)

    def follow(self, variables: Iterable[Variable[Any]]) -> None:
        """Let variables read what the parent writes; for a forked child."""
        for variable in variables:
            if isinstance(variable, WorkerVariable):
                continue  # the parent was a child itself
            writer = self._writers.get(variable.name)
            if writer is None:
                object.__setattr__(variable, "_shared", None)
                continue
            place = writer.segment.place(writer.at)
            reader = Reader(variable, place, writer.segment.memory, writer.segment.words)
            reader.told = writer.changes - variable._changed  # noqa: SLF001 - not asked yet in the parent: told here
            _switch(variable, reader)


class Reader:
    """Reads one variable from shared memory. Never waits, and never raises.

    Args:
        variable: What it was when the child was started.
        place: Where it is.
        memory: The memory.
        words: The same, in words of eight bytes.
    """

    __slots__ = ("_kind", "_memory", "_place", "_stride", "index", "seen", "told", "words")

    def __init__(self, variable: Variable[Any], place: Place, memory: mmap.mmap, words: memoryview) -> None:
        spec = variable._spec  # noqa: SLF001 - ours
        self.words = words
        self.index = place.at // _WORD
        self._place = place
        self._memory = memory
        self._kind = spec.kind
        self._stride = _RECORD.size + _capacity(spec)
        self.seen = _Seen(0, variable.value, variable.revision, variable.applied_step, 0)
        """The newest state that was read. Replaced whole: other threads may read it."""
        self.told = 0
        """The count of changes when the program last asked for them."""

    def latest(self) -> _Seen:
        """Return the state in use."""
        seen = self.seen
        return seen if self.words[self.index] == seen.sequence else self.refresh()

    def refresh(self) -> _Seen:
        """Read the state in use from memory."""
        for _ in range(TRIES):
            sequence: int = self.words[self.index]
            start = _WORD * (self.index + 1) + _half(sequence) * self._stride
            head = self._memory[start : start + _RECORD.size]
            length = min(_RECORD.unpack(head)[1], self._stride - _RECORD.size)
            record = head + self._memory[start + _RECORD.size : start + _RECORD.size + length]
            if _is_whole(record, sequence) and self.words[self.index] == sequence:
                _, _, _, revision, step, changes = _RECORD.unpack_from(record)
                value = _decode(self._kind, record[_RECORD.size :])
                self.seen = _Seen(sequence, value, revision, step, changes)
                break
        return self.seen

    def place_of(self, _: Variable[Any]) -> Place | None:
        """Say where another process can read the variable."""
        return self._place


def _is_whole(record: bytes, sequence: int) -> bool:
    checksum, _, written, *_ = _RECORD.unpack_from(record)
    return bool(written == sequence and checksum == crc32(memoryview(record)[_CHECKSUM.size :]))


class WorkerVariable(Variable[T_co]):
    """A variable in a process that does not own the job: it reads what the job's process wrote at its last safe point.

    A variable becomes one in place when its process is forked, so it has the same layout.
    """

    __slots__ = ()

    _shared: Reader

    @property
    def value(self) -> T_co:  # type: ignore[override] # read-only there too, by __setattr__; but a slot, which is faster
        """The value in use in the job's process; the last one, once that process has ended."""
        reader = self._shared
        seen = reader.seen
        if reader.words[reader.index] != seen.sequence:
            seen = reader.refresh()
        return cast("T_co", seen.value)

    @property
    def _revision(self) -> int:  # type: ignore[override] # the same
        return self._shared.latest().revision

    @property
    def _applied_step(self) -> int:  # type: ignore[override] # the same
        return self._shared.latest().step

    def changed(self) -> bool:
        """Say whether the value was changed from outside since this process last asked, or was started."""
        reader = self._shared
        told, reader.told = reader.told, reader.latest().changes
        return told != reader.told


def _switch(variable: Variable[Any], reader: Reader) -> None:
    object.__setattr__(variable, "_shared", reader)
    object.__setattr__(variable, "__class__", WorkerVariable)


def restore(spec: VariableSpec, value: Scalar, revision: int, step: int, place: Place | None) -> Variable[Any]:
    """Make a variable from its pickle: current in a child of the job's process, an inert copy anywhere else.

    Elsewhere is: on another machine, after the job's process has ended, in that process itself, and in a program that
    is no descendant of it. So what a checkpoint holds is the value of its time, for whoever loads it.
    """
    variable: Variable[Any] = Variable(spec, value, revision, step)
    attached = None if place is None else _attach(place)
    if place is not None and attached is not None:
        reader = Reader(variable, place, attached.memory, attached.words)
        reader.told = reader.latest().changes
        _switch(variable, reader)
    return variable


class _Attached:
    """Memory of another process."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory = memory
        self.words = memoryview(memory).cast("Q")


_attached: weakref.WeakValueDictionary[bytes, _Attached] = weakref.WeakValueDictionary()
"""By nonce: all variables of a job share one mapping."""


def _attach(place: Place) -> _Attached | None:
    if not _descends_from(place.pid):
        return None
    found = _attached.get(place.nonce)
    if found is not None:
        return found
    path = Path(f"/proc/{place.pid}/fd/{place.fd}")
    try:
        if not str(path.readlink()).startswith(_LINK):
            return None  # opening something else may wait, or do something
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            memory = mmap.mmap(fd, place.size, access=mmap.ACCESS_READ)
        finally:
            os.close(fd)
    except (OSError, ValueError):  # it has ended, or is not of this machine, or is somebody else's
        return None
    if memory[: len(_MAGIC) + _NONCE_BYTES] != _MAGIC + place.nonce:
        return None
    return _attached.setdefault(place.nonce, _Attached(memory))


def _descends_from(ancestor: int) -> bool:
    """Whether a process started this one, perhaps by others between."""
    process = os.getppid()
    try:
        while process not in (ancestor, 0):
            # The second field is the program's name, in parentheses, and may hold anything; the fourth is the parent.
            process = int(Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return False
    return process == ancestor
