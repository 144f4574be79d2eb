"""The commands that look after a store: backup, restore, doctor."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from livetuned.daemon.lifecycle import ExitCode
from livetuned.daemon.paths import DATABASE

if TYPE_CHECKING:
    from livetuned.store.findings import Check

_file = click.Path(path_type=Path)
_state_option = click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the store [default: as for `livetuned serve`].",
)


@contextmanager
def _ended() -> Iterator[None]:
    """Ends the command as its errors say; signals that end it let it tidy up first."""
    from livetuned.daemon.keeping import KeepingError

    def stop(number: int, _: object) -> NoReturn:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, stop)
    try:
        yield
    except KeepingError as error:
        for line in str(error).splitlines():
            click.echo(f"livetuned: error: {line}", err=True)
        sys.exit(error.code)


def _state(told: Path | None) -> Path:
    """Returns the state folder: as told, or as the daemon would have it."""
    if told is not None:
        return told
    from livetuned.daemon import config
    from livetuned.daemon.keeping import KeepingError

    try:
        return config.load(os.environ).state
    except config.ConfigError as error:
        raise KeepingError(ExitCode.USAGE, str(error)) from error


@click.command()
@click.argument("file", type=_file)
@click.option("--endpoint", metavar="ADDR", help="Where the daemon listens: unix:PATH or HOST:PORT.")
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="Back up the store in this folder, of a daemon that is not running.",
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def backup(file: Path, endpoint: str | None, state: Path | None, force: bool) -> None:
    """Back up the daemon's store into FILE, while the daemon runs.

    The daemon is looked for at LIVETUNE_ENDPOINT, then where this user's daemon listens, then the machine's. FILE holds
    everything as of one revision: jobs, values, the history that is kept, ports. It is there whole or not at all, with
    mode 0600.

    \b
    Exit codes: 0 done, 1 error, 2 wrong usage or FILE exists, 4 --state names the store of a running daemon,
    5 the store is damaged, 7 no daemon answers.
    """  # noqa: D301 - click's \b keeps the lines as they are
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from livetuned.daemon import keeping, remote

    with _ended():
        if state is not None and endpoint is not None:
            raise click.UsageError("--state is for a daemon that is not running, --endpoint for one that is: give one")
        if state is not None:
            where, written = str(state), keeping.backup_stopped(state, file, force=force)
        else:
            where, written = remote.backup_running(file, endpoint, force=force)
        click.echo(f"{file}: {written.words()}, from {where}")


@click.command()
@click.argument("file", type=_file)
@_state_option
@click.option("--replace", is_flag=True, help="Move a store that is there aside; nothing is deleted.")
def restore(file: Path, state: Path | None, replace: bool) -> None:
    """Make the store that of the backup FILE. The daemon must not run.

    FILE is verified whole first, and only read. The store gets an identity of its own: clients notice that it is
    another one, and jobs that are training keep the values that they use.

    \b
    Exit codes: 0 done, 1 error, 2 wrong usage or there is a store and no --replace, 4 a daemon uses the store,
    5 FILE is damaged or can't be read.
    """  # noqa: D301 - click's \b keeps the lines as they are
    from livetuned.daemon import restoring
    from livetuned.store.schema import SCHEMA_VERSION

    with _ended():
        folder = _state(state)
        restored = restoring.restore(file, folder, aside=replace)
        old = "" if restored.version == SCHEMA_VERSION else f", brought up from schema {restored.version}"
        click.echo(f"{restored.written.path}: {restored.written.words()}{old}, from {file}")
        if restored.aside is not None:
            click.echo(f"the store that was there: {restored.aside}")


@click.command()
@click.argument("file", type=_file, required=False)
@_state_option
@click.option("--recover", type=_file, metavar="NEWFILE", help="Save what is well of a damaged store into NEWFILE.")
@click.option(
    "--keep",
    type=click.Choice(["prefix", "newest"]),
    default="prefix",
    show_default=True,
    help="What --recover saves: everything up to the damage, or the newest state without the history before it.",
)
@click.option("-o", "--output", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def doctor(file: Path | None, state: Path | None, recover: Path | None, keep: str, form: str) -> None:
    """Look at everything in a store, and tell what is damaged and what can be saved.

    FILE is a backup or a store; without it the store in --state is looked at. It is only read: what is looked at is a
    private copy, in TMPDIR. A store in use is refused: back it up, and look at the backup.

    \b
    Exit codes: 0 all is well, 1 something is damaged (also when it was saved), 2 wrong usage, 4 a daemon uses the
    store, 5 it can't be read at all or nothing can be saved.
    """  # noqa: D301 - click's \b keeps the lines as they are
    from livetuned.daemon import keeping, report

    with _ended():
        if file is not None and state is not None:
            raise click.UsageError("give FILE or --state")
        path = file if file is not None else _state(state) / DATABASE

        def tell(check: Check) -> None:
            if form == "text":
                click.echo(report.check_line(check))

        diagnosis = keeping.diagnose(path, tell, save_to=recover, keep=keep)
        click.echo(report.to_json(diagnosis) if form == "json" else report.ending(diagnosis, recover))
        sys.exit(report.code(diagnosis))
