"""A client of the classic LiveTune protocol that can do what no good client does."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable

ENTRY = b"request_type: dictionary_entry - "
UPDATE = b"request_type: update_var"
TRIGGER = b"request_type: trigger_var"

ANSWER_SECONDS = 20.0
"""Within this every connection must be answered or closed, in seconds. The daemon's own times are below it."""


class NeverClosedError(AssertionError):
    """A connection was neither answered nor closed in time."""


def receive(connection: socket.socket, at_most: int = 1 << 20, seconds: float = ANSWER_SECONDS) -> bytes:
    """Returns what comes until the other side closes, or cuts the connection off, or so many bytes have come."""
    connection.settimeout(seconds)
    received = b""
    try:
        while len(received) < at_most and (data := connection.recv(min(65_536, at_most - len(received)))):
            received += data
    except TimeoutError:
        raise NeverClosedError(f"open after {seconds} s; received {received[:200]!r}") from None
    except ConnectionError:
        pass
    return received


def talk(port: int, pieces: Iterable[bytes], *, half_close: bool = False, pause: float = 0.0) -> bytes:
    """Sends the pieces, and returns all that is answered until the daemon closes.

    Args:
        port: Where to.
        pieces: What is sent, each by a call of its own.
        half_close: Whether the client then closes its side.
        pause: Seconds between the pieces.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # closed on, before all was sent
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        return receive(connection)


def ask(port: int, tag: str) -> int:
    """Returns the port of a variable or trigger, from a job's dictionary port."""
    return int(talk(port, [ENTRY + tag.encode()]))


def tell(port: int, value: bytes) -> bytes:
    """Does what the original client does on a variable's port, and returns the type that was answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS) as connection:
        connection.sendall(UPDATE)
        kind = connection.recv(100)
        connection.sendall(value)
    return kind
