"""Owns the entry point and the group; the commands are in the modules named after them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from livetune._version import __version__
from ltctl.arguments import NearestVerb
from ltctl.changing import cancel, remove, set_values, trigger, undo
from ltctl.client import Client
from ltctl.exits import EXIT_HELP, CommandError, Exit, ReaderLeftError
from ltctl.export import export
from ltctl.history import history
from ltctl.metrics import metrics
from ltctl.reading import describe, get, jobs
from ltctl.text import note
from ltctl.watching import watch


@click.group(cls=NearestVerb, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_HELP)
@click.option(
    "--endpoint",
    metavar="ADDR",
    help="unix:PATH or HOST:PORT [default: $LIVETUNE_ENDPOINT, your own daemon's socket, the system's, 127.0.0.1:7470]",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65_535),
    metavar="N",
    help="A job's own port on this machine; JOB is then left out.",
)
@click.version_option(__version__, prog_name="ltctl")
@click.pass_context
def cli(ctx: click.Context, endpoint: str | None, port: int | None) -> None:
    """Look at training jobs and change their variables while they run."""
    if endpoint is not None and port is not None:
        raise click.UsageError("--endpoint and --port exclude each other")
    ctx.obj = Client(endpoint, port)
    ctx.call_on_close(ctx.obj.close)


for command in (jobs, get, describe, set_values, trigger, undo, cancel, history, export, metrics, watch, remove):
    cli.add_command(command)


def main() -> None:
    """Run ltctl and end with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run a command.

    Args:
        words: What stands behind `ltctl` on the command line.

    Returns:
        The exit code.
    """
    try:
        cli.main(list(words), prog_name="ltctl", standalone_mode=False)
    except CommandError as error:
        note(f"ltctl: error: {error.message}")
        return error.code
    except ReaderLeftError:
        return Exit.OK
    except SystemExit:
        # What click makes of a broken pipe while it prints help: he who left has what he wanted.
        return Exit.OK
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        where = f" (see: {error.ctx.command_path} --help)" if error.ctx is not None else ""
        message = error.format_message()
        if isinstance(error, click.NoSuchOption) and error.option_name in ("--port", "--endpoint"):
            message = f"{error.option_name} goes before the verb: ltctl {error.option_name} ... VERB"
        note(f"ltctl: error: {message}{where}")
        return Exit.USAGE
    except click.ClickException as error:
        note(f"ltctl: error: {error.format_message()}")
        return Exit.ERROR
    except OSError as error:  # no room for what waits to be shown, no file descriptor left
        note(f"ltctl: error: {error}")
        return Exit.ERROR
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    return Exit.OK
