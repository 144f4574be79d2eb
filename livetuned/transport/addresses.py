"""Addresses to listen on: which are allowed, and making the place for a Unix socket safe."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

_SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket on Linux, in bytes."""


class AddressError(Exception):
    """An address that may not, or can't, be listened on."""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A loopback address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in a folder that only its owner enters."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def parse_address(text: str) -> Address:
    """Reads ``unix:PATH`` or ``HOST:PORT``.

    Until accounts and TLS exist nothing but this machine may speak with the daemon: a host must be a loopback address.

    Raises:
        AddressError: Neither form, a relative or overlong path, a port outside 0-65535, or not loopback.
    """
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        if not path.is_absolute():
            raise AddressError(f"listen address '{text}': the path must be absolute")
        if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
            raise AddressError(f"listen address '{text}': the path of a socket may have {_SOCKET_PATH_BYTES} bytes")
        return UnixAddress(path)
    host, separator, port_text = text.rpartition(":")
    if not separator or not host:
        raise AddressError(f"listen address '{text}': neither unix:PATH nor HOST:PORT")
    if not port_text.isascii() or not port_text.isdigit() or int(port_text) > 65_535:
        raise AddressError(f"listen address '{text}': port '{port_text}' is not a number from 0 to 65535")
    host = host.removeprefix("[").removesuffix("]")
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise AddressError(
            f"listen address '{text}': only loopback (127.0.0.1, [::1]) or a Unix socket is allowed, "
            "since there is no TLS yet"
        )
    return TcpAddress("127.0.0.1" if host == "localhost" else host, int(port_text))


def prepare_socket(path: Path) -> None:
    """Makes the folder of a Unix socket private and removes a socket that a dead daemon left.

    Raises:
        AddressError: The folder is not ours alone, or something lives at the path.
    """
    folder = path.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except OSError as error:
        raise AddressError(f"folder {folder} of the socket can't be made: {error.strerror}") from error
    if about.st_uid != os.getuid() or stat.S_IMODE(about.st_mode) & 0o077:
        raise AddressError(
            f"folder {folder} of the socket must belong to this user and have mode 0700, "
            f"not uid {about.st_uid} and mode {stat.S_IMODE(about.st_mode):04o}"
        )
    if not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise AddressError(f"{path} exists and is not a socket")
    # gRPC would silently take the path away from a daemon that is alive.
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise AddressError(f"{path} is in use by another program")
