"""A store and its clients in simulated time, right or with one planted bug: what the checkers are tested with."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random

from support.operations import Kind, Operation, Outcome, Seen, Value
from support.watch_validators import Bookmark, Broken, Event, Item, Opened, Stream

STORE_BUGS = (
    "lost_update",
    "stale_read",
    "acknowledged_then_lost",
    "duplicate_revision",
    "ignored_guard",
    "half_applied",
    "reordered_revisions",
    "applied_twice",
)
WATCH_BUGS = (
    "resumed_off_by_one",
    "dropped_event",
    "repeated_event",
    "early_bookmark",
    "split_transaction",
    "wrong_order",
)


@dataclass(frozen=True, slots=True)
class _Cell:
    value: Value
    revision: int
    previous: Value | None = None
    together: tuple[str, ...] = ()


@dataclass(slots=True)
class Run:
    """What a simulation leaves behind."""

    operations: list[Operation]
    initial: dict[str, Seen]
    truth: list[Event]


class SimulatedStore:
    """The registers of some jobs under one count of revisions.

    Args:
        random: Decides when a planted bug strikes.
        jobs: Their variables' names, by job.
        bug: One of `STORE_BUGS`, or ``""``.
    """

    def __init__(self, random: Random, jobs: Mapping[str, tuple[str, ...]], bug: str = "") -> None:
        self._random = random
        self._bug = bug
        self._head = 0
        self._jobs: dict[str, dict[str, _Cell]] = {}
        for job, names in jobs.items():
            self._head += 1
            self._jobs[job] = {name: _Cell(0, self._head) for name in names}
        self._before: list[dict[str, dict[str, _Cell]]] = []
        self.truth: list[Event] = []

    def _strikes(self, bug: str, probability: float) -> bool:
        return self._bug == bug and self._random.random() < probability

    def draw(self) -> int:
        """Gives a revision away before its change happens: only a broken store does that."""
        self._head += 1
        return self._head

    def seen(self, job: str) -> Seen:
        """Shows a job."""
        return {name: (cell.value, cell.revision) for name, cell in self._jobs[job].items()}

    def perform(self, wish: Operation, drawn: int = 0) -> Operation:
        """Does what a client wishes and returns it with the answer, the time of which is left to the caller."""
        if wish.kind is Kind.READ:
            jobs, head = self._jobs, self._head
            if self._before and self._strikes("stale_read", 0.1):
                jobs = self._before[-1]
                head = max(cell.revision for cells in jobs.values() for cell in cells.values())
            seen = {name: (cell.value, cell.revision) for name, cell in jobs[wish.job].items()}
            return replace(wish, outcome=Outcome.DONE, seen=seen, revision=head)
        values = self._granted(wish)
        if values is None:
            return replace(wish, outcome=Outcome.REFUSED)
        self._before = [*self._before[-2:], {job: dict(cells) for job, cells in self._jobs.items()}]
        if not drawn:
            self._head += not self._strikes("duplicate_revision", 0.05)
        revision = drawn or self._head
        cells = self._jobs[wish.job]
        old = {name: cells[name].value for name in values}
        written = dict(values)
        if self._strikes("lost_update", 0.05):
            written.clear()
        if len(values) > 1 and self._strikes("half_applied", 0.3):
            del written[next(iter(values))]
        for name, value in written.items():
            cells[name] = _Cell(value, revision, cells[name].value, tuple(values))
        self.truth.append(Event(revision, wish.job, tuple(f"{name}={value}" for name, value in values.items())))
        return replace(wish, outcome=Outcome.DONE, values=values, old=old, revision=revision)

    def _granted(self, wish: Operation) -> Mapping[str, Value] | None:
        cells = self._jobs[wish.job]
        if wish.kind is Kind.UNDO:
            together = next((cell.together for cell in cells.values() if cell.revision == wish.undoes), ())
            if not together or any(cells[name].revision != wish.undoes for name in together):
                return None
            previous = {name: cells[name].previous for name in together}
            return {name: value for name, value in previous.items() if value is not None}
        newest = max(cell.revision for cell in cells.values())
        holds = all(cells[name].revision <= guard for name, guard in wish.guards.items())
        holds = holds and (wish.if_job_revision is None or newest <= wish.if_job_revision)
        return wish.values if holds or self._bug == "ignored_guard" else None

    def crash(self) -> None:
        """Loses nothing, unless it is broken."""
        if self._bug == "acknowledged_then_lost" and self._before:
            for _ in range(self._random.randint(1, len(self._before))):
                self._jobs = self._before.pop()
                lost = self.truth.pop()
            self._head = lost.revision - 1


@dataclass(slots=True)
class _Client:
    number: int
    shown: dict[str, Seen] = field(default_factory=dict)
    mine: list[tuple[str, int]] = field(default_factory=list)
    calls: int = 0
    waits: bool = False
    wish: Operation | None = None
    """What it waits for."""
    undone: bool = False
    """Whether the store has still to do it."""


class _Simulation:
    """Clients that call and wait, with answers late or missing."""

    def __init__(
        self,
        random: Random,
        clients: int,
        calls: int,
        jobs: Mapping[str, tuple[str, ...]],
        bug: str,
        silent: float,
        values: int,
        kills: int,
    ) -> None:
        self.random = random
        self.silent = silent
        self.values = values
        self.bug = bug
        self.jobs = jobs
        self.store = SimulatedStore(random, jobs, bug)
        self.calls = calls
        self.now = 0.0
        self.number = 0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.operations: list[Operation] = []
        self.initial = {job: self.store.seen(job) for job in jobs}
        self.clients = [_Client(number) for number in range(clients)]
        for client in self.clients:
            self.later(random.random(), partial(self.call, client))
        for _ in range(kills):
            self.later(random.uniform(0, 2.5 * calls / clients), self.kill)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        self.number += 1
        heapq.heappush(self.events, (self.now + seconds, self.number, action))

    def run(self) -> Run:
        while self.events:
            self.now, _, action = heapq.heappop(self.events)
            action()
        for job in self.jobs:
            last = self.store.perform(Operation(99, Kind.READ, job, self.now + 1))
            self.operations.append(replace(last, end=self.now + 2))
        return Run(self.operations, self.initial, self.store.truth)

    def kill(self) -> None:
        """All who wait get no answer; of what they wait for some was done, and some never will be."""
        self.store.crash()
        for client in self.clients:
            if client.waits:
                assert client.wish is not None
                if client.undone and self.random.random() < 0.7:
                    self.store.perform(client.wish)
                client.calls += 1
                client.waits = False
                self.operations.append(client.wish)
                self.later(1, partial(self.call, client))

    def call(self, client: _Client) -> None:
        if self.calls <= 0:
            return
        self.calls -= 1
        wish = self.wish(client)
        drawn = self.store.draw() if self.bug == "reordered_revisions" and self.random.random() < 0.05 else 0
        if self.random.random() < self.silent:
            self.operations.append(wish)
            if self.random.random() < 0.7:
                self.later(self.random.expovariate(0.2), lambda: self.unheard(wish))
            self.later(5, lambda: self.call(client))
        else:
            client.wish, client.waits, client.undone = wish, True, True
            client.calls += 1
            self.later(self.random.expovariate(1), partial(self.effect, client, client.calls, drawn))

    def unheard(self, wish: Operation, *, again: bool = True) -> None:
        self.store.perform(wish)
        if self.bug == "applied_twice" and again:
            self.later(self.random.expovariate(0.5), lambda: self.unheard(wish, again=False))

    def effect(self, client: _Client, call: int, drawn: int) -> None:
        if client.calls == call and client.wish is not None:
            done = self.store.perform(client.wish, drawn if client.wish.kind is Kind.SET else 0)
            client.undone = False
            self.later(self.random.expovariate(1), partial(self.answer, client, call, done))

    def answer(self, client: _Client, call: int, done: Operation) -> None:
        if client.calls != call:
            return
        client.waits = False
        self.operations.append(replace(done, end=self.now))
        if done.kind is Kind.READ:
            client.shown[done.job] = done.seen
        elif done.outcome is Outcome.DONE:
            client.mine.append((done.job, done.revision))
        self.later(self.random.expovariate(2), lambda: self.call(client))

    def value(self) -> Value:
        return self.random.randint(0, self.values) if self.values else self.number

    def wish(self, client: _Client) -> Operation:
        random, job = self.random, self.random.choice(list(self.jobs))
        wish = Operation(client.number, Kind.SET, job, self.now)
        shown, kind = client.shown.get(job), random.random()
        if kind < 0.25 or shown is None:
            return replace(wish, kind=Kind.READ)
        if kind < 0.32:
            told = [(job, revision) for _, revision in shown.values()] + client.mine[-2:]
            undone_job, revision = random.choice(told)
            return replace(wish, kind=Kind.UNDO, job=undone_job, undoes=revision)
        names = random.sample(self.jobs[job], min(len(self.jobs[job]), random.choice((1, 1, 2, 3))))
        self.number += 1
        wish = replace(wish, values={name: self.value() for name in names})
        if kind < 0.5:
            return replace(wish, guards={name: shown[name][1] for name in names})
        if kind < 0.6:
            return replace(wish, if_job_revision=max(revision for _, revision in shown.values()))
        return wish


def simulate(
    random: Random,
    *,
    clients: int = 5,
    calls: int = 200,
    variables: int = 3,
    bug: str = "",
    silent: float = 0.04,
    values: int = 0,
    kills: int = 3,
) -> Run:
    """Lets clients loose on a store and returns what they saw.

    Args:
        random: All that happens comes from it.
        clients: How many there are.
        calls: How many calls they make together.
        variables: How many variables each of the two jobs has.
        bug: One of `STORE_BUGS`, or ``""``.
        silent: The share of calls that get no answer.
        values: The highest value that is set; 0 gives every change a value of its own.
        kills: How often all who wait get no answer.
    """
    names = tuple("abcdefgh"[:variables])
    return _Simulation(random, clients, calls, {"one": names, "two": names}, bug, silent, values, kills).run()


def follow(random: Random, truth: list[Event], job: str = "", *, bug: str = "") -> Stream:
    """Returns what a watcher receives of a history, over some breaks.

    Args:
        random: When breaks, bookmarks and the bug come.
        truth: The history.
        job: The watcher's scope.
        bug: One of `WATCH_BUGS`, or ``""``.
    """
    scope = [event for event in truth if job in ("", event.job)]
    items: list[Item] = []
    place = 0
    after = 0
    while place < len(scope):
        items += [Opened(after), Bookmark(after)]
        if after and bug == "resumed_off_by_one":
            place += 1
        for event in scope[place : place + random.randint(0, 12)]:
            items.append(event)
            place, after = place + 1, event.revision
            if random.random() < 0.1:
                after = max(after, truth[-1].revision if place == len(scope) else scope[place].revision - 1)
                items.append(Bookmark(after))
        items.append(Broken("cut"))
    return Stream("watcher", job, _spoiled(random, items, bug))


def _spoiled(random: Random, items: list[Item], bug: str) -> list[Item]:
    events = [number for number, item in enumerate(items) if isinstance(item, Event)]
    if bug in ("", "resumed_off_by_one") or len(events) < 5:
        return items
    number = random.choice(events[1:-2])
    event = items[number]
    assert isinstance(event, Event)
    if bug == "dropped_event":
        del items[number]
    elif bug == "repeated_event":
        items.insert(number, event)
    elif bug == "early_bookmark":
        items.insert(number, Bookmark(event.revision))
    elif bug == "split_transaction":
        number = next(place for place in events if len(_parts(items[place])) > 1)
        whole = items[number]
        assert isinstance(whole, Event)
        half = replace(whole, parts=whole.parts[:1])
        items[number : number + 1] = [half, Broken("cut"), Opened(whole.revision)]
    elif bug == "wrong_order":
        following = events[events.index(number) + 1]
        items[number], items[following] = items[following], event
    return items


def _parts(item: Item) -> tuple[str, ...]:
    return item.parts if isinstance(item, Event) else ()
