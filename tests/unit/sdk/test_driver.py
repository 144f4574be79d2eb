"""The driver against a small JobService of the test's own: what it says, and what it makes of odd daemons."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator

import grpc
import pytest

import livetune
from livetune.v1 import job_pb2
from support.daemon import eventually
from support.peer import Peer, peering


@pytest.fixture
def peer() -> Iterator[Peer]:
    with peering() as peer:
        yield peer


@pytest.fixture
def start(peer: Peer) -> Iterator[Callable[[str], livetune.Job]]:
    made: list[livetune.Job] = []

    def begin(name: str) -> livetune.Job:
        made.append(livetune.init(name, endpoint=peer.target))
        return made[-1]

    yield begin
    for job in made:
        job.finish()


def test_it_says_who_it_is_and_then_what_it_has(peer: Peer, start: Callable[[str], livetune.Job]) -> None:
    job = start("who")
    job.variable("lr", 0.1)
    assert job.wait_connected(10)
    eventually(lambda: "declare" in peer.kinds())
    assert ["open", "declare"] == peer.kinds()
    registration = peer.registrations[0]
    assert ("jobs/who", 0, 1, livetune.__version__) == (
        registration.job, registration.rank, registration.world_size, registration.process.sdk_version
    )  # fmt: skip
    assert (21_000, registration.instance_id) == (job.port, peer.heard[0].open.instance_id)


def test_connected_means_that_the_daemon_knows_what_was_declared(
    peer: Peer, start: Callable[[str], livetune.Job]
) -> None:
    peer.answers = False
    job = start("known")
    job.variable("lr", 0.1)
    eventually(lambda: "declare" in peer.kinds())
    assert not job.connected
    peer.say.put(job_pb2.SessionResponse(declared=job_pb2.DeclareResult()))
    assert job.wait_connected(10)


def test_a_program_before_its_first_safe_point_does_not_tell_a_step(
    peer: Peer, start: Callable[[str], livetune.Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("livetune.driver.TICK_SECONDS", 0.01)
    ticks: list[int] = []
    job = start("early")
    assert job._driver is not None
    reached = job._reached
    monkeypatch.setattr(job._driver, "_step", lambda: (ticks.append(1), reached())[1])
    eventually(lambda: len(ticks) > 3)
    assert "progress" not in peer.kinds()
    job.step(0)
    eventually(lambda: "progress" in peer.kinds())
    assert [0] == [request.progress.step for request in peer.heard if request.HasField("progress")]


def test_a_web_proxy_of_the_environment_is_not_used(
    peer: Peer, start: Callable[[str], livetune.Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert start("proxy").wait_connected(10)


def test_an_end_before_the_connection_stands_is_recorded_all_the_same(peer: Peer) -> None:
    with livetune.init("short", endpoint=peer.target) as job:
        job.variable("lr", 0.1)
    assert "end" == peer.kinds()[-1]


def test_the_end_message_is_text_that_the_wire_can_carry(peer: Peer, start: Callable[[str], livetune.Job]) -> None:
    job = start("odd")
    assert job.wait_connected(10)
    job.finish(failed=True, message="no such file: \udcff" + "x" * 2_000)
    assert ("no such file: ?" + "x" * 985) == peer.heard[-1].end.message


def test_finishing_without_a_daemon_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    job = livetune.init("alone", endpoint="unix:/nowhere/d.sock")
    assert job._driver is not None
    eventually(lambda: job._driver is not None and not job._driver.trying)
    monkeypatch.setattr(job._recorded, "wait", lambda _: pytest.fail("waited"))
    job.finish()


def test_a_stream_that_breaks_is_taken_up_where_it_was(peer: Peer, start: Callable[[str], livetune.Job]) -> None:
    job = start("breaks")
    lr = job.variable("lr", 0.1)
    assert job.wait_connected(10)
    peer.change(5, lr=0.5)
    eventually(lambda: (job.step(), lr.value == 0.5)[1])
    eventually(lambda: "apply" in peer.kinds())
    peer.say.put(None)
    eventually(lambda: peer.kinds().count("apply") == 2)
    openings = [request.open.after_revision for request in peer.heard if request.HasField("open")]
    assert [1, 5] == openings
    assert 1 == len({request.instance_id for request in peer.registrations})


@pytest.mark.parametrize("code", [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL, grpc.StatusCode.NOT_FOUND])
def test_a_daemon_that_refuses_is_told_of_once(
    peer: Peer, start: Callable[[str], livetune.Job], caplog: pytest.LogCaptureFixture, code: grpc.StatusCode
) -> None:
    caplog.set_level(logging.INFO, "livetune")
    peer.refuse = code
    job = start("refused")
    eventually(lambda: len(peer.registrations) >= 3)
    job.step()
    assert 1 == len(caplog.records)
    peer.refuse = None
    assert job.wait_connected(20)
    assert ["WARNING", "INFO"] == [record.levelname for record in caplog.records]


def test_what_nobody_understands_does_not_end_the_stream(peer: Peer, start: Callable[[str], livetune.Job]) -> None:
    job = start("noise")
    lr = job.variable("lr", 0.1, max=1.0)
    assert job.wait_connected(10)
    peer.say.put(job_pb2.SessionResponse())
    peer.change(5, nobody=1.0, lr=7.0)
    peer.change(6, lr=0.5)
    eventually(lambda: (job.step(), lr.value == 0.5)[1])
    assert 1 == len(peer.registrations)


def test_an_uncaught_exception_of_an_interactive_session_is_not_the_end_of_the_job(
    peer: Peer, start: Callable[[str], livetune.Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    from livetune import job as module

    assert start("typed").wait_connected(10)
    monkeypatch.setattr(sys, "last_value", ValueError("a typing error"), raising=False)
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    module._finish_all()
    assert (False, "") == (peer.heard[-1].end.failed, peer.heard[-1].end.message)
