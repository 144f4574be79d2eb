"""What the daemon is told: defaults, then ``LIVETUNED_*``, then flags; checked as a whole, all errors at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from livetuned.daemon import paths
from livetuned.transport.addresses import Address, AddressError, TcpAddress, UnixAddress, parse_address

DEFAULT_GRPC = "127.0.0.1:7470"
DEFAULT_METRICS = "127.0.0.1:9747"
DEFAULT_JOB_PORTS = "21000-21999"


class ConfigError(Exception):
    """What the daemon was told can't be done. The message has one line for each error."""


@dataclass(frozen=True, slots=True)
class Config:
    """A checked configuration."""

    state: Path
    """Folder of the store."""
    listen: tuple[Address, ...]
    """Where gRPC is served."""
    metrics: TcpAddress
    """Where metrics and health are served over HTTP."""
    job_ports: tuple[int, int]
    """First and last designated job port."""
    fsync: bool = True
    """False gives up durability: for benchmarks."""


def load(
    environ: Mapping[str, str],
    *,
    state: Path | None = None,
    listen: tuple[str, ...] = (),
    metrics: str | None = None,
    job_ports: str | None = None,
    fsync: bool = True,
) -> Config:
    """Merges flags over environment over defaults.

    Args:
        environ: The environment: ``LIVETUNED_STATE``, ``LIVETUNED_LISTEN`` (comma-separated), ``LIVETUNED_METRICS``,
            ``LIVETUNED_JOB_PORTS``.
        state: Flag ``--state``.
        listen: Flags ``--listen``.
        metrics: Flag ``--metrics``.
        job_ports: Flag ``--job-ports``.
        fsync: False with flag ``--unsafe-no-fsync``.

    Raises:
        ConfigError: At least one value is not allowed.
    """
    errors: list[str] = []
    known = {"LIVETUNED_STATE", "LIVETUNED_LISTEN", "LIVETUNED_METRICS", "LIVETUNED_JOB_PORTS"}
    errors += [
        f"environment variable {name} is unknown; there are {', '.join(sorted(known))}"
        for name in environ
        if name.startswith("LIVETUNED_") and name not in known
    ]
    listen = listen or tuple(filter(None, environ.get("LIVETUNED_LISTEN", "").split(",")))
    listen = listen or (str(UnixAddress(paths.socket_path(environ))), DEFAULT_GRPC)
    addresses: list[Address] = []
    for text in listen:
        try:
            addresses.append(parse_address(text.strip()))
        except AddressError as error:
            errors.append(str(error))
    scrape = _metrics(metrics or environ.get("LIVETUNED_METRICS") or DEFAULT_METRICS, errors)
    ports = _job_ports(job_ports or environ.get("LIVETUNED_JOB_PORTS") or DEFAULT_JOB_PORTS, errors)
    folder = state or (Path(given) if (given := environ.get("LIVETUNED_STATE")) else paths.state_directory(environ))
    if errors or scrape is None or ports is None:
        raise ConfigError("\n".join(errors))
    return Config(folder.absolute(), tuple(addresses), scrape, ports, fsync)


def _metrics(text: str, errors: list[str]) -> TcpAddress | None:
    try:
        address = parse_address(text)
    except AddressError as error:
        errors.append(str(error).replace("listen address", "metrics address", 1))
        return None
    if isinstance(address, UnixAddress):
        errors.append(f"metrics address '{text}': must be HOST:PORT")
        return None
    return address


def _job_ports(text: str, errors: list[str]) -> tuple[int, int] | None:
    match = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1_024 <= first <= last <= 65_535:
        errors.append(f"job ports '{text}': must be FIRST-LAST with 1024 <= FIRST <= LAST <= 65535")
        return None
    return first, last
