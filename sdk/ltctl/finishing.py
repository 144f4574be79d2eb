"""Owns the end of the commands that change: wait until the job uses it, print what became of it, the exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from livetune.v1 import types_pb2
from livetune.wire import value_from_proto
from ltctl import render
from ltctl.applying import ANY_RANK, UNKNOWN, Applying
from ltctl.client import Client
from ltctl.exits import CommandError, Exit, ReaderLeftError
from ltctl.following import wait_applied
from ltctl.options import How, print_data
from ltctl.text import note, safe


@dataclass(frozen=True)
class Made:
    """A change that was accepted, or only tried out."""

    change: types_pb2.Change
    store_id: str
    ranks: Sequence[int]
    """The ranks that were connected then."""
    words: Mapping[str, str]
    """By name of a variable or trigger: what is asked of it, in words."""
    merged: Mapping[str, int]
    """Triggers that were not fired, because a firing waits already: the revision of that one."""

    @property
    def wanted(self) -> dict[str, int]:
        """By name: the revision that is waited for."""
        return {name: self.merged.get(name, self.change.revision) for name in self.words}


def finish(client: Client, made: Made, how: How) -> None:
    """Wait for the apply if that was asked, print what became of the change, and end with the right exit code.

    Raises:
        CommandError: The job refused it, never took it, or has not taken it in time.
    """
    applying = Applying(made.wanted, made.ranks)
    if how.wait == "applied" and not how.dry_run:
        _wait(client, made, applying, how.timeout)
    data = {
        **render.change_data(made.change),
        "merged": dict(made.merged),
        "dry_run": how.dry_run,
        "applied": {name: _outcomes_data(name, applying) for name in applying.outcomes},
    }
    # The exit code tells what became of it, whoever reads.
    with suppress(ReaderLeftError):
        print_data(how.form, data, list(made.words), lambda: [_line(name, made, applying, how) for name in made.words])
    if how.wait == "applied" and not how.dry_run:
        _check_applied(applying, how.timeout)


def _wait(client: Client, made: Made, applying: Applying, seconds: float) -> None:
    if not made.ranks:
        job = render.leaf(made.change.job)
        note(f"job {job} is not connected: {applying.accepted}, it applies when the job is back")
    try:
        wait_applied(client, made.change.job, applying, made.store_id, seconds)
    except KeyboardInterrupt:
        note(f"ltctl: interrupted: {applying.accepted}, its apply was not waited for")
        raise


def _outcomes_data(name: str, applying: Applying) -> list[dict[str, Any]]:
    return [
        {
            "rank": None if rank == ANY_RANK else rank,
            "status": render.status(outcome),
            "step": applying.steps.get(name, {}).get(rank),
            "effective": value_from_proto(outcome.effective),
            "reason": outcome.reason,
            "used": list(outcome.used),
        }
        for rank, outcome in sorted(applying.outcomes[name].items())
    ]


def _line(name: str, made: Made, applying: Applying, how: How) -> str:
    undo = f"   {render.undo_words(made.change).strip()}" if made.change.undone_revision else ""
    if how.dry_run:
        waits = made.merged.get(name)
        when = f" at step {made.change.at_step}" if made.change.at_step else ""
        return f"{made.words[name]}: would add none" if waits else f"would {made.words[name]}{when}{undo}"
    return f"{made.words[name]}   {_became(name, made, applying)}{undo}"


def _became(name: str, made: Made, applying: Applying) -> str:
    by_rank = applying.outcomes.get(name, {})
    if not by_rank and made.change.at_step:
        return f"scheduled for step {made.change.at_step} as revision {made.wanted[name]}"
    if not by_rank:
        return f"accepted as revision {made.wanted[name]}"
    outcomes = by_rank.values()
    words = ", ".join(
        dict.fromkeys(render.status_words(item) + render.rewritten_words(made.change, item) for item in outcomes)
    )
    used = ", ".join(dict.fromkeys(filter(None, map(render.used_words, outcomes))))
    steps = sorted(set(applying.steps.get(name, {}).values()))
    at = f" at step {steps[0]}" if len(steps) == 1 else f" at steps {steps[0]} to {steps[-1]}" if steps else ""
    several = len(applying.ranks) > 1 and ANY_RANK not in by_rank
    on = f" on {len(by_rank)} of {len(applying.ranks)} ranks" if several else ""
    return f"{words}{at}{on}{used}"


def _check_applied(applying: Applying, seconds: float) -> None:
    refused = [f"{name}: {outcome.reason or 'no reason given'}" for name, outcome in applying.of("refused")]
    if refused:
        raise CommandError(Exit.VETOED, safe("the job refused it: " + "; ".join(dict.fromkeys(refused))))
    superseded = applying.of("superseded")
    if superseded:
        names = ", ".join(dict.fromkeys(name for name, _ in superseded))
        unknown = any(outcome.reason == UNKNOWN for _, outcome in superseded)
        message = (
            f"{names} was {UNKNOWN}"
            if unknown
            else f"never in effect: {names} was changed again before the job took it"
        )
        raise CommandError(Exit.CONFLICT, safe(message))
    if not applying.done:
        raise CommandError(Exit.NOT_APPLIED, f"{applying.accepted}, not applied within {seconds:g} s")
