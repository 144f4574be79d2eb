"""The table of all settings: where each is given, what it means, what it may be. What loads them follows it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from livetuned.daemon import paths
from livetuned.domain import limits
from livetuned.domain.names import nearest
from livetuned.transport.addresses import Address, AddressError, TcpAddress, UnixAddress, parse_address

Default: TypeAlias = object | Callable[[Mapping[str, str]], object]
"""A value as TOML would give it, or what makes it from the environment."""


class RuleError(ValueError):
    """A value that a setting can't have.

    Args:
        rules: What it breaks, each in words of its own.
    """

    def __init__(self, *rules: str) -> None:
        super().__init__("; ".join(rules))
        self.rules = rules


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of values: how text is read, and what may be."""

    name: str
    """What the reference calls it."""
    read: Callable[[str], object]
    """From the text of a flag or an environment variable to what TOML would give. Text it can't read it returns."""
    check: Callable[[object], object]
    """From what TOML gives to the value used. Raises `RuleError`."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of the daemon."""

    section: str
    """The table in the file."""
    key: str
    """The key in that table."""
    kind: Kind
    default: Default
    doc: str
    """What it does, in one sentence or two."""
    unit: str = ""
    """The unit of a number."""
    flag: str = ""
    """The flag of `livetuned serve`, if there is one."""

    @property
    def name(self) -> str:
        """``section.key``."""
        return f"{self.section}.{self.key}"

    @property
    def environment(self) -> str:
        """The environment variable that sets it."""
        scope = "" if self.section == "daemon" else f"{self.section}_"
        return f"LIVETUNED_{scope}{self.key}".upper()

    def default_in(self, environ: Mapping[str, str]) -> object:
        """Returns the default, as TOML would give it."""
        return self.default(environ) if callable(self.default) else self.default


_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _read_whole(text: str) -> object:
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else text


def _read_number(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def _whole(minimum: int | None = None) -> Kind:
    rule = "a whole number" if minimum is None else f"a whole number of at least {minimum:,}"

    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or (minimum is not None and value < minimum):
            raise RuleError(f"must be {rule}")
        return value

    return Kind(rule, _read_whole, check)


def _check_positive(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise RuleError("must be a number above 0")
    return float(value)


def _check_bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise RuleError("must be true or false")
    return value


def _check_folder(value: object) -> Path:
    if not isinstance(value, str) or not value.startswith("/"):
        raise RuleError("must be the absolute path of a folder")
    return Path(value)


def _check_addresses(value: object) -> tuple[Address, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise RuleError('must be a list of addresses, such as ["127.0.0.1:7470"]')
    addresses, problems = [], []
    for text in value:
        try:
            addresses.append(parse_address(text.strip()))
        except AddressError as error:
            problems.append(str(error))
    if problems:
        raise RuleError(*problems)
    return tuple(addresses)


def _check_tcp(value: object) -> TcpAddress:
    try:
        address = parse_address(value) if isinstance(value, str) else None
    except AddressError as error:
        raise RuleError(str(error).replace("listen address", "metrics address", 1)) from error
    if address is None or isinstance(address, UnixAddress):
        raise RuleError("must be a loopback HOST:PORT")
    return address


def _check_ports(value: object) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", value) if isinstance(value, str) else None
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1_024 <= first <= last <= 65_535:
        raise RuleError("must be FIRST-LAST with 1024 <= FIRST <= LAST <= 65535")
    return first, last


WHOLE = _whole()
"""Any whole number."""

POSITIVE = Kind("a number above 0", _read_number, _check_positive)
"""A finite number above 0."""

BOOL = Kind("true or false", lambda text: _WORDS.get(text.strip().lower(), text), _check_bool)
"""A switch; as text also yes/no, on/off, 1/0."""

FOLDER = Kind("a folder", lambda text: str(Path(text).absolute()), _check_folder)
"""A folder; as text it may be relative to where the daemon is started."""

ADDRESSES = Kind("a list of addresses", lambda text: [part for part in text.split(",") if part], _check_addresses)
"""Addresses to listen on; as text separated by commas."""

TCP_ADDRESS = Kind("HOST:PORT on loopback", lambda text: text, _check_tcp)
"""A loopback address."""

PORTS = Kind("FIRST-LAST", lambda text: text, _check_ports)
"""A range of ports, both ends included."""

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "daemon", "state", FOLDER, lambda environ: str(paths.state_directory(environ).absolute()),
        "Folder of the store. The default is $STATE_DIRECTORY, or $XDG_STATE_HOME/livetune.", flag="--state",
    ),
    Setting(
        "daemon", "listen", ADDRESSES,
        lambda environ: [f"unix:{paths.socket_path(environ)}", "127.0.0.1:7470"],
        "Where gRPC is served: unix:PATH or a loopback HOST:PORT. The default is the user's socket and 127.0.0.1:7470.",
        flag="--listen",
    ),
    Setting(
        "daemon", "metrics", TCP_ADDRESS, "127.0.0.1:9747", "Where /metrics and /healthz are served over HTTP.",
        flag="--metrics",
    ),
    Setting(
        "daemon", "job_ports", PORTS, "21000-21999", "Range of designated job ports, both ends included.",
        flag="--job-ports",
    ),
    Setting(
        "classic", "enabled", BOOL, False,
        "Whether jobs also answer the classic LiveTune protocol. It knows no authentication: every user of this "
        "machine can then change every job.",
    ),
    Setting(
        "classic", "port_offset", WHOLE, 1_000,
        "Distance from a job's port to its classic dictionary port. All of daemon.job_ports moved by it must lie in "
        "1024-65535, outside daemon.job_ports.", unit="ports",
    ),
    Setting(
        "retention", "records", _whole(10_000), 2_000_000, "Most records of history that are kept.", unit="records",
    ),
    Setting(
        "retention", "days", POSITIVE, 90.0, "How long history is kept, counted while the daemon runs.", unit="days",
    ),
    Setting(
        "retention", "ended_days", POSITIVE, 30.0, "How long a job that has ended stays readable.", unit="days",
    ),
    Setting(
        "retention", "lost_hours", POSITIVE, 168.0,
        "After this long without its program a lost job is ended as failed, and its port is released.", unit="hours",
    ),
    Setting(
        "limits", "changes_per_second", POSITIVE, float(limits.CHANGES_PER_SECOND),
        "Sustained rate of changes that one caller may make.",
        unit="changes a second",
    ),
    Setting(
        "limits", "changes_burst", _whole(1), limits.CHANGES_BURST,
        "Changes that one caller may make at once before that rate counts.", unit="changes",
    ),
)  # fmt: skip
"""All settings, in the order of the reference."""

BY_NAME: Mapping[str, Setting] = {setting.name: setting for setting in SETTINGS}
"""The settings by ``section.key``."""

SECTIONS = tuple(dict.fromkeys(setting.section for setting in SETTINGS))
"""The tables that a file may have."""

CONFIG_VARIABLE = "LIVETUNED_CONFIG"
"""The environment variable that names the file to read instead of the usual two."""


def hint(name: str, known: tuple[str, ...]) -> str:
    """Returns what to say after an unknown name: the nearest known one, or all of them."""
    close = nearest(name, known)
    return f"did you mean {close}?" if close else f"there is {', '.join(known)}"
