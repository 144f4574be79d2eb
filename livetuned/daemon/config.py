"""What the daemon is told: defaults, files, ``LIVETUNED_*``, flags; checked as a whole, all errors at once.

`settings` has the table of what can be told; this module finds the values, notes where each comes from, and builds
what the parts are given.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from livetuned.daemon.settings import BY_NAME, CONFIG_VARIABLE, SECTIONS, SETTINGS, RuleError, hint
from livetuned.transport.addresses import Address, TcpAddress

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SYSTEM_FILE = Path("/etc/livetune/livetuned.toml")
"""The file for all users of the machine."""

FILE_BYTES = 1024 * 1024
"""Largest configuration file that is read, in bytes: more is a wrong path."""


class ConfigError(Exception):
    """What the daemon was told can't be done. The message has one line for each error."""


@dataclass(frozen=True, slots=True)
class Classic:
    """The classic LiveTune protocol."""

    enabled: bool
    """Whether jobs answer it."""
    port_offset: int
    """Distance from a job's port to its classic dictionary port."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long what is over is kept."""

    records: int
    """Most records of history kept, a count."""
    days: float
    """How long history is kept, in days, counted while the daemon runs."""
    ended_days: float
    """How long ended jobs stay readable, in days."""
    lost_hours: float
    """How long a lost job keeps its port before it is ended as failed, in hours."""


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """What one caller may do."""

    changes_per_second: float
    """Sustained rate of changes, a second."""
    changes_burst: int
    """Changes at once before the rate counts, a count."""


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
    classic: Classic
    """The classic LiveTune protocol."""
    retention: Retention
    """How long what is over is kept."""
    limits: CallerLimits
    """What one caller may do."""
    fsync: bool = True
    """False gives up durability: for benchmarks."""


@dataclass(frozen=True, slots=True)
class Given:
    """A value that was given, before it is checked."""

    raw: object
    """As TOML would give it."""
    origin: str
    """Where: ``default``, a file's path, ``environment variable NAME`` or ``flag --NAME``."""


def user_file(environ: Mapping[str, str]) -> Path | None:
    """Returns ``$XDG_CONFIG_HOME/livetune/livetuned.toml``, else the one in ``~/.config``; None without a home."""
    if folder := environ.get("XDG_CONFIG_HOME"):
        return Path(folder) / "livetune" / "livetuned.toml"
    home = environ.get("HOME")
    return Path(home) / ".config" / "livetune" / "livetuned.toml" if home else None


def gather(
    environ: Mapping[str, str],
    flags: Mapping[str, object],
    errors: list[str],
    *,
    config: Path | None = None,
    system_file: Path = SYSTEM_FILE,
) -> dict[str, Given]:
    """Finds the value of every setting, and where it comes from.

    Args:
        environ: The environment.
        flags: What flags said, by ``section.key``, as TOML would give it; only those that were given.
        errors: Takes a line for each thing that is unknown or can't be read.
        config: The file to read instead of the usual two; relative to the working directory.
        system_file: The file for all users.

    Returns:
        All settings by ``section.key``.
    """
    given = {setting.name: Given(setting.default_in(environ), "default") for setting in SETTINGS}
    chosen = config or (Path(named) if (named := environ.get(CONFIG_VARIABLE)) else None)
    for path in (chosen,) if chosen else filter(None, (system_file, user_file(environ))):
        given.update(_from_file(path, errors, required=chosen is not None))
    variables = {setting.environment: setting for setting in SETTINGS}
    for name, text in environ.items():
        if name in variables and text:
            setting = variables[name]
            given[setting.name] = Given(setting.kind.read(text), f"environment variable {name}")
        elif name.startswith("LIVETUNED_") and name not in (*variables, CONFIG_VARIABLE):
            errors.append(
                f"environment variable {name} is unknown; {hint(name, (*sorted(variables), CONFIG_VARIABLE))}"
            )
    for name, raw in flags.items():
        given[name] = Given(raw, f"flag {BY_NAME[name].flag}")
    return given


