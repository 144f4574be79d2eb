"""The command line of the daemon."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

import click

from livetuned.daemon import offline
from livetuned.daemon.lifecycle import ExitCode

_NO_EVENT_ENGINE = "-event_engine_client,-event_engine_listener,-event_engine_for_all_other_endpoints"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="livetuned", prog_name="livetuned")
def main() -> None:
    """The daemon that holds the state of LiveVariables and gives each training job its port."""


for _command in (offline.backup, offline.restore, offline.doctor):
    main.add_command(_command)


@main.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Read this file, not /etc/livetune/livetuned.toml and the user's livetune/livetuned.toml.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the store [default: $STATE_DIRECTORY, $XDG_STATE_HOME/livetune].",
)
@click.option(
    "--listen",
    multiple=True,
    metavar="ADDR",
    help="Where to serve gRPC: unix:PATH or a loopback HOST:PORT; repeatable. Replaces the default of both.",
)
@click.option("--metrics", metavar="HOST:PORT", help="Where to serve /metrics and /healthz [default: 127.0.0.1:9747].")
@click.option("--job-ports", metavar="A-B", help="Range of designated job ports [default: 21000-21999].")
@click.option(
    "--unsafe-no-fsync",
    is_flag=True,
    hidden=True,
    help="Give up durability, to measure its cost.",
)
def serve(
    config_file: Path | None,
    state: Path | None,
    listen: tuple[str, ...],
    metrics: str | None,
    job_ports: str | None,
    unsafe_no_fsync: bool,
) -> None:
    """Serve until SIGTERM or SIGINT. Prints one line when ready.

    Flags go over LIVETUNED_STATE, LIVETUNED_LISTEN (comma-separated), LIVETUNED_METRICS, LIVETUNED_JOB_PORTS and the
    like, these over the user's $XDG_CONFIG_HOME/livetune/livetuned.toml, this over /etc/livetune/livetuned.toml.
    livetuned.example.toml explains all settings.

    \b
    Exit codes: 0 stopped, 1 error, 2 wrong usage, 3 address can't be had, 4 store in use by another livetuned,
    5 store unusable or damaged, 6 store failed while running.
    """  # noqa: D301 - click's \b keeps the lines as they are
    # gRPC's core prints bytes that strangers send; what matters comes to our own log. Read when grpc is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # gRPC's older poller hands a message over in 50 us less than its event engine (benchmarks/README.md). A name that a
    # later gRPC does not know any more is ignored.
    os.environ.setdefault("GRPC_EXPERIMENTS", _NO_EVENT_ENGINE)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        from livetuned.daemon import app, config
    except ModuleNotFoundError as error:
        # The base install is SDK and ltctl only.
        click.echo(
            f"livetuned: error: no module {error.name!r}; install the daemon: pip install 'livetuned[daemon]'", err=True
        )
        sys.exit(ExitCode.ERROR)

    try:
        told = config.load(
            os.environ,
            state=state,
            listen=listen,
            metrics=metrics,
            job_ports=job_ports,
            config=config_file,
            fsync=not unsafe_no_fsync,
        )
    except config.ConfigError as error:
        for line in str(error).splitlines():
            click.echo(f"livetuned: error: {line}", err=True)
        sys.exit(ExitCode.USAGE)
    if unsafe_no_fsync:
        logging.getLogger("livetuned").warning("--unsafe-no-fsync: acknowledged changes may be lost")
    sys.exit(asyncio.run(app.run(told, click.echo)))
