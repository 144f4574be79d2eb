"""Owns the code that `ltctl export` writes. Pure.

What strangers wrote (names, reasons, actors) gets into code by `repr` or as an ASCII comment of one line, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from livetune._version import __version__

if TYPE_CHECKING:
    from livetune.records import Entry
    from livetune.specs import Scalar

_CODE = '''\
"""A learning rate as it was edited while a job trained. Written by ltctl export {version}. Needs torch only."""

from bisect import bisect_right

from torch.optim.lr_scheduler import LRScheduler

JOB, VARIABLE, RANK = {job}, {variable}, {rank}

INITIAL = {initial}

# (step, value): the value is in use from `job.step()` number `step` on.
CHANGES = [
{changes}]

_STEPS = [step for step, _ in CHANGES]


def lr_at(step):
    """Return the value in use after `job.step()` number `step`; after `scheduler.step()` was called so many times."""
    count = bisect_right(_STEPS, step)
    return CHANGES[count - 1][1] if count else INITIAL


class EditedSchedule(LRScheduler):
    """Call its `step()` where the job called `job.step()`.

    The value stands for the first group whose lr is not zero; the others keep their ratio to that one.
    """

    def get_lr(self):
        """Return the lr of each group."""
        value = lr_at(self.last_epoch)
        lrs = [float(lr) for lr in self.base_lrs]
        reference = next((lr for lr in lrs if lr != 0.0), None)
        return [value * (1.0 if reference is None else lr / reference) for lr in lrs]
'''


@dataclass(frozen=True)
class Schedule:
    """What a variable was, and since which step."""

    job: str
    variable: str
    rank: int
    initial: Scalar
    entries: Sequence[Entry]
    """What took effect, in the order of steps."""


def lr_scheduler_code(schedule: Schedule) -> str:
    """Return a Python module with the function ``lr_at(step)`` and a scheduler that follows it."""
    changes = "".join(
        f"    # {_comment(entry)}\n    ({entry.step!r}, {entry.values[schedule.variable]!r}),\n"
        for entry in schedule.entries
    )
    return _CODE.format(
        version=__version__,
        job=ascii(schedule.job),
        variable=ascii(schedule.variable),
        rank=schedule.rank,
        initial=repr(schedule.initial),
        changes=changes,
    )


def _comment(entry: Entry) -> str:
    """Return which change it was, who asked for it and why, in one line of ASCII."""
    words = f"revision {entry.revision}, {entry.actor or '-'}{f': {entry.reason}' if entry.reason else ''}"
    return words.encode("unicode_escape").decode("ascii")
