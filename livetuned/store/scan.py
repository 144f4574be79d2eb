"""Reads a store's log once, for three checks: its chain, its indexes, and that it folds to what the snapshots say."""

from __future__ import annotations

from collections.abc import Iterator

from livetuned.domain.records import Applied, Record
from livetuned.domain.state import State
from livetuned.store.findings import SHOWN, Check, Examination, Status, check, number, some, span, utc
from livetuned.store.refold import Refold
from livetuned.store.source import ChainError, Line, Source


class Scan:
    """One reading.

    Args:
        source: The store.
        found: What was found so far; where the chain ends and what the jobs are is added.
    """

    def __init__(self, source: Source, found: Examination) -> None:
        self._source = source
        self._found = found
        self._damage: ChainError | None = None
        self._times: list[int] = []
        self._index: list[str] = []
        self._problem = ""
        """Why the records do not fold."""
        self._other: set[str] = set()
        """Jobs that are not what their snapshots say."""
        self._whole = Refold(complete=found.origin == 0)
        self._trusted = found.covered is not None and found.snapshots_complete and not found.bad_snapshots
        self._state = State(found.snapshots.values(), found.covered or 0)

    def checks(self) -> Iterator[Check]:
        """Reads it and yields the checks."""
        found = self._found
        found.good = found.origin
        try:
            if found.anchor is None:
                raise ChainError(found.origin + 1, "can't be checked: where the log begins is damaged")
            for line in self._source.lines(found.origin, found.anchor, found.head):
                self._see(line)
        except ChainError as error:
            self._damage = error
        yield self._chain()
        yield self._indexes()
        yield self._folded()

    def _see(self, line: Line) -> None:
        self._times = [*self._times[:1], line.time_us]
        try:
            record = line.record()
        except ValueError as error:
            raise ChainError(line.revision, f"can't be understood: {error}") from error
        subject = record.payload.change_revision if isinstance(record.payload, Applied) else None
        if subject is not None and subject != line.subject:
            self._index.append(f"record {line.revision} stands under change {line.subject}, and is of {subject}")
        else:
            self._look_up(line)
        self._fold(record)

    def _fold(self, record: Record) -> None:
        if self._problem:
            return
        try:
            self._whole.fold(record)
            self._found.good = record.revision
        except ValueError as error:
            self._problem = f"record {record.revision} does not follow from those before it: {error}"
            return
        snapshot = self._found.snapshots.get(record.job)
        saved_here = snapshot is not None and snapshot.revision == record.revision
        if snapshot is not None and saved_here and record.job in self._whole.jobs and self._whole.differs(snapshot):
            self._other.add(record.job)
        if self._trusted and record.revision > self._state.revision:
            try:
                self._state.fold(record)
            except (ValueError, KeyError) as error:
                self._trusted = False
                self._problem = f"record {record.revision} does not follow from the snapshots: {error}"

    def _look_up(self, line: Line) -> None:
        if len(self._index) > SHOWN:
            return
        try:
            if not self._source.indexed(line.kind, line.job, line.subject, line.revision):
                self._index.append(f"record {line.revision} is missing in the index of its kind, {line.kind!r}")
        except ValueError as error:
            self._index += [str(error)] * (SHOWN + 1)

    def _chain(self) -> Check:
        found = self._found
        count = found.head - found.origin
        if self._damage is not None:
            before = f"; {span(found.origin + 1, self._damage.revision - 1)} are well"
            last = f"; the last one found is {found.head}" if found.log_readable else ""
            words = f"{self._damage}{before if self._damage.revision > found.origin + 1 else ''}{last}"
            return Check("chain", Status.FAILED, words)
        if not count:
            return Check("chain", Status.OK, f"no records after revision {found.origin}")
        times = f"{utc(self._times[0])} to {utc(self._times[-1])}"
        compacted = ""
        if found.origin:
            compacted = "; those before were compacted" if found.origin_known else "; nothing is known of those before"
        words = f"{number(count, 'record')}, {span(found.origin + 1, found.head)}, of {times}{compacted}"
        return Check("chain", Status.OK, words)

    def _indexes(self) -> Check:
        well = "every record is found by them" if self._damage is None else "the records that are well are found"
        return check("indexes", some(list(dict.fromkeys(self._index))), well)

    def _folded(self) -> Check:
        found, name = self._found, "fold"
        if self._problem:
            return Check(name, Status.FAILED, self._problem)
        if self._other:
            words = f"the snapshots say otherwise than the records: jobs {some(sorted(self._other))}"
            return Check(name, Status.FAILED, words)
        if self._damage is not None:
            return Check(name, Status.LEFT_OUT, "the chain is broken")
        if not self._trusted:
            return Check(name, Status.LEFT_OUT, "the snapshots are damaged")
        different = self._different()
        if not different:
            found.state = self._state.jobs
        own, older = len(self._whole.jobs), len(self._state.jobs) - len(self._whole.jobs)
        words = f"the records make {number(own, 'job')}"
        if self._source.version > 1:
            words += ", the same as the snapshots with the records after them"
        if older > 0:
            words += f"; {older} more began before the first record kept: their snapshots stand for that"
        return check(name, "; ".join(different), words)

    def _different(self) -> list[str]:
        whole, state, origin = self._whole, self._state.jobs, self._found.origin
        absent = [name for name in whole.jobs if name not in state]
        other = [name for name, job in state.items() if name in whole.jobs and whole.differs(job)]
        older = {name for name, job in state.items() if name in whole.unknown or job.revision <= origin}
        extra = [name for name in state if name not in whole.jobs and name not in older]
        return [
            f"{words}: jobs {some(sorted(names))}"
            for names, words in (
                (absent, "in the records, not in the snapshots"),
                (other, "the snapshots say otherwise than the records"),
                (extra, "in the snapshots, not in the records"),
            )
            if names
        ]
