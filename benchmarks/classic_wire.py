"""LiveTune's own wire format, as its `tune` speaks it: two connections for each change."""

from __future__ import annotations

import socket

_SECONDS = 5.0


def set_value(host: str, dictionary: int, value: float) -> None:
    """Sets variable `x` of a program with LiveTune.

    The format has no framing: each send must arrive alone, so each waits for the answer to the one before.

    Args:
        host: Where the program runs.
        dictionary: Its dictionary port.
        value: The value.
    """
    with socket.create_connection((host, dictionary), timeout=_SECONDS) as connection:
        connection.sendall(b"request_type: dictionary_entry - x")
        port = int(connection.recv(64))
    with socket.create_connection((host, port), timeout=_SECONDS) as connection:
        connection.sendall(b"request_type: update_var")
        connection.recv(64)
        connection.sendall(repr(value).encode())
        connection.recv(64)
