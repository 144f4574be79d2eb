"""What clients of the classic LiveTune protocol say, read without any I/O: bytes in, events out.

The protocol has neither framing nor terminators. A request is told by its exact bytes; the text after it (a tag, a
value) ends where the next request begins, or where whoever feeds the parser says that nothing more comes: at a
half-close, or after a time of quiet. However the bytes are split or joined on their way, the events are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias

MARK = b"request_type: "
"""How every request begins. Tags, numbers and truth values never contain it."""

DICTIONARY_ENTRY = MARK + b"dictionary_entry - "
"""Asks the dictionary port for the port of a tag, which follows."""

UPDATE = MARK + b"update_var"
"""Asks a variable's port for the type, and announces a value, which follows."""

TRIGGER = MARK + b"trigger_var"
"""Stands in the place of the value, for a trigger."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The port of a tag is asked for."""

    tag: str


@dataclass(frozen=True, slots=True)
class Began:
    """The type is asked for, and a value will follow."""


@dataclass(frozen=True, slots=True)
class Told:
    """A value is complete."""

    text: str


@dataclass(frozen=True, slots=True)
class Fired:
    """A trigger is fired."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """The bytes are not the protocol's; nothing is read after them."""

    why: str


Event: TypeAlias = Asked | Began | Told | Fired | Garbage


class _Expected(Enum):
    REQUEST = auto()
    TEXT = auto()
    NOTHING = auto()


class Parser:
    """Reads one connection.

    Args:
        opening: The request that the port answers: `DICTIONARY_ENTRY` or `UPDATE`.
        text_bytes: Longest tag or value, in bytes.

    Attributes:
        opening: The request that the port answers.
        pieces: In how many pieces the request under way has arrived so far; 0 if there is none.
    """

    def __init__(self, opening: bytes, text_bytes: int) -> None:
        self.opening = opening
        self._limit = text_bytes
        self._buffer = bytearray()
        self._searched = 0
        self._expected = _Expected.REQUEST
        self.pieces = 0

    @property
    def reading_text(self) -> bool:
        """Whether a tag or a value is under way, be it empty so far."""
        return self._expected is _Expected.TEXT

    @property
    def buffered(self) -> int:
        """How many bytes have arrived of what is under way."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Event]:
        """Takes bytes as they came and returns what they complete."""
        events: list[Event] = []
        if self._expected is not _Expected.NOTHING:
            self._buffer += data
            self.pieces += 1
            while self._step(events):
                pass
        return events

    def end(self) -> list[Event]:
        """Says that nothing more comes, and returns what that completes."""
        expected, text = self._expected, bytes(self._buffer)
        self._expected = _Expected.NOTHING
        self._buffer.clear()
        if expected is _Expected.REQUEST or (expected is _Expected.TEXT and text.startswith(MARK)):
            return [Garbage("the request is not complete")] if text else []
        # Whoever closes without a value has only looked at the type.
        if expected is _Expected.NOTHING or (not text and self.opening == UPDATE):
            return []
        return [self._text(text)]

    def _step(self, events: list[Event]) -> bool:
        """Takes one request or text off the buffer; False if there is none complete."""
        if self._expected is _Expected.REQUEST:
            return self._request(events)
        return self._expected is _Expected.TEXT and self._text_or_trigger(events)

    def _request(self, events: list[Event]) -> bool:
        while self._buffer.startswith((b"\r", b"\n")):  # a person with netcat sends lines
            del self._buffer[0]
        if not self._buffer:
            self.pieces = 0
        elif self._buffer.startswith(self.opening):
            self._take(len(self.opening), _Expected.TEXT)
            if self.opening == UPDATE:
                events.append(Began())
            return True
        elif not self.opening.startswith(self._buffer):
            events.append(Garbage(f"not a request that is answered here: '{self.opening.decode()}'"))
            self._take(len(self._buffer), _Expected.NOTHING)
        return False

    def _text_or_trigger(self, events: list[Event]) -> bool:
        if self.opening == UPDATE and TRIGGER.startswith(self._buffer[: len(TRIGGER)]):
            if len(self._buffer) < len(TRIGGER):
                return False
            self._take(len(TRIGGER), _Expected.REQUEST)
            events.append(Fired())
            return True
        # What was searched before needs no second look, but for a mark that had only begun.
        end = self._buffer.find(MARK, max(0, self._searched - len(MARK) + 1))
        self._searched = len(self._buffer)
        if end < 0:
            if len(self._buffer) < self._limit + len(MARK):
                return False
            end = len(self._buffer)
        text = bytes(self._buffer[:end])
        self._take(end, _Expected.REQUEST)
        if text or self.opening != UPDATE:
            events.append(self._text(text))
        return True

    def _take(self, count: int, expected: _Expected) -> None:
        del self._buffer[:count]
        self._searched = 0
        self._expected = expected
        if expected is _Expected.REQUEST:
            self.pieces = 1 if self._buffer else 0

    def _text(self, data: bytes) -> Event:
        what = "value" if self.opening == UPDATE else "tag"
        if len(data) > self._limit:
            why = f"the {what} is longer than {self._limit:,} bytes"
        else:
            try:
                text = data.decode()
            except UnicodeDecodeError:
                why = f"the {what} is not UTF-8"
            else:
                return Told(text) if self.opening == UPDATE else Asked(text)
        self._take(len(self._buffer), _Expected.NOTHING)
        return Garbage(why)