def _from_file(path: Path, errors: list[str], *, required: bool) -> dict[str, Given]:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES + 1)
        if len(content) > FILE_BYTES:
            errors.append(f"{path}: a configuration file may have {FILE_BYTES:,} bytes")
            return {}
        tables = tomllib.loads(content.decode())
    except FileNotFoundError:
        if required:
            errors.append(f"{path}: there is no such file")
        return {}
    except OSError as error:
        errors.append(f"{path}: can't be read: {error.strerror}")
        return {}
    except UnicodeDecodeError as error:
        errors.append(f"{path}: is not UTF-8 at byte {error.start}")
        return {}
    except tomllib.TOMLDecodeError as error:
        errors.append(f"{path}: is not TOML: {error}")
        return {}
    return dict(_known(path, tables, errors))


def _known(path: Path, tables: Mapping[str, Any], errors: list[str]) -> Iterator[tuple[str, Given]]:
    keys = {section: tuple(item.key for item in SETTINGS if item.section == section) for section in SECTIONS}
    for section, table in tables.items():
        if section not in SECTIONS:
            homes = [item for item in SETTINGS if item.key == section]
            where = f"{section} belongs into [{homes[0].section}]" if homes else hint(section, SECTIONS)
            errors.append(f"{path}: section {section} is unknown; {where}")
        elif not isinstance(table, dict):
            errors.append(f"{path}: {section} = {_shown(table)}: must be a table: [{section}]")
        else:
            for key, raw in table.items():
                if key in keys[section]:
                    yield f"{section}.{key}", Given(raw, str(path))
                else:
                    errors.append(f"{path}: key {section}.{key} is unknown; {hint(key, keys[section])}")


def _shown(raw: object) -> str:
    text = ("true" if raw else "false") if isinstance(raw, bool) else repr(raw)
    return text if len(text) <= 120 else text[:117] + "..."


def load(
    environ: Mapping[str, str],
    *,
    state: Path | None = None,
    listen: tuple[str, ...] = (),
    metrics: str | None = None,
    job_ports: str | None = None,
    config: Path | None = None,
    system_file: Path = SYSTEM_FILE,
    fsync: bool = True,
) -> Config:
    """Merges flags over environment over files over defaults.

    Args:
        environ: The environment: ``LIVETUNED_*``, and what the default places depend on.
        state: Flag ``--state``.
        listen: Flags ``--listen``.
        metrics: Flag ``--metrics``.
        job_ports: Flag ``--job-ports``.
        config: Flag ``--config``: the file to read instead of the system's and the user's.
        system_file: The file for all users.
        fsync: False with flag ``--unsafe-no-fsync``.

    Raises:
        ConfigError: At least one value is not allowed, or something is unknown.
    """
    errors: list[str] = []
    flags = {
        "daemon.state": None if state is None else str(state.absolute()),
        "daemon.listen": [*listen] or None,
        "daemon.metrics": metrics,
        "daemon.job_ports": job_ports,
    }
    told = {name: raw for name, raw in flags.items() if raw is not None}
    given = gather(environ, told, errors, config=config, system_file=system_file)
    values: dict[str, Any] = {}
    for name, item in given.items():
        try:
            values[name] = BY_NAME[name].kind.check(item.raw)
        except RuleError as error:
            errors += [f"{item.origin}: {name} = {_shown(item.raw)}: {rule}" for rule in error.rules]
    if {"daemon.job_ports", "classic.enabled", "classic.port_offset"} <= values.keys():
        errors += _classic_ports(values, given["classic.port_offset"])
    if errors:
        raise ConfigError("\n".join(errors))

    def section(of: str) -> dict[str, Any]:
        return {setting.key: values[setting.name] for setting in SETTINGS if setting.section == of}

    return Config(
        **section("daemon"),
        classic=Classic(**section("classic")),
        retention=Retention(**section("retention")),
        limits=CallerLimits(**section("limits")),
        fsync=fsync,
    )


def _classic_ports(values: Mapping[str, object], given: Given) -> Iterator[str]:
    if not values["classic.enabled"]:
        return
    first, last = cast("tuple[int, int]", values["daemon.job_ports"])
    offset = cast("int", values["classic.port_offset"])
    low, high = first + offset, last + offset
    problem = f"{given.origin}: classic.port_offset = {offset}: moves job ports {first}-{last} to {low}-{high}, which"
    if low < 1_024 or high > 65_535:
        yield f"{problem} must lie in 1024-65535"
    elif low <= last and high >= first:
        yield f"{problem} must not overlap the job ports"
