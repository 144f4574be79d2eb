"""The ranks of a job as threads around one table: messages between them without torch."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

PATIENCE_SECONDS = 60.0


class Table:
    """What the seats share.

    Args:
        size: Number of ranks.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.seats = [Seat(self, rank) for rank in range(size)]
        self.hand_raised = False
        self._said: defaultdict[tuple[str, int], dict[int, Any]] = defaultdict(dict)
        """By kind of message and its number, what each rank said."""
        self._news = threading.Condition()

    def say(self, kind: str, number: int, rank: int, what: object) -> None:
        with self._news:
            self._said[kind, number][rank] = what
            self._news.notify_all()

    def heard(self, kind: str, number: int, voices: int) -> dict[int, Any]:
        """Returns what was said, once so many have said it, rank 0 among them.

        Raises:
            AssertionError: They don't: the ranks are not where the others are.
        """
        said = self._said[kind, number]
        with self._news:
            met = self._news.wait_for(lambda: len(said) >= voices and 0 in said, PATIENCE_SECONDS)
        assert met, f"{kind} {number}: only {sorted(said)} of {self.size} ranks came"
        return said


class Seat:
    """One rank: an `Agreement`, which counts what it is used for."""

    def __init__(self, table: Table, rank: int) -> None:
        self._table = table
        self.rank = rank
        self.size = table.size
        self.counts: defaultdict[str, int] = defaultdict(int)
        self.order: list[str] = []

    def attach(self, step: Callable[[], None]) -> None:
        raise NotImplementedError("a seat has no job")

    def passed(self) -> None:
        self.counts["passed"] += 1

    def _begin(self, kind: str, what: object) -> None:
        self.counts[kind] += 1
        self.order.append(kind)
        self._table.say(kind, self.counts[kind], self.rank, what)

    def send(self, message: object) -> None:
        self._begin("message", message)

    def receive(self) -> Any:
        return self._table.heard("message", self.counts["message"], 1)[0]

    def poll(self, yes: bool) -> None:
        self._begin("poll", yes)

    def polled(self) -> bool:
        return any(self._table.heard("poll", self.counts["poll"], self.size).values())

    def gather(self, answer: object) -> list[Any]:
        self._begin("answer", answer)
        if self.rank:
            return []
        answers = self._table.heard("answer", self.counts["answer"], self.size)
        return [answers[rank] for rank in range(self.size)]

    def share(self, message: object) -> Any:
        self._begin("share", message)
        return self._table.heard("share", self.counts["share"], 1)[0]

    def raise_hand(self) -> None:
        self._table.hand_raised = True

    @property
    def hand_raised(self) -> bool:
        return self._table.hand_raised
