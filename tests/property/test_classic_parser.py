"""The classic parser over all splits of a conversation, and over bytes of any kind."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from livetuned.transport.classic_parser import (
    DICTIONARY_ENTRY,
    MARK,
    TRIGGER,
    UPDATE,
    Asked,
    Began,
    Event,
    Fired,
    Garbage,
    Parser,
    Told,
)

LIMIT = 40

texts = (st.text(max_size=10) | st.sampled_from(["r", "request_type:", "0.01", "lr.rate"])).filter(
    lambda text: MARK.decode() not in text
)
openings = st.sampled_from([DICTIONARY_ENTRY, UPDATE])


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in pairwise(places)]


def read(opening: bytes, pieces: list[bytes]) -> list[Event]:
    parser = Parser(opening, LIMIT)
    return [event for piece in pieces for event in parser.feed(piece)] + parser.end()


cuts = st.lists(st.integers(0, 1_000), max_size=30)


@given(st.lists(texts, min_size=1, max_size=4), cuts)
def test_tags_are_the_same_however_they_are_split(tags: list[str], cuts: list[int]) -> None:
    data = b"".join(DICTIONARY_ENTRY + tag.encode() for tag in tags)
    assert [Asked(tag) for tag in tags] == read(DICTIONARY_ENTRY, split(data, cuts))


@given(st.lists(texts.filter(bool) | st.none(), min_size=1, max_size=4), cuts)
def test_values_and_firings_are_the_same_however_they_are_split(values: list[str | None], cuts: list[int]) -> None:
    data = b"".join(UPDATE + (TRIGGER if value is None else value.encode()) for value in values)
    expected: list[Event] = []
    for value in values:
        expected += [Began(), Fired() if value is None else Told(value)]
    assert expected == read(UPDATE, split(data, cuts))


@given(
    openings,
    st.lists(
        st.sampled_from([MARK, UPDATE, TRIGGER, DICTIONARY_ENTRY, b"request", b"0.01", b"\n", b"lr", b"\xff"])
        | st.binary(max_size=60),
        max_size=8,
    ),
    cuts,
)
def test_bytes_of_any_kind_never_raise_and_mean_the_same_in_any_split(
    opening: bytes, parts: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(parts)
    events = read(opening, [data])
    assert events == read(opening, split(data, cuts))
    # Nothing is read after garbage, and no text is longer than the limit.
    assert not any(isinstance(event, Garbage) for event in events[:-1])
    for event in events:
        if isinstance(event, Asked | Told):
            assert len((event.tag if isinstance(event, Asked) else event.text).encode()) <= LIMIT
