"""A note beside the database of how far it was acknowledged, so that a tail that vanished is noticed.

SQLite ends its write-ahead log at the first frame whose checksum is wrong, silently: right after a power cut in the
middle of a commit, wrong when a frame that was acknowledged is damaged. The mark is written after each commit, without
fsync: it may be behind what is durable, never ahead of it. It survives the death of the daemon, and may or may not
survive a power cut.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from zlib import crc32

_FORM = re.compile(rb"([0-9a-f]{32}) ([0-9]{19}) ([0-9a-f]{8})\n")


class HeadMark:
    """The file beside a database.

    Args:
        database: The database's path; the mark is ``PATH-head``.
    """

    def __init__(self, database: Path) -> None:
        self.path = database.with_name(database.name + "-head")
        self._file: int | None = None

    def read(self, store_id: str = "") -> int:
        """Returns the revision noted for a store (``""``: for any); 0 if there is none, or none that can be read."""
        try:
            found = _FORM.fullmatch(self.path.read_bytes())
        except OSError:
            return 0
        if found is None or int(found[3], 16) != crc32(b"%b %b" % (found[1], found[2])):
            return 0
        return int(found[2]) if store_id in ("", found[1].decode()) else 0

    def write(self, store_id: str, revision: int) -> None:
        """Notes how far a store was acknowledged. A failure is no reason to stop: the mark only helps to notice."""
        text = b"%b %019d" % (store_id.encode(), revision)
        try:
            if self._file is None:
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
            os.pwrite(self._file, b"%b %08x\n" % (text, crc32(text)), 0)
        except OSError:
            self.close()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
