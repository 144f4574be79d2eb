"""The request ids that a job remembers: immutable, and cheap to make anew with one id more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from livetuned.domain import limits

_RECENT = 32
"""How many of the newest ids are copied with each change; the others are shared, and copied once in so many changes."""

_NONE: Mapping[str, int] = {}


class Requests:
    """Request ids with the revisions of their changes, oldest first; the newest `limits.REQUEST_IDS_PER_JOB` at least.

    Args:
        older: Ids that are shared with the states before.
        recent: The newest ids.
    """

    __slots__ = ("_older", "_recent")

    def __init__(self, older: Mapping[str, int] = _NONE, recent: Mapping[str, int] = _NONE) -> None:
        self._older = older
        self._recent = recent

    def get(self, request_id: str) -> int:
        """Returns the revision of the change made under an id, 0 for none."""
        return self._recent.get(request_id) or self._older.get(request_id, 0)

    def remembering(self, request_id: str, revision: int) -> Requests:
        """Returns the same ids and one more."""
        recent = {**self._recent, request_id: revision}
        if len(recent) <= _RECENT:
            return Requests(self._older, recent)
        older = {**self._older, **recent}
        for surplus in list(older)[: max(0, len(older) - limits.REQUEST_IDS_PER_JOB)]:
            del older[surplus]
        return Requests(older, _NONE)

    def items(self) -> Iterator[tuple[str, int]]:
        """Yields ids and revisions, oldest first."""
        yield from self._older.items()
        yield from self._recent.items()

    def __len__(self) -> int:
        return len(self._older) + len(self._recent)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._recent or request_id in self._older

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Requests) and list(self.items()) == list(other.items())

    def __hash__(self) -> int:
        return hash(tuple(self.items()))

    def __repr__(self) -> str:
        return f"Requests({dict(self.items())!r})"
