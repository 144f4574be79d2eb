"""The conversation with the daemon, without any I/O: who registers how, what is told, how long the pauses are."""

from __future__ import annotations

import logging
import os
from typing import Any

import grpc
import pytest

import livetune
from livetune import messages as m
from livetune.conversation import Conversation, Identity
from livetune.errors import EndpointError
from livetune.v1 import errors_pb2, job_pb2

IDENTITY = Identity("vgg", "me", 0, 1)
TARGET = "unix:/somewhere/d.sock"
ANSWER = job_pb2.RegisterResponse(store_id="store", run=1, port=21_000, revision=7, job_token="secret")


class Refused(grpc.RpcError):
    """A call that the daemon refused for a reason."""

    __module__ = "grpc.of_this_test"

    def __init__(self, reason: str) -> None:
        info = errors_pb2.ErrorInfo(reason=reason, domain="livetune")
        status = errors_pb2.ErrorStatus(code=9, message="no")
        status.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=info.SerializeToString())
        self._details = status.SerializeToString()

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.FAILED_PRECONDITION

    def details(self) -> str:
        return "not today"

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return (("grpc-status-details-bin", self._details),)


@pytest.fixture
def conversation() -> Conversation:
    return Conversation(IDENTITY, TARGET)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Any:
    """What the user was told, since the last time of asking."""
    caplog.set_level(logging.INFO, "livetune")

    def take() -> list[str]:
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return lines

    return take


def opened() -> job_pb2.SessionResponse:
    return job_pb2.SessionResponse(opened=job_pb2.SessionOpened(store_id="store", revision=7))


def test_a_registration_says_who_this_process_is_and_shows_the_token_of_the_last_one(
    conversation: Conversation,
) -> None:
    first = conversation.registration()
    assert ("jobs/vgg", "me", 0, 1, False, "") == (
        first.job, first.instance_id, first.rank, first.world_size, first.leads, first.job_token
    )  # fmt: skip
    assert (os.getpid(), livetune.__version__) == (first.process.pid, first.process.sdk_version)
    assert m.Registered("store", 1, 21_000, 7) == conversation.registered(ANSWER, TARGET)
    assert "secret" == conversation.registration().job_token
    assert "secret" == conversation.request(m.Open(7)).open.job_token


def test_an_endpoint_is_the_only_place_to_look_at_and_else_they_are_looked_up_at_every_attempt(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIVETUNE_ENDPOINT", "unix:/other/d.sock")
    anywhere = Conversation(IDENTITY, None)
    assert ([TARGET], ["unix:/other/d.sock"]) == (conversation.targets(), anywhere.targets())
    monkeypatch.setenv("LIVETUNE_ENDPOINT", "127.0.0.1:7")
    assert ["127.0.0.1:7"] == anywhere.targets()
    with pytest.raises(EndpointError):
        Conversation(IDENTITY, "nonsense")


def test_the_end_that_is_recorded_is_the_end_of_the_conversation(conversation: Conversation) -> None:
    conversation.registered(ANSWER, TARGET)
    assert m.Opened("store", 7) == conversation.heard(opened())
    assert not conversation.over
    assert m.EndRecorded() == conversation.heard(job_pb2.SessionResponse(end_recorded=job_pb2.EndRecorded()))
    assert conversation.over


def test_what_this_sdk_does_not_know_is_passed_over(conversation: Conversation) -> None:
    assert conversation.heard(job_pb2.SessionResponse()) is None


def test_each_change_of_state_is_told_once_however_many_attempts_it_takes(
    conversation: Conversation, told: Any
) -> None:
    for number in range(3):
        assert m.Disconnected() == conversation.ended(ConnectionRefusedError(f"try {number}"))
    assert ["job vgg: no daemon, training on with the last values until there is one (try 0)"] == told()
    for _ in range(2):
        conversation.registered(ANSWER, TARGET)
        conversation.heard(opened())
    assert [f"job vgg: connected to {TARGET}, port 21000"] == told()
    conversation.ended(ConnectionError("the daemon closed the stream"))
    assert 1 == len(told())


def test_a_refusal_is_told_and_makes_the_pauses_long_until_a_registration_succeeds(
    conversation: Conversation, told: Any
) -> None:
    assert m.Disconnected() == conversation.ended(Refused("JOB_EXISTS"))
    assert ["job vgg: the daemon refuses this process, it trains on untuned: not today"] == told()
    assert [5.0, 5.0] == [conversation.pause(0.0), conversation.pause(0.0)]
    conversation.registered(ANSWER, TARGET)
    conversation.ended(ConnectionError())
    assert conversation.pause(0.0) <= 2.0


def test_a_position_that_the_store_does_not_have_is_no_news_for_the_user(conversation: Conversation, told: Any) -> None:
    assert m.Disconnected(position_refused=True) == conversation.ended(Refused("STORE_REPLACED"))
    assert m.Disconnected() == conversation.ended(None)
    assert [] == told()


def test_when_it_is_over_nothing_is_wrong(conversation: Conversation, told: Any) -> None:
    conversation.over = True
    assert m.Disconnected() == conversation.ended(ConnectionError("cancelled"))
    assert [] == told()


def test_pauses_double_up_to_two_seconds_and_begin_anew_after_an_attempt_that_held(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda _low, high: high)
    assert [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0] == pytest.approx([conversation.pause(0.0) for _ in range(7)])
    assert [0.1, 0.2] == pytest.approx([conversation.pause(60.0), conversation.pause(0.0)])


def test_pauses_are_spread_so_that_jobs_do_not_come_back_all_at_once() -> None:
    first = [Conversation(IDENTITY, TARGET).pause(0.0) for _ in range(50)]
    assert 0.05 <= min(first) < max(first) <= 0.1
