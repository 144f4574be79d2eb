"""What the doctor found, for people and for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from livetuned.daemon.keeping import Diagnosis
from livetuned.daemon.lifecycle import ExitCode
from livetuned.store.findings import Check, number
from livetuned.store.salvage import Lost, Plan


def check_line(check: Check) -> str:
    """Returns a check as a line."""
    return f"{check.status.value:<8}  {check.name:<15}  {check.words}"


def code(diagnosis: Diagnosis) -> ExitCode:
    """Returns what the doctor exits with."""
    found = diagnosis.found
    if not found.failed:
        return ExitCode.OK
    return ExitCode.ERROR if found.readable else ExitCode.STORE_UNUSABLE


def ending(diagnosis: Diagnosis, save_to: Path | None) -> str:
    """Returns the last lines: the upshot, and what can be done.

    Args:
        diagnosis: What was found.
        save_to: Where a damaged store was to be saved.
    """
    found = diagnosis.found
    size = f"{diagnosis.size} bytes"
    if not found.failed:
        records = found.head - found.origin
        jobs = number(len(found.state or ()), "job")
        upshot = f"all is well: {number(records, 'record')}, {jobs}, revision {found.head}, {size}"
        return f"{upshot}\nnothing is to be saved: {save_to} was not written" if save_to else upshot
    failed = f"{len(found.failed)} of {len(found.checks)} checks failed"
    if not found.readable:
        return f"{failed}: it can't be read as a store, {size}"
    lines = [f"{failed}; what can be saved of it, {size}:"]
    for name, plan in diagnosis.plans.items():
        lines.append(f"--keep {name}: {plan.words() if isinstance(plan, Plan) else f'not possible: {plan}'}")
    if diagnosis.recovered is not None:
        lines.append(f"saved into {diagnosis.recovered.path}: {diagnosis.recovered.words()}")
        lines.append(f"to go on with it: livetuned restore {diagnosis.recovered.path} --replace [--state DIR]")
    elif any(isinstance(plan, Plan) for plan in diagnosis.plans.values()):
        lines.append(
            "to save it: livetuned doctor ... --recover NEWFILE [--keep newest]; the damaged one stays as it is"
        )
    return "\n".join(lines)


def to_json(diagnosis: Diagnosis) -> str:
    """Returns everything as JSON."""
    found, recovered = diagnosis.found, diagnosis.recovered
    data: dict[str, Any] = {
        "path": str(diagnosis.path),
        "size_bytes": diagnosis.size,
        "result": "ok" if not found.failed else "damaged" if found.readable else "unreadable",
        "checks": [{"name": check.name, "status": check.status.value, "words": check.words} for check in found.checks],
        "store_id": found.store_id,
        "revision": found.head,
        "compacted_revision": found.origin,
        "acknowledged_revision": found.acknowledged or None,
        "jobs": None if found.state is None else len(found.state),
        "keep": {name: _plan(plan) for name, plan in diagnosis.plans.items()},
        "recovered": None if recovered is None else {**asdict(recovered), "path": str(recovered.path)},
    }
    return json.dumps(data, indent=2, ensure_ascii=False)


def _plan(plan: Plan | str) -> dict[str, Any]:
    if isinstance(plan, str):
        return {"possible": False, "words": plan}
    return {
        "possible": True,
        "words": plan.words(),
        "first_revision": plan.origin + 1 if plan.last > plan.origin else None,
        "revision": plan.last,
        "jobs": sorted(plan.jobs),
        "jobs_lost": plan.gone,
        "jobs_of_different_age": plan.older,
        "lost": _lost(plan.lost),
        "lost_history_only": _lost(plan.history),
    }


def _lost(lost: Lost) -> dict[str, Any]:
    return {
        "spans": lost.spans,
        "records": lost.count,
        "readable": lost.readable,
        "first_time_us": lost.first_us or None,
        "last_time_us": lost.last_us or None,
        "jobs": dict(lost.jobs),
    }
