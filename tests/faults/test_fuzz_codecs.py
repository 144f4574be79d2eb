"""The codecs of store and wire on arbitrary input: what is read is what would be written, or it is refused as it should be."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import hypothesis
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from livetune.v1 import control_pb2, job_pb2, types_pb2
from livetuned.domain.errors import DomainError
from livetuned.domain.job import Job
from livetuned.store import codec as store_codec
from livetuned.transport import codec as wire_codec
from support import stories
from support.fuzzing import Messages, mutated
from support.results import count, long_run, seed

HISTORY = stories.records(stories.story(7, 60))
JOBS = list(stories.fold(HISTORY).values())
STORED = [(store_codec.kind_of(record.payload), store_codec.encode(record.payload)) for record in HISTORY]
KINDS = sorted({kind for kind, _ in STORED} | {"nonsense", ""})

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


def altered(value: Any, other: Any, generator: random.Random) -> Any:
    """Returns a JSON value with one part of it replaced, removed, or doubled."""
    if isinstance(value, dict) and value and generator.random() < 0.8:
        key = generator.choice(sorted(value))
        if generator.random() < 0.2:
            return {name: part for name, part in value.items() if name != key}
        return {**value, key: altered(value[key], other, generator)}
    if isinstance(value, list) and value and generator.random() < 0.8:
        position = generator.randrange(len(value))
        if generator.random() < 0.2:
            return value + value
        return [*value[:position], altered(value[position], other, generator), *value[position + 1 :]]
    return other


def check_stored(read: Callable[[str], object], write: Callable[[Any], str], text: str) -> None:
    try:
        found = read(text)
    except ValueError:
        return
    assert found == read(write(found))


def check_record(kind: str, stored: tuple[str, str], other: Any, generator: random.Random) -> None:
    text = json.dumps(altered(json.loads(stored[1]), other, generator))
    for name in (kind, stored[0]):
        check_stored(lambda text, name=name: store_codec.decode(name, text), store_codec.encode, text)


def check_no_record(kind: str, text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - that it is one is all that is promised
        store_codec.decode(kind, text)


def check_job(job: Job, other: Any, generator: random.Random) -> None:
    text = json.dumps(altered(json.loads(store_codec.encode_job(job)), other, generator))
    check_stored(store_codec.decode_job, store_codec.encode_job, text)


READERS: dict[type[Message], Callable[[Any], object]] = {
    types_pb2.Value: wire_codec.value_from_wire,
    types_pb2.TriggerSpec: wire_codec.trigger_from_wire,
    types_pb2.Process: wire_codec.process_from_wire,
    types_pb2.Outcome: wire_codec.outcome_from_wire,
    control_pb2.VariableUpdate: wire_codec.update_from_wire,
    job_pb2.VariableDeclaration: lambda message: wire_codec.declaration_from_wire(message, "store"),
    types_pb2.Change: wire_codec.kept_from_wire,
    control_pb2.SetVariablesRequest: wire_codec.when_from_wire,
}


def check_messages(generator: random.Random) -> None:
    messages = Messages(generator, ("x", "lc.strength", "", "a b", "jobs/vgg"))
    for kind, read in READERS.items():
        sent = mutated(messages.message(kind.DESCRIPTOR).SerializeToString(), generator)
        with suppress(DecodeError, DomainError):
            read(kind.FromString(sent))


RANDOM = st.randoms(use_true_random=False)
BROKEN_TEXTS = st.text() | st.sampled_from(["[" * 50_000, "1" * 10_000, "NaN", '{"a":' * 9_000])
PROPERTIES: dict[str, tuple[Callable[..., None], tuple[st.SearchStrategy[Any], ...]]] = {
    "record": (check_record, (st.sampled_from(KINDS), st.sampled_from(STORED), JSON, RANDOM)),
    "no record": (check_no_record, (st.sampled_from(KINDS), BROKEN_TEXTS)),
    "job": (check_job, (st.sampled_from(JOBS), JSON, RANDOM)),
    "messages": (check_messages, (RANDOM,)),
}


def fuzz(name: str, examples: int, chosen_seed: int, phases: tuple[Phase, ...] = tuple(Phase)) -> None:
    """Tries a property on so many inputs."""
    check, strategies = PROPERTIES[name]
    told = settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=phases
    )
    hypothesis.seed(chosen_seed)(told(given(*strategies)(check)))()


@pytest.mark.parametrize("name", PROPERTIES)
def test_what_comes_is_read_or_refused(name: str) -> None:
    fuzz(name, 150, seed(93))


def test_control_a_reader_that_looks_up_what_is_not_there_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, types_pb2.Outcome, lambda message: wire_codec._FROM_STATUSES[message.status])
    with pytest.raises(KeyError):
        fuzz("messages", 150, seed(93), (Phase.generate,))


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_much_is_read_or_refused() -> None:
    chosen, cases = seed(94), count("CODEC_CASES", 20_000)
    with long_run("fuzz of the codecs", chosen, cases=cases):
        for name in PROPERTIES:
            fuzz(name, cases // len(PROPERTIES), chosen)
