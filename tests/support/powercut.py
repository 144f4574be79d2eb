"""Power cuts, simulated: what a program wrote is recorded with strace and replayed up to a moment.

A file holds for certain what was written before its last fsync. Each write after it is there, or is not, or is there in
part, sector by sector, in any order: more than a real disk does. Names (files created, renamed, removed) are on disk with the
fsync of their folder; after it the first few of them are there, as with a file system that keeps a journal.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
"""What a disk writes whole, in bytes."""

_CALLS = (
    "openat,open,creat,close,lseek,write,writev,pwrite64,pwritev,pwritev2,ftruncate,truncate,fallocate,fsync,fdatasync,"
    "sync_file_range,msync,mmap,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,"
    "copy_file_range,sendfile,splice"
)
_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += +(-?\d+|0x[0-9a-f]+|\?)")
_UNFINISHED = re.compile(r"(\d+) +(.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)$")
_FD = re.compile(r"(\d+)<([^>]*)>")
_QUOTED = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


@dataclass(frozen=True, slots=True)
class Write:
    file: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    file: str
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """Of a file, or of the folder (``""``)."""

    file: str


@dataclass(frozen=True, slots=True)
class Create:
    file: str


@dataclass(frozen=True, slots=True)
class Rename:
    file: str
    to: str


@dataclass(frozen=True, slots=True)
class Unlink:
    file: str


@dataclass(frozen=True, slots=True)
class Said:
    """A line that the program wrote to its standard output."""

    text: str


Event = Write | Truncate | Sync | Create | Rename | Unlink | Said


def record(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> list[Event]:
    """Runs a program under strace and returns what it did to the files of a folder, and what it said, in order.

    Raises:
        AssertionError: The program failed, or wrote to the folder in a way that this does not understand.
    """
    trace = folder.with_name(folder.name + ".trace")
    strace = ["strace", "--seccomp-bpf", "-f", "-y", "-xx", "-s", "16777216", "-e", f"trace={_CALLS}", "-o", str(trace)]
    answer = subprocess.run(
        [*strace, *command], capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )
    assert 0 == answer.returncode, answer.stderr
    with trace.open() as lines:
        events = list(_Parser(folder).events(_whole_lines(lines)))
    trace.unlink()
    return events


def _whole_lines(lines: Iterator[str]) -> Iterator[str]:
    waiting: dict[str, str] = {}
    for line in lines:
        if found := _UNFINISHED.match(line):
            waiting[found[1]] = found[2]
        elif found := _RESUMED.match(line):
            yield f"{found[1]} {waiting.pop(found[1])}{found[2]}"
        else:
            yield line


def _text(escaped: str) -> str:
    return re.sub(r"(?:\\x[0-9a-f]{2})+", lambda found: _bytes(found[0]).decode(), escaped)


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


class _Parser:
    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._positions: dict[str, int] = {}
        self._sizes: dict[str, int] = {}

    def events(self, lines: Iterator[str]) -> Iterator[Event]:
        for line in lines:
            found = _LINE.match(line)
            if found is None or found[4] == "?" or found[4].startswith("-"):
                continue  # a signal, an exit, or a call that failed and did nothing
            yield from self._event(found[2], found[3], int(found[4], 0))

    def _event(self, call: str, arguments: str, result: int) -> Iterator[Event]:  # noqa: C901 - one branch for each call
        descriptor = _FD.match(arguments)
        name = "" if descriptor is None else self._name(_text(descriptor[2]))
        if call == "write" and descriptor is not None and descriptor[1] == "1":
            yield Said(self._data(arguments).decode().strip())
        elif call in ("openat", "open"):
            yield from self._opened(arguments, result)
        elif call in ("unlink", "unlinkat", "rename", "renameat", "renameat2"):
            names = [self._name(_text(quoted[1])) for quoted in _QUOTED.finditer(arguments)]
            if None not in names:
                size = self._sizes.pop(names[0] or "", 0)
                if call.startswith("rename"):
                    self._sizes[names[1] or ""] = size
                yield Unlink(*names) if call.startswith("unlink") else Rename(*names)  # type: ignore[arg-type]
        elif name is None or descriptor is None:
            assert self._folder not in _text(arguments), f"{call} is not understood: {_text(arguments)[:300]}"
        elif call in ("fsync", "fdatasync"):
            yield Sync(name)
        elif call == "ftruncate":
            self._sizes[name] = size = int(arguments.rsplit(", ", 1)[1])
            yield Truncate(name, size)
        elif call == "pwrite64":
            yield self._written(name, int(arguments.rsplit(", ", 1)[1]), self._data(arguments)[:result])
        elif call == "write":
            yield self._written(name, self._positions[descriptor[1]], self._data(arguments)[:result])
            self._positions[descriptor[1]] += result
        elif call == "lseek":
            self._positions[descriptor[1]] = result
        else:
            assert call == "close" or (call == "mmap" and "MAP_SHARED" not in arguments), f"{call} is not understood"

    def _name(self, path: str) -> str | None:
        if path == self._folder:
            return ""
        head, _, name = path.rpartition("/")
        return name if head == self._folder else None

    def _data(self, arguments: str) -> bytes:
        quoted = _QUOTED.search(arguments)
        assert quoted is not None, arguments[:300]
        assert not quoted[2], "strace cut the data"
        return _bytes(quoted[1])

    def _written(self, name: str, offset: int, data: bytes) -> Write:
        self._sizes[name] = max(self._sizes.get(name, 0), offset + len(data))
        return Write(name, offset, data)

    def _opened(self, arguments: str, descriptor: int) -> Iterator[Event]:
        quoted = _QUOTED.search(arguments)
        assert quoted is not None
        name = self._name(_text(quoted[1]))
        if not name:
            return
        flags = arguments[quoted.end() :]
        if "O_CREAT" in flags and name not in self._sizes:
            self._sizes[name] = 0
            yield Create(name)
        if "O_TRUNC" in flags:
            self._sizes[name] = 0
            yield Truncate(name, 0)
        self._positions[str(descriptor)] = self._sizes[name] if "O_APPEND" in flags else 0


@dataclass(slots=True)
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Write | Truncate] = field(default_factory=list)


class Disk:
    """The files of one folder as a disk has them, moved by events."""

    def __init__(self) -> None:
        self._durable_names: dict[str, _File] = {}
        self._names: dict[str, _File] = {}
        self._pending_names: list[Create | Rename | Unlink] = []
        self._created: dict[int, _File] = {}

    def move(self, event: Event) -> None:
        """Takes in the next event."""
        if isinstance(event, Write | Truncate):
            self._names[event.file].pending.append(event)
        elif isinstance(event, Sync):
            if event.file:
                file = self._names[event.file]
                for change in file.pending:
                    _apply(file.durable, change)
                file.pending.clear()
            else:
                self._durable_names = dict(self._names)
                self._pending_names.clear()
        elif isinstance(event, Create | Rename | Unlink):
            if isinstance(event, Create):
                self._created[len(self._pending_names)] = _File()
            self._rename(self._names, event, len(self._pending_names))
            self._pending_names.append(event)

    def _rename(self, names: dict[str, _File], event: Create | Rename | Unlink, number: int) -> None:
        if isinstance(event, Create):
            names[event.file] = self._created[number]
        elif isinstance(event, Rename):
            names[event.to] = names.pop(event.file)
        else:
            names.pop(event.file, None)

    def cut(self, generator: random.Random) -> dict[str, bytes]:
        """Returns the files as they may be found after a power cut at this moment."""
        names = dict(self._durable_names)
        survived = generator.randint(0, len(self._pending_names))
        for number, event in enumerate(self._pending_names[:survived]):
            self._rename(names, event, number)
        # Sometimes nearly everything was written, sometimes nearly nothing.
        kept = generator.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        return {name: _survived(file, kept, generator) for name, file in names.items()}


def _survived(file: _File, kept: float, generator: random.Random) -> bytes:
    data = bytearray(file.durable)
    for change in file.pending:
        if generator.random() < kept:
            _apply(data, change)
        elif isinstance(change, Write) and generator.random() < 0.5:
            for torn in _sectors(change):
                if generator.random() < 0.5:
                    _apply(data, torn)
    return bytes(data)


def _sectors(write: Write) -> Iterator[Write]:
    start, end = write.offset, write.offset + len(write.data)
    while start < end:
        stop = min((start // SECTOR + 1) * SECTOR, end)
        yield Write(write.file, start, write.data[start - write.offset : stop - write.offset])
        start = stop


def _apply(data: bytearray, change: Write | Truncate) -> None:
    if isinstance(change, Truncate):
        if change.size < len(data):
            del data[change.size :]
        else:
            data.extend(bytes(change.size - len(data)))
        return
    if change.offset > len(data):
        data.extend(bytes(change.offset - len(data)))
    data[change.offset : change.offset + len(change.data)] = change.data


def cuts(
    events: Sequence[Event], count: int, generator: random.Random
) -> Iterator[tuple[int, list[str], dict[str, bytes]]]:
    """Cuts the power at random moments.

    Yields:
        The number of events before the cut, what the program had said by then, and the files as they may be found.
    """
    moments = sorted(generator.randint(0, len(events)) for _ in range(count))
    disk, said, done = Disk(), list[str](), 0
    for moment in moments:
        for event in events[done:moment]:
            disk.move(event)
            if isinstance(event, Said):
                said.append(event.text)
        done = moment
        yield moment, said, disk.cut(generator)
