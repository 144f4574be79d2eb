"""Many concurrent clients and watchers of a real daemon that is killed under them, and what they saw."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import grpc

from livetune.v1 import control_pb2, control_pb2_grpc, errors_pb2, types_pb2
from support.daemon import Daemon
from support.operations import Kind, Operation, Outcome, Seen, Value
from support.watch_validators import Event, Stream
from support.watching import CHANNEL, Habits, Watcher, event_of

_UNKNOWN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
_CLIENT_GAVE_UP = "Internal error from Core"
"""What gRPC's own asynchronous client says, as INTERNAL, of a stream whose deadline passed before it began."""

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_DEADLINE_SECONDS = 30.0
VARIABLES = ("a", "b", "c", "d")
"""Variables of every job."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of what. All that is random comes from the seed, except what the machine decides."""

    seed: int
    calls: int = 300
    clients: int = 16
    jobs: int = 2
    restarts: int = 1
    watchers: int = 4
    habits: Habits = field(default_factory=Habits)
    """Every second watcher is never slow."""
    impatient: float = 0.03
    """The share of calls whose deadline is a few milliseconds."""


@dataclass(frozen=True, slots=True)
class Saw:
    """What clients and watchers saw."""

    operations: list[Operation]
    initial: dict[str, Seen]
    streams: list[Stream]
    history: list[types_pb2.Change] | None
    """All changes, as the daemon lists them at the end; None if it could not."""
    wrong: list[str]
    """Answers that are wrong by themselves."""


def new_values(change: types_pb2.Change) -> dict[str, Value]:
    """Returns what a change sets."""
    return {item.variable_id: item.new_value.float_value for item in change.assignments}


def old_values(change: types_pb2.Change) -> dict[str, Value]:
    """Returns what a change says it replaced."""
    return {item.variable_id: item.old_value.float_value for item in change.assignments}


class Load:
    """Clients and watchers, let loose on a daemon.

    Args:
        daemon: The daemon; it runs.
        plan: How much of what.
        jobs: The names of jobs that have declared `VARIABLES`.
    """

    def __init__(self, daemon: Daemon, plan: Plan, jobs: list[str]) -> None:
        self.daemon = daemon
        self.plan = plan
        self.jobs = jobs
        self.random = Random(plan.seed)
        self.left = plan.calls
        self.next_kill = -1
        self.number = 0
        self.operations: list[Operation] = []
        self.wrong: list[str] = []
        self.events: dict[Event, Event] = {}

    async def run(self) -> Saw:
        """Lets them do what the plan says, and returns what they saw."""
        self.up = asyncio.Event()
        self.up.set()
        self.kill = asyncio.Event()
        channels = [grpc.aio.insecure_channel(self.daemon.target, options=CHANNEL) for _ in range(5)]
        self.stubs: list[Any] = [control_pb2_grpc.ControlServiceStub(channel) for channel in channels]
        try:
            for job in self.jobs:
                await self._perform(self._wish(-1, job, Kind.READ))
            initial = {item.job: item.seen for item in self.operations}
            base = max(item.revision for item in self.operations)
            watchers = [self._watcher(number, base) for number in range(self.plan.watchers)]
            for watcher in watchers:
                watcher.start(self.stubs[-1])
            await asyncio.gather(self._restart(), *(self._client(number) for number in range(self.plan.clients)))
            for job in self.jobs:
                await self._perform(self._wish(-1, job, Kind.READ))
            history = await self._history(base)
            truth = [event_of(change) for change in history or ()]
            await asyncio.gather(*(watcher.finish(truth) for watcher in watchers))
        finally:
            for channel in channels:
                await channel.close()
        return Saw(self.operations, initial, [watcher.stream for watcher in watchers], history, self.wrong)

    def _watcher(self, number: int, base: int) -> Watcher:
        job = ["", *self.jobs][number % (len(self.jobs) + 1)]
        random = Random(f"{self.plan.seed}/watcher/{number}")
        habits = self.plan.habits if number % 2 else replace(self.plan.habits, slow=0.0)
        return Watcher(f"watcher {number}", job, base, self.up, random, habits, self.events)

    async def _restart(self) -> None:
        # By number of calls, so that every part of a history is hit, however fast the machine is.
        for left in sorted((self.random.randrange(self.plan.calls) for _ in range(self.plan.restarts)), reverse=True):
            self.next_kill = left
            self.kill.clear()
            if self.left > left:
                await self.kill.wait()
            self.up.clear()
            self.daemon.kill()
            await asyncio.to_thread(self.daemon.start)
            self.up.set()

    async def _client(self, number: int) -> None:
        random = Random(f"{self.plan.seed}/client/{number}")
        shown: Operation | None = None
        while True:
            await self.up.wait()
            if self.left == 0:
                break
            self.left -= 1
            if self.left <= self.next_kill:
                self.kill.set()
            wish = self._change(random, number, shown)
            impatient = random.random() < self.plan.impatient
            done = await self._perform(wish, random.uniform(0, 0.01) if impatient else _DEADLINE_SECONDS)
            shown = done if done is not None and done.seen else None

    def _change(self, random: Random, client: int, shown: Operation | None) -> Operation:
        """What comes next: after a read often something that rests on it, so that conditions hold now and then."""
        kind = random.random()
        wish = self._wish(client, random.choice(self.jobs), Kind.SET)
        names = random.sample(VARIABLES, random.choice((1, 1, 2, 3)))
        # Values that are set once only tell most.
        wish = replace(wish, values=dict.fromkeys(names, float(self.number)))
        if shown is None:
            return wish if kind > 0.4 else self._wish(client, wish.job, Kind.READ)
        wish = replace(wish, job=shown.job)
        newest = max(revision for _, revision in shown.seen.values())
        if kind < 0.2:
            return replace(wish, kind=Kind.UNDO, undoes=newest, values={})
        if kind < 0.35:
            return replace(wish, guards=dict.fromkeys(names, random.choice((newest, shown.revision))))
        if kind < 0.5:
            return replace(wish, guards={name: shown.seen[name][1] for name in names})
        if kind < 0.7:
            return replace(wish, if_job_revision=random.choice((newest, shown.revision)))
        return wish

    def _wish(self, client: int, job: str, kind: Kind) -> Operation:
        self.number += 1
        return Operation(client, kind, job, 0.0, tag=f"operation {self.number}")

    async def _perform(self, wish: Operation, deadline: float = _DEADLINE_SECONDS) -> Operation | None:
        stub = self.stubs[wish.client % (len(self.stubs) - 1)]
        wish = replace(wish, call=time.monotonic())
        try:
            answer = await _call(stub, wish, deadline)
        except grpc.RpcError as error:
            done = self._failed(wish, error.code(), error.details() or "", hangs=deadline == _DEADLINE_SECONDS)
        else:
            if isinstance(answer, control_pb2.StreamedAnswer) and answer.HasField("error"):
                done = self._failed(wish, _CODES[answer.error.code], answer.error.message)
            else:
                done = self._answered(wish, answer)
        if done is not None:
            self.operations.append(done)
        return done

    def _answered(self, wish: Operation, answer: Any) -> Operation | None:
        end = time.monotonic()
        if wish.kind is Kind.READ:
            seen = {item.spec.variable_id: (item.desired.float_value, item.revision) for item in answer.job.variables}
            return replace(wish, end=end, outcome=Outcome.DONE, seen=seen, revision=answer.revision)
        new, old = new_values(answer.change), old_values(answer.change)
        done = replace(wish, end=end, outcome=Outcome.DONE, revision=answer.change.revision, old=old)
        if wish.kind is Kind.UNDO:
            return replace(done, values=new)
        if wish.values != new or f"jobs/{wish.job}" != answer.change.job:
            self.wrong.append(f"answered with another change: {done}; {answer.change}")
        return done

    def _failed(self, wish: Operation, code: grpc.StatusCode, details: str, *, hangs: bool = False) -> Operation | None:
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return None  # nothing happened
        if hangs and code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self.wrong.append(f"no answer within {_DEADLINE_SECONDS} s: {wish}")
            self.left = 0  # a daemon that hangs is not asked two thousand times
        refused = code is grpc.StatusCode.ABORTED or (code is grpc.StatusCode.NOT_FOUND and wish.kind is Kind.UNDO)
        if not refused and code not in _UNKNOWN and details != _CLIENT_GAVE_UP:
            self.wrong.append(f"{code.name}: {details}: {wish}")
        if wish.kind is Kind.READ:
            return None  # it told nothing
        return replace(wish, end=time.monotonic(), outcome=Outcome.REFUSED) if refused else wish

    async def _history(self, base: int) -> list[types_pb2.Change] | None:
        changes: list[types_pb2.Change] = []
        for job in self.jobs:
            before = 0
            while True:
                request = control_pb2.ListChangesRequest(
                    job=f"jobs/{job}", page_size=1_000, before_revision=before, after_revision=base
                )
                try:
                    page = await self.stubs[0].ListChanges(request, timeout=_DEADLINE_SECONDS, wait_for_ready=True)
                except grpc.RpcError as error:
                    self.wrong.append(f"the history can't be read: {error.code().name}: {error.details()}")
                    return None
                changes += [change for change in page.changes if change.revision > base]
                before = page.previous_before_revision
                if before <= base:
                    break
        return sorted(changes, key=lambda change: change.revision)


