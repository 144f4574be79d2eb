"""Owns where a daemon is looked for and how it is connected to: the order of the places, and what every channel needs.

Pure standard library, so that ``ltctl`` and the daemon can use it without loading gRPC.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from livetune.errors import DaemonUnreachableError, EndpointError

__all__ = [
    "CHANNEL_OPTIONS",
    "DEFAULT_TARGET",
    "PROBE_SECONDS",
    "SYSTEM_SOCKET",
    "address",
    "candidates",
    "parse_endpoint",
    "resolve",
    "unreachable",
    "user_socket",
]

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # A daemon that is frozen or cut off is noticed within seconds. The ping has a time-out of its own in gRPC, which
    # would stretch this to a minute.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    # A proxy that the environment names for the web leads nowhere near a daemon: http_proxy is set on most clusters.
    ("grpc.enable_http_proxy", 0),
)
"""What every gRPC channel to a daemon is made with."""

SOCKET_NAME = "livetuned.sock"
SYSTEM_SOCKET = Path("/run/livetuned") / SOCKET_NAME
DEFAULT_TARGET = "127.0.0.1:7470"
PROBE_SECONDS = 0.5
"""How long one place may take to accept a connection."""

_HOST_PORT = re.compile(
    r"(?:dns:(?://[^/]*/)?)?(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(?P<port>[0-9]{1,5})", re.ASCII
)
_PRIVATE_MODE = 0o700
_MAX_PORT = 65535


def parse_endpoint(text: str) -> str:
    """Turn an endpoint as a person writes it into a gRPC target.

    Args:
        text: ``unix:/path/to.sock`` (or ``unix:///path``), or ``host:port``; an IPv6 host stands in brackets.

    Returns:
        ``unix:/path/to.sock`` or ``host:port``.

    Raises:
        EndpointError: if it is neither.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if path.startswith("//"):
            path = path.removeprefix("//")
        if not path.startswith("/"):
            raise EndpointError(
                f"endpoint {text!r}: unix: needs an absolute path, as in unix:/run/user/1000/livetune/{SOCKET_NAME}"
            )
        return f"unix:{path}"
    found = _HOST_PORT.fullmatch(text)
    if found is None or not 0 < int(found["port"]) <= _MAX_PORT:
        raise EndpointError(
            f"endpoint {text!r}: write unix:/path/to.sock or host:port with a port from 1 to {_MAX_PORT}"
        )
    return text


def user_socket(environ: Mapping[str, str]) -> Path:
    """Path of the socket that a daemon run by this user listens on.

    ``$XDG_RUNTIME_DIR/livetune/livetuned.sock``; without that variable ``/tmp/livetune-UID/livetuned.sock``. It is not
    checked here whether the folder is safe to trust: see `candidates`.
    """
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        return Path(runtime) / "livetune" / SOCKET_NAME
    return Path(f"/tmp/livetune-{os.getuid()}") / SOCKET_NAME  # noqa: S108 - used only if `_is_private`


def candidates(environ: Mapping[str, str]) -> list[str]:
    """List the gRPC targets to try, in order.

    ``LIVETUNE_ENDPOINT`` alone if it is set; else the user's socket, the system's socket and ``127.0.0.1:7470``. The
    fallback in ``/tmp`` is left out unless its folder belongs to this user and is closed to all others, because anyone
    may create it first.

    Args:
        environ: the environment to read, usually ``os.environ``.

    Raises:
        EndpointError: if ``LIVETUNE_ENDPOINT`` cannot be read.
    """
    chosen = environ.get("LIVETUNE_ENDPOINT", "")
    if chosen:
        try:
            return [parse_endpoint(chosen)]
        except EndpointError as error:
            raise EndpointError(f"LIVETUNE_ENDPOINT: {error}") from None
    own = user_socket(environ)
    targets = [f"unix:{SYSTEM_SOCKET}", DEFAULT_TARGET]
    if environ.get("XDG_RUNTIME_DIR", "").startswith("/") or _is_private(own.parent):
        targets.insert(0, f"unix:{own}")
    return targets


def resolve(targets: Sequence[str], *, timeout: float = PROBE_SECONDS) -> str:
    """Pick the first target that accepts a connection.

    Args:
        targets: gRPC targets as `candidates` gives them.
        timeout: seconds that each may take.

    Raises:
        DaemonUnreachableError: if none does; the message says why for each.
    """
    refusals = {}
    for target in targets:
        try:
            _probe(target, timeout)
        except OSError as error:
            refusals[target] = error
        else:
            return target
    raise unreachable(refusals)


def unreachable(refusals: Mapping[str, OSError]) -> DaemonUnreachableError:
    """Say that none of the targets accepts connections, and why each does not."""
    words = [f"{target} ({error.strerror or error})" for target, error in refusals.items()]
    return DaemonUnreachableError(f"no livetuned daemon at {', '.join(words)}")


def address(target: str) -> str | tuple[str, int]:
    """Return the path of a target's socket, or its host and port.

    Raises:
        EndpointError: if it is no target.
    """
    if target.startswith("unix:"):
        return target.removeprefix("unix:")
    found = _HOST_PORT.fullmatch(target)
    if found is None:
        raise EndpointError(f"target {target!r} is neither unix:/path nor host:port")
    return found["host"].strip("[]"), int(found["port"])


def _probe(target: str, timeout: float) -> None:
    place = address(target)
    if isinstance(place, str):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(timeout)
            probe.connect(place)
        return
    with socket.create_connection(place, timeout=timeout):
        pass


def _is_private(folder: Path) -> bool:
    try:
        status = folder.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) == _PRIVATE_MODE
    )
