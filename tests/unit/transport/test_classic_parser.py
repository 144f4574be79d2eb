"""The classic protocol's bytes, without a socket: each request, joined, split, and what is none."""

from __future__ import annotations

import pytest

from livetuned.transport.classic_parser import (
    DICTIONARY_ENTRY,
    UPDATE,
    Asked,
    Began,
    Event,
    Fired,
    Garbage,
    Parser,
    Told,
)

LIMIT = 20


def read(opening: bytes, *pieces: bytes, end: bool = True) -> list[Event]:
    parser = Parser(opening, LIMIT)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + (parser.end() if end else [])


def one_by_one(data: bytes) -> list[bytes]:
    return [data[place : place + 1] for place in range(len(data))]


def test_the_requests_have_the_lengths_of_the_wire_format() -> None:
    assert 33 == len(DICTIONARY_ENTRY)
    assert 24 == len(UPDATE)


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b"lr", [Asked("lr")]),
        (b"lc.strength", [Asked("lc.strength")]),
        (b"a b \xc3\xa9", [Asked("a b é")]),
        (b"", [Asked("")]),
        (b"lr" + DICTIONARY_ENTRY + b"wd", [Asked("lr"), Asked("wd")]),
        (DICTIONARY_ENTRY + b"wd", [Asked(""), Asked("wd")]),
        (b"x" * LIMIT, [Asked("x" * LIMIT)]),
        (b"x" * (LIMIT + 1), [Garbage("the tag is longer than 20 bytes")]),
        (b"x" * 1_000, [Garbage("the tag is longer than 20 bytes")]),
        (b"x" * (LIMIT + 1) + DICTIONARY_ENTRY + b"wd", [Garbage("the tag is longer than 20 bytes")]),
        (b"\xff", [Garbage("the tag is not UTF-8")]),
        (b"lr\xff" + DICTIONARY_ENTRY + b"wd", [Garbage("the tag is not UTF-8")]),
        (b"request_typ", [Asked("request_typ")]),
        (b"request_type: ", [Asked(""), Garbage("the request is not complete")]),
        (b"lr" + UPDATE, [Asked("lr"), Garbage(f"not a request that is answered here: '{DICTIONARY_ENTRY.decode()}'")]),
    ],
)
def test_what_a_dictionary_port_reads(data: bytes, events: list[Event]) -> None:
    assert events == read(DICTIONARY_ENTRY, DICTIONARY_ENTRY + data)
    assert events == read(DICTIONARY_ENTRY, DICTIONARY_ENTRY, data)
    assert events == read(DICTIONARY_ENTRY, *one_by_one(DICTIONARY_ENTRY + data))


NOT_HERE = Garbage(f"not a request that is answered here: '{UPDATE.decode()}'")
FIRE = b"request_type: trigger_var"


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b"0.01", [Told("0.01")]),
        (b"True", [Told("True")]),
        (b"", []),
        (b"\n0.01\n", [Told("\n0.01\n")]),
        (FIRE, [Fired()]),
        (FIRE + b"\r\n", [Fired()]),
        (FIRE + b"x", [Fired(), NOT_HERE]),
        (FIRE + UPDATE + b"1", [Fired(), Began(), Told("1")]),
        (b"0.01" + UPDATE + b"0.02", [Told("0.01"), Began(), Told("0.02")]),
        (UPDATE + b"1", [Began(), Told("1")]),
        (b"5" + FIRE, [Told("5"), NOT_HERE]),
        (b"request", [Told("request")]),
        (FIRE[:-1], [Garbage("the request is not complete")]),
        (b"1" * LIMIT, [Told("1" * LIMIT)]),
        (b"1" * LIMIT + UPDATE + b"2", [Told("1" * LIMIT), Began(), Told("2")]),
        (b"1" * (LIMIT + 1), [Garbage("the value is longer than 20 bytes")]),
        (b"\xff\xfe", [Garbage("the value is not UTF-8")]),
        (b"\x00", [Told("\0")]),
    ],
)
def test_what_a_variables_port_reads(data: bytes, events: list[Event]) -> None:
    assert [Began(), *events] == read(UPDATE, UPDATE + data)
    assert [Began(), *events] == read(UPDATE, UPDATE, data)
    assert [Began(), *events] == read(UPDATE, *one_by_one(UPDATE + data))


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"\0", b"x" * 100_000, b"Request_type: update_var", UPDATE[:-1] + b"x"],
)
@pytest.mark.parametrize("opening", [UPDATE, DICTIONARY_ENTRY])
def test_what_is_no_request_is_told_at_once_and_ends_the_reading(opening: bytes, data: bytes) -> None:
    (event,) = read(opening, data, end=False)
    assert Garbage(f"not a request that is answered here: '{opening.decode()}'") == event
    assert [event] == read(opening, *one_by_one(data), opening)


def test_a_type_is_answered_before_the_value_comes() -> None:
    parser = Parser(UPDATE, LIMIT)
    assert [] == parser.feed(UPDATE[:-1])
    assert not parser.reading_text
    assert [Began()] == parser.feed(UPDATE[-1:])
    assert parser.reading_text
    assert [] == parser.feed(b"0.")
    assert [] == parser.feed(b"01")
    assert 4 == parser.buffered
    assert [Told("0.01")] == parser.end()
    assert [] == parser.end()
    assert [] == parser.feed(UPDATE)


def test_silence_and_half_a_request() -> None:
    assert [] == read(UPDATE)
    assert [] == read(UPDATE, b"\n")
    assert [Garbage("the request is not complete")] == read(UPDATE, UPDATE[:5])


def test_pieces_tell_whether_a_tag_came_together_with_its_request() -> None:
    parser = Parser(DICTIONARY_ENTRY, LIMIT)
    assert 0 == parser.pieces
    parser.feed(DICTIONARY_ENTRY + b"lr")
    assert 1 == parser.pieces
    parser.feed(b"_decay")
    assert 2 == parser.pieces
    parser.feed(DICTIONARY_ENTRY + b"wd")
    assert 1 == parser.pieces
