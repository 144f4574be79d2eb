"""The request ids that a job remembers: immutable, and made anew with one id more in constant time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from livetuned.domain import limits

_SURPLUS = 256
"""How many ids more than must be remembered are kept before the oldest are dropped: dropping copies the others."""


class Requests:
    """Request ids with the revisions of their changes, oldest first; the newest `limits.REQUEST_IDS_PER_JOB` at least.

    Those that follow each other share one dictionary, which only grows; each knows how many of its entries, and up to
    which revision, are its own. What a commit that failed has left in it is not seen: whoever goes on from the state
    before takes that one's entries into a new dictionary first.

    Args:
        revisions: By id, in rising order of revisions. Not to be touched afterwards.
    """

    __slots__ = ("_count", "_last", "_shared")

    def __init__(self, revisions: dict[str, int] | None = None) -> None:
        self._shared = {} if revisions is None else revisions
        self._count = len(self._shared)
        self._last = next(reversed(self._shared.values()), 0)

    def get(self, request_id: str) -> int:
        """Returns the revision of the change made under an id, 0 for none."""
        revision = self._shared.get(request_id, 0)
        return revision if revision <= self._last else 0

    def remembering(self, request_id: str, revision: int) -> Requests:
        """Returns the same ids and one more, made at a later revision than any of them."""
        shared, count = self._shared, self._count
        if count != len(shared) or count >= limits.REQUEST_IDS_PER_JOB + _SURPLUS or request_id in shared:
            kept = dict(islice(self.items(), max(0, count - limits.REQUEST_IDS_PER_JOB + 1), None))
            kept.pop(request_id, None)
            kept[request_id] = revision
            return Requests(kept)
        shared[request_id] = revision
        return Requests(shared)

    def items(self) -> Iterator[tuple[str, int]]:
        """Yields ids and revisions, oldest first. Others may be added in another thread meanwhile."""
        return islice(self._shared.copy().items(), self._count)  # a copy is made in one step

    def __len__(self) -> int:
        return self._count

    def __contains__(self, request_id: object) -> bool:
        return isinstance(request_id, str) and self.get(request_id) > 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Requests) and list(self.items()) == list(other.items())

    def __hash__(self) -> int:
        return hash(tuple(self.items()))

    def __repr__(self) -> str:
        return f"Requests({dict(self.items())!r})"
