"""What ltctl reads and prints, without a daemon: exit codes, arguments, escapes, YAML, tables."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import click
import grpc
import pytest
import yaml
from google.protobuf.timestamp_pb2 import Timestamp

from livetune.status import refusal_of
from livetune.v1 import types_pb2
from livetuned.domain.errors import DomainError, Reason
from livetuned.transport.errors import DETAILS_KEY, details
from ltctl import render
from ltctl.arguments import parse_assignments, seconds, split_job, word
from ltctl.client import metadata
from ltctl.exits import BY_STATUS, Exit
from ltctl.text import safe, table, to_json, to_yaml


def test_every_grpc_status_has_an_exit_code() -> None:
    assert {code.name for code in grpc.StatusCode} == set(BY_STATUS)


def test_help_and_completion_load_no_grpc() -> None:
    code = "import sys; from ltctl.main import cli; cli.main(['--help'], standalone_mode=False); print('grpc' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.endswith("False\n")
    assert "livetuned" not in answer.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["lr=0.01"], {"lr": "0.01"}),
        (["a=-1", "b=", "c=x=y"], {"a": "-1", "b": "", "c": "x=y"}),
    ],
)
def test_assignments(words: list[str], texts: dict[str, str]) -> None:
    assert texts == parse_assignments(words, "example")


@pytest.mark.parametrize("words", [[], ["lr"], ["=1"], ["lr=1", "lr=2"]])
def test_assignments_that_are_none(words: list[str]) -> None:
    with pytest.raises(click.UsageError):
        parse_assignments(words, "ltctl set JOB lr=0.01")


def test_the_job_comes_first_but_on_its_own_port() -> None:
    assert ("vgg", ["lr"]) == split_job(["vgg", "lr"], scoped=False, example="")
    assert ("", ["lr"]) == split_job(["lr"], scoped=True, example="")
    with pytest.raises(click.UsageError, match="which job"):
        split_job([], scoped=False, example="ltctl get JOB")


def test_what_strangers_wrote_does_not_steer_the_terminal() -> None:
    assert r"a\x1b[2Jb\nc\u202ed" == safe("a\x1b[2Jb\nc\u202ed")
    assert ["A      B", r"\x07   c"] == table(["A", "B"], [["\x07", "c"]])


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("pretty", [True, False])
def test_json_is_valid_and_harmless_in_every_terminal(
    monkeypatch: pytest.MonkeyPatch, encoding: str, pretty: bool
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    data = {"é": "😀 →", "steering": "\x1b[31m \x7f \x9b31m \u202e \u2028"}
    text = to_json(data, pretty=pretty)
    assert data == json.loads(text.encode(encoding).decode(encoding))
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "1e300", "soon"])
def test_times_that_no_timer_may_get(text: str) -> None:
    with pytest.raises(click.BadParameter, match=text):
        seconds(text)


def test_words_that_cannot_be_sent() -> None:
    assert "é" == word("é")
    with pytest.raises(click.BadParameter, match=r"'lr=\\xff' is not valid UTF-8"):
        word("lr=\udcff")


def test_the_actor_fits_into_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "zoë\n")
    monkeypatch.setattr("socket.gethostname", lambda: "gpu-7")
    assert (("livetune-actor", "zo??@gpu-7"),) == metadata()


@pytest.mark.parametrize(
    "data",
    [
        {"a": 1, "b": [1.5, -0.25, 1e-06, 1e22, True, None, ""], "c": {"d": "no", "e": [], "f": {}}},
        [{"x": [{"y": 1}, {"z": ["k: v", "- a", "# c", "'", '"', "\n", "null", "1", "1e3", "~", "é\u2028"]}]}],
        {"on": "off", "nested": [[1, 2], [3]]},
        {"emoji": "a😀\\ud83d", "steering": "\x7f\x9b31m\u202e"},
        [],
        {},
        "text",
    ],
)
def test_yaml_is_read_back_by_a_yaml_reader(data: object) -> None:
    assert data == yaml.safe_load(to_yaml(data))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (types_pb2.Value(float_value=0.01), "0.01"),
        (types_pb2.Value(float_value=0.1 + 0.2), "0.30000000000000004"),
        (types_pb2.Value(float_value=1e-6), "1e-06"),
        (types_pb2.Value(int_value=-5), "-5"),
        (types_pb2.Value(bool_value=False), "false"),
        (types_pb2.Value(string_value=""), "''"),
        (types_pb2.Value(string_value="a\x1b"), r"a\x1b"),
        (types_pb2.Value(), "-"),
    ],
)
def test_values_as_people_read_them(value: types_pb2.Value, text: str) -> None:
    assert text == render.shown(value)


def change(**applies: list[tuple[types_pb2.ApplyStatus.ValueType, int, str]]) -> types_pb2.Change:
    message = types_pb2.Change(revision=7, job="jobs/vgg", time=Timestamp(seconds=1), actor="ann", reason="why")
    for name, outcomes in applies.items():
        message.assignments.add(variable_id=name).new_value.float_value = 1.0
        for status, step, reason in outcomes:
            apply = message.applies.add(change_revision=7, step=step)
            apply.outcomes.add(variable_id=name, status=status, reason=reason)
    return message


def test_what_became_of_a_change_in_words() -> None:
    applied, refused, superseded = (
        types_pb2.APPLY_STATUS_APPLIED,
        types_pb2.APPLY_STATUS_REFUSED,
        types_pb2.APPLY_STATUS_SUPERSEDED,
    )
    assert "pending" == render.applied_words(change(lr=[]))
    assert "step 5" == render.applied_words(change(lr=[(applied, 5, "")], wd=[(applied, 5, "")]))
    assert "refused at step 5 (no)" == render.applied_words(change(lr=[(refused, 5, "no")]))
    assert "superseded at step 5, step 9" == render.applied_words(
        change(lr=[(superseded, 5, "")], wd=[(applied, 9, "")])
    )


def test_an_unknown_state_of_a_newer_daemon_is_shown_by_its_number() -> None:
    assert "99" == render.state(types_pb2.Job(state=99))  # type: ignore[arg-type]


class FakeError(grpc.RpcError):
    """A failed call as grpc raises it."""

    def __init__(self, code: grpc.StatusCode, text: str, trailing: tuple[tuple[str, bytes], ...]) -> None:
        self._answer = code, text, trailing

    def code(self) -> grpc.StatusCode:
        return self._answer[0]

    def details(self) -> str:
        return self._answer[1]

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return self._answer[2]


def test_refusals_are_read_with_reason_and_metadata_and_damaged_ones_without() -> None:
    error = DomainError(Reason.ABOVE_MAXIMUM, "too high", variable="lr")
    good = FakeError(grpc.StatusCode.OUT_OF_RANGE, "too high", ((DETAILS_KEY, details(error)),))
    refusal = refusal_of(good)
    assert ("OUT_OF_RANGE", "too high", "ABOVE_MAXIMUM", {"variable": "lr"}) == (
        refusal.code,
        refusal.message,
        refusal.reason,
        dict(refusal.metadata),
    )
    damaged = FakeError(grpc.StatusCode.OUT_OF_RANGE, "too high", ((DETAILS_KEY, b"\xff\xff"),))
    assert ("OUT_OF_RANGE", "") == (refusal_of(damaged).code, refusal_of(damaged).reason)
    assert "UNKNOWN" == refusal_of(grpc.RpcError("other")).code


def test_exit_codes_are_documented_in_the_help() -> None:
    from ltctl.exits import EXIT_HELP

    for code in Exit:
        assert f"{code.value} " in EXIT_HELP
