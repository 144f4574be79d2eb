"""The driver on an event loop against a small JobService of the test's own: order, faults, cancellation at any moment."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest

from livetune import messages as m
from livetune.aio.driver import TaskDriver
from livetune.conversation import Identity
from livetune.v1 import job_pb2
from support.peer import Peer, peering


@pytest.fixture
def peer() -> Iterator[Peer]:
    with peering() as peer:
        yield peer


class Talk:
    """A driver, and a session of the plainest kind: it opens a stream when it is registered, and keeps what it is told."""

    def __init__(self, endpoint: str) -> None:
        self.heard: list[m.Event] = []
        self.driver = TaskDriver(Identity("rl", "me", 0, 1), endpoint, self._take, lambda: 3)

    def _take(self, event: m.Event) -> None:
        self.heard.append(event)
        if isinstance(event, m.Registered):
            self.driver.send(m.Open(event.revision))

    def has(self, kind: type[m.Event]) -> bool:
        return any(isinstance(event, kind) for event in self.heard)


def play(program: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a test's program; nothing may go on running after it, and nothing go wrong behind its back."""
    faults: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        await asyncio.wait_for(program(), 30)
        # gRPC has a task of its own for each call, which ends when its core has heard of the cancellation.
        await until(lambda: {asyncio.current_task()} == asyncio.all_tasks())

    asyncio.run(main())
    assert [] == faults


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for happens on threads of gRPC's
        await asyncio.sleep(0.001)


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def test_a_stream_begins_with_its_opening_whatever_was_left_of_the_one_before(peer: Peer) -> None:
    async def program() -> None:
        talk = Talk(peer.target)
        talk.driver.send(m.Progress(1))
        running = asyncio.create_task(talk.driver.run())
        await until(lambda: talk.has(m.Opened))
        talk.driver.send(m.Progress(2))
        await until(lambda: len(peer.heard) == 2)
        peer.say.put(None)
        await until(lambda: len(peer.heard) >= 3)
        await cancelled(running)
        assert ["open", "progress", "open"] == peer.kinds()[:3]

    play(program)


def test_messages_of_several_threads_arrive_each_in_its_order(peer: Peer) -> None:
    async def program() -> None:
        talk = Talk(peer.target)
        running = asyncio.create_task(talk.driver.run())
        await until(lambda: talk.has(m.Opened))

        def send(first: int) -> None:
            for step in range(first, first + 100):
                talk.driver.send(m.Progress(step))

        threads = [threading.Thread(target=send, args=(1_000 * number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        await until(lambda: len(peer.heard) >= 401)
        await cancelled(running)
        for thread in threads:
            thread.join()
        steps = [request.progress.step for request in peer.heard if request.HasField("progress")]
        for number in range(4):
            assert list(range(1_000 * number, 1_000 * number + 100)) == [
                step for step in steps if step // 1_000 == number
            ]

    play(program)


def test_about_once_a_second_it_is_asked_where_the_program_is(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livetune.aio.driver.TICK_SECONDS", 0.01)

    async def program() -> None:
        talk = Talk(peer.target)
        running = asyncio.create_task(talk.driver.run())
        await until(lambda: talk.heard.count(m.Tick(3)) >= 3)
        await cancelled(running)
        assert "progress" not in peer.kinds()  # that is the session's to say

    play(program)


def test_a_message_that_can_not_be_sent_ends_the_stream_and_is_told(
    peer: Peer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def program() -> None:
        talk = Talk(peer.target)
        running = asyncio.create_task(talk.driver.run())
        await until(lambda: talk.has(m.Opened))
        with monkeypatch.context() as patched:
            patched.setattr(talk.driver._conversation, "request", lambda _message: 1 / 0)
            talk.driver.send(m.Progress(1))
            await until(lambda: talk.has(m.Disconnected))
        await until(lambda: talk.heard.count(m.Opened("store", 1)) == 2)
        await cancelled(running)

    play(program)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("code", [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL, grpc.StatusCode.NOT_FOUND])
def test_a_daemon_that_refuses_is_told_of_once(
    peer: Peer, caplog: pytest.LogCaptureFixture, code: grpc.StatusCode
) -> None:
    caplog.set_level(logging.INFO, "livetune")
    peer.refuse = code

    async def program() -> None:
        talk = Talk(peer.target)
        running = asyncio.create_task(talk.driver.run())
        await until(lambda: len(peer.registrations) >= 3)
        peer.refuse = None
        await until(lambda: talk.has(m.Opened))
        await cancelled(running)

    play(program)
    assert ["WARNING", "INFO"] == [record.levelname for record in caplog.records]


def test_the_end_that_is_recorded_ends_the_talk(peer: Peer) -> None:
    async def program() -> None:
        talk = Talk(peer.target)
        running = asyncio.create_task(talk.driver.run())
        await until(lambda: talk.has(m.Opened))
        talk.driver.send(m.End(failed=False, message="", step=3))
        await running
        assert [m.EndRecorded(), m.Disconnected()] == talk.heard[-2:]
        await talk.driver.attempt()  # and nothing can be said after it
        assert 1 == len(peer.registrations)

    play(program)


@pytest.mark.parametrize("closing", [False, True])
def test_whoever_is_closing_makes_no_further_attempt_and_does_not_complain(
    caplog: pytest.LogCaptureFixture, closing: bool
) -> None:
    async def program() -> None:
        talk = Talk("unix:/nowhere/d.sock")
        talk.driver.closing = closing
        running = asyncio.create_task(talk.driver.run())
        await until(lambda: talk.has(m.Disconnected))
        await until(lambda: running.done() is closing)
        assert not talk.driver.trying or closing
        await cancelled(running)

    play(program)
    assert (0 if closing else 1) == len(caplog.records)


def test_cancelled_at_any_moment_it_leaves_nothing_behind(peer: Peer) -> None:
    async def program() -> None:
        reached: set[str] = set()
        for turns in range(120):
            talk = Talk(peer.target)
            running = asyncio.create_task(talk.driver.run())
            for _ in range(turns):
                await asyncio.sleep(0.0002 if turns % 2 else 0)
            await cancelled(running)
            reached |= {type(event).__name__ for event in talk.heard}
            await asyncio.sleep(0)
        assert {"Registered", "Opened", "Disconnected"} <= reached

    play(program)


def test_a_daemon_that_says_what_nobody_understands_is_listened_to_on(peer: Peer) -> None:
    async def program() -> None:
        talk = Talk(peer.target)
        running = asyncio.create_task(talk.driver.run())
        await until(lambda: talk.has(m.Opened))
        peer.say.put(job_pb2.SessionResponse())
        peer.change(5, lr=0.5)
        await until(lambda: talk.has(m.ChangeReceived))
        await cancelled(running)
        assert 1 == len(peer.registrations)

    play(program)
