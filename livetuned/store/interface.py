"""The contract of a store: an ordered, durable log of records, and snapshots that make its beginning dispensable.

`tests/contract` holds every engine to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from livetuned.domain.job import Job
from livetuned.domain.records import Draft, Record


class StoreError(Exception):
    """Root of what goes wrong with a store."""


class StoreOpenError(StoreError):
    """The store can't be opened: unreadable, not ours, of a newer schema. Nothing was changed."""


class StoreLockedError(StoreOpenError):
    """Another daemon holds the store."""


class StoreDamagedError(StoreError):
    """What is stored is not what was written. Nothing was changed."""


class StoreFullError(StoreError):
    """There is no room for the records: nothing of the batch was stored, a later one may succeed."""


class StoreFailedError(StoreError):
    """Storing failed in a way after which nothing can be known of the store until it is opened anew."""


class CompactedError(StoreError):
    """The records asked for are not kept any more."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a store knows without its log."""

    jobs: list[Job]
    """Snapshots, each as of its own `Job.revision`."""
    covered: int
    """Every record up to this revision is part of a snapshot, or of a job that was removed."""


class Store(ABC):
    """An ordered, durable log of records, with snapshots of jobs.

    Guarantees:
        Durable: when `append` returns, the batch is on disk and survives a power cut.
        Atomic: a batch is stored whole or not at all.
        Ordered: revisions rise by one from 1, in the order of the drafts, and are never given twice.
        Followed: `follow` delivers every record once, in order, and only after it is durable.
        True: what is read is what was written, or the read raises `StoreDamagedError`.

    The methods belong to one event loop; they may be called concurrently on it.
    """

    @property
    @abstractmethod
    def store_id(self) -> str:
        """Random identity drawn when the store was created; a store that was replaced or restored has another one."""

    @property
    @abstractmethod
    def head(self) -> int:
        """Revision of the last durable record, 0 for none."""

    @property
    @abstractmethod
    def compacted(self) -> int:
        """Records up to this revision are not kept any more; 0 if all are."""

    @property
    @abstractmethod
    def verified(self) -> int:
        """Records after this revision were found intact when the store was opened, or were written since."""

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """What the store takes on disk, in bytes."""

    @abstractmethod
    async def append(self, drafts: Sequence[Draft]) -> list[Record]:
        """Stores a batch and returns its records.

        Raises:
            StoreFullError: No room; nothing was stored.
            StoreFailedError: Unknown whether it was stored; the store takes nothing more.
        """

    @property
    def quick(self) -> bool:
        """Whether `append_now` may be used now."""
        return False

    def append_now(self, drafts: Sequence[Draft]) -> list[Record]:
        """Stores a batch as `append`, before it returns; only while `quick`.

        Who waits for one commit alone waits less if nobody has to be woken. The event loop stands still meanwhile: an
        engine that can't tell whether it will be a matter of a moment is never `quick`.

        Raises:
            StoreFullError: No room; nothing was stored.
            StoreFailedError: Unknown whether it was stored; the store takes nothing more.
        """
        raise NotImplementedError

    @abstractmethod
    async def load(self) -> Loaded:
        """Returns the snapshots: with the records after `Loaded.covered` they give the state.

        Raises:
            StoreDamagedError: One can't be read, or is missing.
        """

    @abstractmethod
    async def save(self, jobs: Sequence[Job], removed: Sequence[str], covered: int) -> None:
        """Stores snapshots in place of older ones of the same jobs, all or none.

        Args:
            jobs: Jobs as of durable records.
            removed: Jobs that were removed, by a record up to `covered`, and did not come back.
            covered: Every record up to this revision is part of a snapshot now.

        Raises:
            StoreFullError: No room; nothing was stored.
            StoreFailedError: Unknown whether it was stored; the store takes nothing more.
        """

    @abstractmethod
    async def compact(self, through: int) -> None:
        """Drops the records up to a revision. Appends and reads go on meanwhile.

        Args:
            through: A revision that is covered by snapshots.

        Raises:
            ValueError: It is not covered.
            StoreFullError: No room to do it; some may be dropped.
            StoreFailedError: The store takes nothing more.
        """

    @abstractmethod
    async def verify(self, after: int, limit: int) -> int:
        """Checks records that were not checked when the store was opened.

        Args:
            after: Look at those after this revision.
            limit: At most this many.

        Returns:
            Revision of the last one that was looked at; `head` if that was the last.

        Raises:
            StoreDamagedError: One is not what was written, or is missing.
        """

    @abstractmethod
    async def note(self, key: str) -> str:
        """Returns what was noted under a key, ``""`` for nothing.

        Raises:
            StoreDamagedError: It is not what was written.
        """

    @abstractmethod
    async def put_note(self, key: str, text: str) -> None:
        """Notes something durably under a key, in place of what was noted there.

        Raises:
            StoreFullError: No room; nothing was changed.
            StoreFailedError: The store takes nothing more.
        """

    @abstractmethod
    async def follow(self, after: int, deliver: Callable[[list[Record]], None]) -> None:
        """Delivers all records after a revision, in order, in batches, as they become durable. Ends when cancelled.

        Who has caught up is delivered a batch before its `append` returns.

        Args:
            after: Deliver what comes after it.
            deliver: Called on the event loop; must not raise.

        Raises:
            CompactedError: The records that follow are not kept any more.
            StoreDamagedError: A stored record can't be read.
        """

    @abstractmethod
    async def read(self, after: int, limit: int, job: str = "") -> list[Record]:
        """Returns at most `limit` records after a revision, in order, of one job or (``""``) of all.

        Raises:
            CompactedError: The records that follow are not kept any more.
            StoreDamagedError: A stored record can't be read.
        """

    @abstractmethod
    async def changes(self, job: str, before: int, limit: int) -> list[Record]:
        """Returns the newest `limit` changes that are kept and older than a revision, in order.

        Args:
            job: Of this job, ``""`` for all jobs.
            before: Only changes with a lower revision.
            limit: At most this many.

        Raises:
            StoreDamagedError: A stored record can't be read.
        """

    @abstractmethod
    async def applies(self, job: str, first: int, last: int) -> list[Record]:
        """Returns the acknowledgements of a job's changes with revisions from `first` to `last`, in order.

        Raises:
            StoreDamagedError: A stored record can't be read.
        """

    @abstractmethod
    async def close(self) -> None:
        """Waits for what is under way and releases the store. A second call does nothing."""