async def _call(stub: Any, wish: Operation, deadline: float) -> Any:
    options = {"timeout": deadline, "wait_for_ready": True}
    resource = f"jobs/{wish.job}"
    if wish.kind is Kind.READ:
        return await stub.GetJob(control_pb2.GetJobRequest(name=resource), **options)
    if wish.kind is Kind.UNDO:
        undo = control_pb2.UndoChangeRequest(job=resource, revision=wish.undoes, reason=wish.tag)
        change = control_pb2.StreamedChange(tag=1, undo=undo)
    else:
        change = control_pb2.StreamedChange(tag=1, set=_set_request(wish, resource))
    if wish.client % 4 == 3:  # some make their changes over a stream
        return await _streamed(stub, change, options)
    return await (
        stub.UndoChange(undo, **options) if wish.kind is Kind.UNDO else stub.SetVariables(change.set, **options)
    )


async def _streamed(stub: Any, change: control_pb2.StreamedChange, options: dict[str, Any]) -> Any:
    call = stub.StreamChanges(iter([control_pb2.StreamChangesRequest(changes=[change])]), **options)
    try:
        response = await call.read()
    except asyncio.CancelledError:
        if not call.done():
            raise  # it is not the call that was cancelled
        response = grpc.aio.EOF
    if response is not grpc.aio.EOF:
        return response.answers[0]
    code = await call.code()
    status = errors_pb2.ErrorStatus(code=code.value[0], message="the stream ended without an answer")
    return control_pb2.StreamedAnswer(error=status)


def _set_request(wish: Operation, resource: str) -> control_pb2.SetVariablesRequest:
    request = control_pb2.SetVariablesRequest(job=resource, reason=wish.tag, if_job_revision=wish.if_job_revision)
    for name, value in wish.values.items():
        request.updates.add(variable_id=name).value.float_value = float(value)
    if len(set(wish.guards.values())) == 1:
        request.if_revision = next(iter(wish.guards.values()))
    else:
        for update in request.updates:
            if update.variable_id in wish.guards:
                update.if_revision = wish.guards[update.variable_id]
    return request
