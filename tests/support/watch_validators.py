"""Does a watcher see everything of its scope once, in order? Six validators, named as etcd's robustness tests name them.

Each takes what one watcher received, over all its breaks and resumes, and the truth: everything that happened, read when all
was over. Each returns its violations in words; none means that the property holds.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Opened:
    """The watcher asked for what came after a revision of a store: at first, and again after every break."""

    after: int
    store_id: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: the whole of one revision."""

    revision: int
    job: str
    parts: tuple[str, ...]
    """What happened, one text for each part (for example each variable) of the transaction."""
    store_id: str = ""


@dataclass(frozen=True, slots=True)
class Bookmark:
    """The daemon said that everything up to a revision was delivered."""

    revision: int
    store_id: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The daemon could not go on from where the watcher was, and gave it the state as of a revision instead."""

    revision: int
    store_id: str = ""


@dataclass(frozen=True, slots=True)
class Broken:
    """The connection ended. That is no fault, unless the daemon did not want to resume."""

    why: str
    refused: bool = False


Item: TypeAlias = Opened | Event | Bookmark | Snapshot | Broken


@dataclass(slots=True)
class Stream:
    """What one watcher received.

    Attributes:
        name: How the violations call it.
        job: The job that it watches, ``""`` for all.
        items: What it asked and received, in order.
    """

    name: str
    job: str = ""
    items: list[Item] = field(default_factory=list)

    def of_scope(self, truth: Sequence[Event]) -> list[Event]:
        """Returns the part of the truth that it watches."""
        return [event for event in truth if self.job in ("", event.job)]


def ordered(stream: Stream, truth: Sequence[Event]) -> list[str]:
    """Revisions never go back, not even over a break."""
    wrong, last = [], 0
    for item in stream.items:
        if isinstance(item, Opened):
            last = min(last, item.after)  # who asks for old events again gets them again
        elif isinstance(item, Snapshot):
            last = item.revision
        elif isinstance(item, Event):
            if item.revision < last:
                wrong.append(f"{stream.name}: revision {item.revision} came after revision {last}")
            last = max(last, item.revision)
    return wrong


def unique(stream: Stream, truth: Sequence[Event]) -> list[str]:
    """Nothing comes twice, not even over a break."""
    wrong: list[str] = []
    seen: dict[int, set[str]] = {}
    for item in stream.items:
        if isinstance(item, Opened) and seen and item.after < max(seen):
            seen = {revision: parts for revision, parts in seen.items() if revision <= item.after}
        elif isinstance(item, Event):
            known = seen.setdefault(item.revision, set())
            wrong += [
                f"{stream.name}: {part} of revision {item.revision} came twice" for part in item.parts if part in known
            ]
            known.update(item.parts)
    return wrong


def reliable(stream: Stream, truth: Sequence[Event]) -> list[str]:
    """Nothing of the scope is missing between the first and the last event, and nothing came that never happened."""
    scope = {event.revision for event in stream.of_scope(truth)}
    wrong, came, skipped, position = [], set(), set[int](), 0
    for item in stream.items:
        if isinstance(item, Snapshot):
            skipped |= {revision for revision in scope if position < revision <= item.revision}
            position = item.revision
        elif isinstance(item, Event):
            came.add(item.revision)
            position = max(position, item.revision)
            if item.revision not in scope:
                wrong.append(f"{stream.name}: revision {item.revision} ({', '.join(item.parts)}) is not in the history")
    if came:
        missing = sorted(scope - came - skipped)
        wrong += [
            f"{stream.name}: revision {revision} never came" for revision in missing if min(came) < revision < max(came)
        ]
    return wrong


def atomic(stream: Stream, truth: Sequence[Event]) -> list[str]:
    """One revision comes as a whole: every event is a point to resume from, so a part of a revision would be lost."""
    whole = {event.revision: event.parts for event in stream.of_scope(truth)}
    return [
        f"{stream.name}: revision {item.revision} came as ({', '.join(item.parts)}), "
        f"and it is ({', '.join(whole[item.revision])})"
        for item in stream.items
        if isinstance(item, Event) and item.revision in whole and item.parts != whole[item.revision]
    ]


def resumable(stream: Stream, truth: Sequence[Event]) -> list[str]:
    """After a resume comes exactly what follows, of the store that was asked for; a resume is not refused."""
    revisions = [event.revision for event in stream.of_scope(truth)]
    wrong: list[str] = []
    after: int | None = None
    store_id = ""
    for item in stream.items:
        if isinstance(item, Opened):
            after, store_id = item.after, item.store_id
        elif isinstance(item, Broken):
            if item.refused:
                wrong.append(f"{stream.name}: could not resume after revision {after}: {item.why}")
        else:
            if isinstance(item, Snapshot):
                after, store_id = item.revision, item.store_id
            elif store_id and item.store_id != store_id:
                wrong.append(f"{stream.name}: asked for store {store_id}, was answered by store {item.store_id}")
            if isinstance(item, Event) and after is not None:
                place = bisect.bisect_right(revisions, after)
                expected = revisions[place] if place < len(revisions) else None
                if item.revision != expected:
                    wrong.append(
                        f"{stream.name}: resumed after revision {after}, got {item.revision} and not {expected}"
                    )
                after = None
    return wrong


def bookmarkable(stream: Stream, truth: Sequence[Event]) -> list[str]:
    """Everything of the scope up to a bookmark came before it, and nothing of that comes after it."""
    revisions = [event.revision for event in stream.of_scope(truth)]
    wrong: list[str] = []
    came: set[int] = set()
    bookmark: int = 0
    complete: int | None = None
    for item in stream.items:
        if isinstance(item, Opened):
            complete = item.after if complete is None else min(complete, item.after)
            bookmark = min(bookmark, item.after)
        elif isinstance(item, Snapshot):
            complete = bookmark = item.revision
        elif isinstance(item, Event):
            came.add(item.revision)
            if item.revision <= bookmark:
                wrong.append(f"{stream.name}: revision {item.revision} came after the bookmark at {bookmark}")
        elif isinstance(item, Bookmark) and complete is not None:
            wrong += [
                f"{stream.name}: a bookmark at {item.revision} came before revision {revision}"
                for revision in _between(revisions, complete, item.revision)
                if revision not in came
            ]
            bookmark, complete = max(bookmark, item.revision), max(complete, item.revision)
    return wrong


def _between(revisions: list[int], after: int, last: int) -> list[int]:
    return revisions[bisect.bisect_right(revisions, after) : bisect.bisect_right(revisions, last)]


VALIDATORS: Mapping[str, Callable[[Stream, Sequence[Event]], list[str]]] = MappingProxyType(
    {
        "Ordered": ordered,
        "Unique": unique,
        "Reliable": reliable,
        "Atomic": atomic,
        "Resumable": resumable,
        "Bookmarkable": bookmarkable,
    }
)


def validate(streams: Sequence[Stream], truth: Sequence[Event]) -> dict[str, list[str]]:
    """Returns the violations of all streams by the name of the property; a property that holds is left out."""
    found = {
        name: [words for stream in streams for words in validator(stream, truth)]
        for name, validator in VALIDATORS.items()
    }
    return {name: words for name, words in found.items() if words}
