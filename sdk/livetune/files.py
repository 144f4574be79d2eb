"""Owns which files a job records to and replays from: arguments before the environment, one file of each rank."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from livetune.errors import ReplayError

if TYPE_CHECKING:
    from livetune.recorder import Recorder
    from livetune.replay import Replay

__all__ = ["Files", "chosen_files"]

log = logging.getLogger("livetune")

_RANK = "{rank}"

Path = str | os.PathLike[str] | None


@dataclass(frozen=True)
class Files:
    """Paths of a job's files, "" for none."""

    record: str
    replay: str

    def open_replay(self, job: str, rank: int) -> Replay | None:
        """Read what is to be replayed, and say what the user must know of it.

        Args:
            job: Name of the job.
            rank: Whose applies count, where the file has those of several.

        Raises:
            ReplayError: It can't be replayed.
        """
        if not self.replay:
            return None
        from livetune.replay import Replay  # loads what a live job need not

        replay = Replay.read(self.replay, rank)
        for text in replay.warnings:
            log.warning("job %s: %s", job, text)
        return replay

    def open_recorder(self, job: str, rank: int, world_size: int) -> Recorder | None:
        """Open the record, or warn that it can't be."""
        if not self.record:
            return None
        from livetune.recorder import Recorder  # the same

        return Recorder(self.record, job=job, rank=rank, world_size=world_size)


def chosen_files(record: Path, replay: Path, rank: int, world_size: int) -> Files:
    """Return the files that a job is to use.

    Raises:
        ReplayError: Ranks would share one record, or a record be written over what is replayed.
    """
    target, source = _chosen(record, "LIVETUNE_RECORD"), _chosen(replay, "LIVETUNE_REPLAY")
    if target and world_size > 1 and _RANK not in target:
        raise ReplayError(
            f"record={target!r}: each of {world_size} ranks needs a file of its own, with {_RANK} in its name"
        )
    files = Files(target.replace(_RANK, str(rank)), source.replace(_RANK, str(rank)))
    if target and source and os.path.realpath(files.record) == os.path.realpath(files.replay):
        raise ReplayError(f"record and replay must be two files, got {files.replay!r} for both")
    return files


def _chosen(given: Path, variable: str) -> str:
    return os.environ.get(variable, "") if given is None else os.fspath(given)
