"""The contract of a store: an ordered, durable log of records. `tests/contract` holds every engine to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence

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


class Store(ABC):
    """An ordered, durable log of records.

    Guarantees:
        Durable: when `append` returns, the batch is on disk and survives a power cut.
        Atomic: a batch is stored whole or not at all.
        Ordered: revisions rise by one from 1, in the order of the drafts, and are never given twice.
        Followed: `follow` yields every record once, in order, and only after it is durable.

    The methods belong to one event loop; they may be called concurrently on it.
    """

    @property
    @abstractmethod
    def store_id(self) -> str:
        """Random identity drawn when the store was created; a store that was replaced has another one."""

    @property
    @abstractmethod
    def head(self) -> int:
        """Revision of the last durable record, 0 for none."""

    @abstractmethod
    async def append(self, drafts: Sequence[Draft]) -> list[Record]:
        """Stores a batch and returns its records.

        Raises:
            StoreFullError: No room; nothing was stored.
            StoreFailedError: Unknown whether it was stored; the store takes nothing more.
        """

    @abstractmethod
    def follow(self, after: int) -> AsyncIterator[list[Record]]:
        """Yields all records after a revision, in order, in batches, as they become durable. Does not end by itself.

        Raises:
            StoreDamagedError: A stored record can't be read.
        """

    @abstractmethod
    async def read(self, after: int, limit: int, job: str = "") -> list[Record]:
        """Returns at most `limit` records after a revision, in order, of one job or (``""``) of all.

        Raises:
            StoreDamagedError: A stored record can't be read.
        """

    @abstractmethod
    async def changes(self, job: str, before: int, limit: int) -> list[Record]:
        """Returns the newest `limit` changes of a job that are older than a revision, in order.

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
