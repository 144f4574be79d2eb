"""SQLite's write-ahead log, read without SQLite: where SQLite will end it, and whether that is where it was ended.

SQLite takes the log up to the last commit before the first frame that does not keep its checksum, and says nothing of
what stands behind. The format is that of SQLite's "Database File Format", section 4.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC = 0x377F0682
"""The last bit tells the byte order of the checksums."""
_MAX_PAGE = 65_536
_Sums = tuple[int, int]


@dataclass(frozen=True, slots=True)
class WalReport:
    """What a write-ahead log holds."""

    size: int = 0
    """Bytes of the file."""
    commits: int = 0
    """Commits that SQLite takes."""
    header_damaged: bool = False
    """There are frames, and a header that does not keep its checksum: SQLite takes none of them."""
    bad_frame: int = 0
    """The first frame that does not keep its checksum and belongs to this log or has such behind it, from 1."""
    commits_behind: int = 0
    """Commits in the frames from that one on."""
    first_page: bytes = b""
    """The database's first page as of the last commit; empty if the log does not hold it."""

    @property
    def damaged(self) -> bool:
        """Whether a commit that was completed is lost behind a frame that is not what was written.

        A commit is begun after the one before it is on disk: behind the one that a power cut tore there is no other.
        """
        return self.commits_behind > 1


def examine_wal(path: Path) -> WalReport:
    """Reads a write-ahead log. A file that is not there is an empty one.

    Raises:
        OSError: It can't be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _examine(file, size)
    except FileNotFoundError:
        return WalReport()


def _examine(file: BinaryIO, size: int) -> WalReport:
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return WalReport(size)
    magic, _, page, _, salt_1, salt_2, *stored = _HEADER.unpack(header)
    words = ">" if magic & 1 else "<"
    sums = _sums(header[:24], (0, 0), words)
    if magic & ~1 != _MAGIC or tuple(stored) != sums or not 512 <= page <= _MAX_PAGE:
        # Written and made durable before the first frame: without a frame it is no loss.
        return WalReport(size, header_damaged=size > _HEADER.size + _FRAME.size)
    commits = frame = bad_frame = behind = 0
    first_page = pending = b""
    while len(data := file.read(_FRAME.size + page)) == _FRAME.size + page:
        frame += 1
        number, pages, *salts, sum_1, sum_2 = _FRAME.unpack_from(data)
        ours = salts == [salt_1, salt_2]
        if not bad_frame:
            sums = _sums(data[:8] + data[_FRAME.size :], sums, words)
            if ours and sums == (sum_1, sum_2):
                if number == 1:
                    pending = data[_FRAME.size :]
                if pages:
                    commits, first_page = commits + 1, pending
                continue
            bad_frame = frame
        behind += bool(ours and pages)
    # Frames of an older use of the file, which was checkpointed, follow regularly.
    return WalReport(size, commits, False, bad_frame if behind else 0, behind, first_page)


def _sums(data: bytes, sums: _Sums, words: str) -> _Sums:
    one, other = sums
    numbers = struct.unpack(f"{words}{len(data) // 4}I", data)
    for even, odd in zip(numbers[::2], numbers[1::2], strict=True):
        one = (one + even + other) & 0xFFFFFFFF
        other = (other + odd + one) & 0xFFFFFFFF
    return one, other
