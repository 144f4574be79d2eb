"""Stores with a known history: what is written is a pure function of a seed, so that what is read can be judged."""

from __future__ import annotations

import random
import string
from collections.abc import Mapping, Sequence

from livetuned.domain.job import Job
from livetuned.domain.records import (
    Applied,
    ApplyStatus,
    Assignment,
    Cancelled,
    Changed,
    Declared,
    DeclaredVariable,
    Draft,
    Firing,
    Outcome,
    Record,
    Registered,
    Scheduled,
)
from livetuned.domain.specs import TriggerSpec, VariableSpec
from livetuned.domain.state import State
from livetuned.domain.values import Value, ValueType
from support.domain import PROCESS

JOBS = ("vgg", "resnet", "bert")

LONGEST_TEXT = 1_500
"""Longest text value, in characters: some records are to need more than one page of the file with their neighbours."""


def story(seed: int, length: int) -> list[Draft]:
    """Returns what happens to the jobs: the same beginning for every length."""
    generator = random.Random(seed)
    drafts = [draft for number, job in enumerate(JOBS) for draft in _begin(job, 21_000 + number)]
    values: dict[str, dict[str, Value]] = {job: {"x": 0.0, "n": 0, "note": ""} for job in JOBS}
    fired = dict.fromkeys(JOBS, 0)
    last_change: dict[str, int] = {}
    waits: dict[str, int] = {}
    while len(drafts) < length:
        job = generator.choice(JOBS)
        time_us = 1_700_000_000_000_000 + len(drafts)
        if job in last_change and generator.random() < 0.3:
            revision = last_change.pop(job)
            drafts.append(Draft(time_us, job, _apply(drafts[revision - 1].payload, revision, len(drafts))))
        elif job in waits and generator.random() < 0.2:
            revision = waits.pop(job)
            drafts.append(Draft(time_us, job, _end_of_waiting(drafts[revision - 1].payload, revision, values[job])))
        elif job not in waits and generator.random() < 0.1:
            waits[job] = len(drafts) + 1
            later = (Assignment("x", values[job]["x"], generator.random()),)
            drafts.append(Draft(time_us, job, Scheduled(len(drafts), Changed("bob", "later", "", later, ()))))
        elif generator.random() < 0.1:
            fired[job] += 1
            drafts.append(Draft(time_us, job, Changed("ann", "", "", (), (Firing("save", fired[job]),))))
        else:
            new: dict[str, Value] = {"x": generator.random(), "n": generator.randrange(-(2**63), 2**63)}
            if generator.random() < 0.3:
                new["note"] = "".join(
                    generator.choices(string.ascii_letters + "äß\n\x00", k=generator.randrange(LONGEST_TEXT))
                )
            assignments = tuple(Assignment(name, values[job][name], value) for name, value in new.items())
            values[job].update(new)
            last_change[job] = len(drafts) + 1
            request = f"{len(drafts)}" if generator.random() < 0.2 else ""
            drafts.append(Draft(time_us, job, Changed("ann@host", f"why {len(drafts)}", request, assignments, ())))
    return drafts[:length]


def _begin(job: str, port: int) -> list[Draft]:
    specs = (
        VariableSpec("x", ValueType.FLOAT, 0.0),
        VariableSpec("n", ValueType.INT, 0),
        VariableSpec("note", ValueType.STRING, ""),
    )
    return [
        Draft(1_700_000_000_000_000, job, Registered(1, port, 0, 1, f"instance of {job}", False, PROCESS)),
        Draft(
            1_700_000_000_000_000,
            job,
            Declared(
                f"instance of {job}",
                tuple(DeclaredVariable(spec, spec.initial) for spec in specs),
                (TriggerSpec("save", "write a checkpoint"),),
            ),
        ),
    ]


def _end_of_waiting(scheduled: object, revision: int, values: dict[str, Value]) -> Changed | Cancelled:
    assert isinstance(scheduled, Scheduled)
    if scheduled.step % 2:
        return Cancelled(revision, "ann", "not needed")
    old, new = values["x"], scheduled.change.assignments[0].new
    values["x"] = new
    return Changed("bob", "later", "", (Assignment("x", old, new),), (), scheduled=revision)


def _apply(changed: object, revision: int, step: int) -> Applied:
    assert isinstance(changed, Changed)
    return Applied(
        revision,
        0,
        step,
        (
            *(Outcome(item.variable, False, ApplyStatus.APPLIED, item.new) for item in changed.assignments),
            *(Outcome(item.trigger, True, ApplyStatus.APPLIED, None) for item in changed.firings),
        ),
    )


def records(drafts: Sequence[Draft]) -> list[Record]:
    """Returns the records that an empty store makes of drafts."""
    return [Record(number, draft.time_us, draft.job, draft.payload) for number, draft in enumerate(drafts, 1)]


def fold(history: Sequence[Record]) -> Mapping[str, Job]:
    """Returns the jobs after a history that begins at its beginning."""
    state = State()
    for record in history:
        state.fold(record)
    return state.jobs
