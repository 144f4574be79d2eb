"""Owns what ltctl shows: from messages to plain data with stable names (for programs) and to words (for people)."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from livetune.v1 import types_pb2
from livetune.wire import value_from_proto
from ltctl.text import arrow, safe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from google.protobuf.timestamp_pb2 import Timestamp

    from livetune.v1 import control_pb2

Data = dict[str, Any]
_FEW = 3
"""How many of many are named, a count."""


def enum_word(enum: Any, number: int, prefix: str) -> str:
    """Return the name of an enum's value in lower case without its prefix, or the number of one not known here."""
    name = enum.Name(number) if number in enum.values() else f"{prefix}{number}"
    return str(name).removeprefix(prefix).lower()


def state(job: types_pb2.Job) -> str:
    """Return a job's state as one word."""
    return enum_word(types_pb2.JobState, job.state, "JOB_STATE_")


def iso_time(stamp: Timestamp) -> str:
    """Return a time as programs read it: ISO 8601 in UTC."""
    return datetime.fromtimestamp(stamp.seconds, timezone.utc).replace(microsecond=stamp.nanos // 1_000).isoformat()


def _iso_time_us(time_us: int) -> str:
    seconds, rest = divmod(time_us, 1_000_000)
    return datetime.fromtimestamp(seconds, timezone.utc).replace(microsecond=rest).isoformat()


def local_time(stamp: Timestamp) -> str:
    """Return a time as a person here reads it."""
    return datetime.fromtimestamp(stamp.seconds, timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def leaf(name: str) -> str:
    """Return the last part of a resource name."""
    return name.rsplit("/", 1)[-1]


def shown(message: types_pb2.Value) -> str:
    """Return a value as a person reads it; what `ltctl set` reads back as the same."""
    plain = value_from_proto(message)
    if plain is None:
        return "-"
    if isinstance(plain, bool):
        return "true" if plain else "false"
    if isinstance(plain, float):
        return f"{plain:g}" if float(f"{plain:g}") == plain else repr(plain)
    return safe(str(plain)) if plain != "" else "''"


def job_data(job: types_pb2.Job) -> Data:
    """Return a job with all that is known of it."""
    data: Data = {
        "name": leaf(job.name),
        "state": state(job),
        "port": job.port,
        "run": job.run,
        "step": job.step,
        "revision": job.revision,
        "world_size": job.world_size,
        "registered_time": iso_time(job.registered_time),
        "ranks": [
            {
                "rank": rank.rank,
                "connected": rank.connected,
                "step": rank.step,
                "applied_revision": rank.applied_revision,
                "leads": rank.leads,
                "host": rank.process.host,
                "pid": rank.process.pid,
                "user": rank.process.user,
                "command": rank.process.command,
                "sdk_version": rank.process.sdk_version,
            }
            for rank in job.ranks
        ],
    }
    if job.classic_port:
        data["classic_port"] = job.classic_port
    if job.HasField("ended_time"):
        data["ended_time"] = iso_time(job.ended_time)
        data["end_message"] = job.end_message
    return data


def whole_job_data(job: types_pb2.Job) -> Data:
    """Return a job with its variables and triggers."""
    return {
        **job_data(job),
        "variables": [variable_data(item) for item in job.variables],
        "triggers": [trigger_data(item) for item in job.triggers],
        "scheduled": [change_data(item) for item in job.scheduled],
    }


def ranks_words(job: types_pb2.Job) -> str:
    """Return how many ranks are connected, by themselves or by the one that leads, of how many there are."""
    world = max(job.world_size, len(job.ranks))
    led = any(rank.connected and rank.leads for rank in job.ranks)
    return f"{world if led else sum(rank.connected for rank in job.ranks)}/{world}"


def ranks_lines(job: types_pb2.Job) -> Iterator[str]:
    """Yield what is known of a job's processes, a line for each."""
    leader = next((rank.rank for rank in job.ranks if rank.leads), None)
    if leader is not None:
        yield f"  rank {leader} speaks for all {job.world_size} ranks, which take every change at the same step"
    elif job.world_size > len(job.ranks):
        yield f"  {len(job.ranks)} of {job.world_size} ranks have registered so far"
    for rank in job.ranks:
        process = rank.process
        link = f"connected at step {rank.step}" if rank.connected else "not connected"
        applied = f"applied revision {rank.applied_revision}" if rank.applied_revision else "no change applied yet"
        who = f"pid {process.pid} of {process.user} on {process.host}: {process.command}"
        yield f"  rank {rank.rank}: {link}, {applied}, {who}"


def lag_words(job: types_pb2.Job) -> str:
    """Return the newest revision that a rank applied, and which ranks are not there yet, each with its own."""
    newest = max((rank.applied_revision for rank in job.ranks), default=0)
    behind = [
        f"rank {rank.rank}: {rank.applied_revision or '-'}" for rank in job.ranks if rank.applied_revision < newest
    ]
    return f"{newest or '-'}{f' ({_few(behind)})' if behind else ''}"


def hosts_words(job: types_pb2.Job) -> str:
    """Return where a job's ranks run."""
    return _few(list(dict.fromkeys(rank.process.host for rank in job.ranks)))


def _few(words: list[str]) -> str:
    more = len(words) - _FEW
    return ", ".join(words[:_FEW]) + (f", {more} more" if more > 0 else "")


def variable_data(variable: types_pb2.Variable) -> Data:
    """Return a variable with its declaration and state."""
    spec = variable.spec
    data: Data = {
        "name": spec.variable_id,
        "type": enum_word(types_pb2.VariableType, spec.type, "VARIABLE_TYPE_"),
        "desired": value_from_proto(variable.desired),
        "revision": variable.revision,
        "applied": [
            {"rank": item.rank, "value": value_from_proto(item.value), "revision": item.revision, "step": item.step}
            for item in variable.applied
        ],
        "initial": value_from_proto(spec.initial),
        "minimum": value_from_proto(spec.minimum),
        "maximum": value_from_proto(spec.maximum),
        "choices": list(spec.choices),
        "scale": enum_word(types_pb2.Scale, spec.scale, "SCALE_") if spec.scale else None,
        "unit": spec.unit,
        "doc": spec.doc,
        "on_restart": restart_policy(spec),
    }
    return data


def restart_policy(spec: types_pb2.VariableSpec) -> str:
    """Return what a variable begins with when a new process takes up a lost run, as one word: keep or reset."""
    policy = spec.on_restart or types_pb2.RESTART_POLICY_KEEP
    return enum_word(types_pb2.RestartPolicy, policy, "RESTART_POLICY_")


def trigger_data(trigger: types_pb2.Trigger) -> Data:
    """Return a trigger with its state."""
    return {
        "name": trigger.spec.trigger_id,
        "fired": trigger.fired,
        "consumed": trigger.consumed,
        "revision": trigger.revision,
        "doc": trigger.spec.doc,
    }


def _outcome_data(outcome: types_pb2.Outcome) -> Data:
    kind = "trigger" if outcome.trigger_id else "variable"
    return {
        kind: outcome.trigger_id or outcome.variable_id,
        "status": status(outcome),
        "effective": value_from_proto(outcome.effective),
        "reason": outcome.reason,
        "used": list(outcome.used),
    }


def status(outcome: types_pb2.Outcome) -> str:
    """Return what became of a part of a change, as one word."""
    return enum_word(types_pb2.ApplyStatus, outcome.status, "APPLY_STATUS_")


def apply_data(apply: types_pb2.Apply) -> Data:
    """Return an acknowledgement."""
    return {
        "change_revision": apply.change_revision,
        "rank": apply.rank,
        "step": apply.step,
        "time": iso_time(apply.time),
        "outcomes": [_outcome_data(outcome) for outcome in apply.outcomes],
    }


def change_data(change: types_pb2.Change) -> Data:
    """Return a change with what became of it; without a revision if it was only tried out."""
    return {
        "revision": change.revision or None,
        "job": leaf(change.job),
        "time": iso_time(change.time),
        "actor": change.actor,
        "reason": change.reason,
        "assignments": [
            {
                "variable": item.variable_id,
                "old": value_from_proto(item.old_value),
                "new": value_from_proto(item.new_value),
            }
            for item in change.assignments
        ],
        "firings": [{"trigger": item.trigger_id, "number": item.number} for item in change.firings],
        "applies": [apply_data(apply) for apply in change.applies],
        "lapsed": list(change.lapsed_ids),
        "undone_revision": change.undone_revision or None,
        "at_step": change.at_step or None,
        "scheduled_revision": change.scheduled_revision or None,
    }


def _number_data(number: float) -> float | str:
    """Return a number as JSON can hold it: what is not finite as a word, as protobuf's JSON has it."""
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def series_data(series: control_pb2.MetricSeries) -> Data:
    """Return what one rank logged under one name."""
    return {
        "name": series.name,
        "rank": series.rank,
        "step": series.last_step,
        "value": _number_data(series.last_value),
        "time": iso_time(series.last_time),
        "minimum": series.minimum if series.HasField("minimum") else None,
        "maximum": series.maximum if series.HasField("maximum") else None,
        "samples": series.samples,
        "points": [
            {"step": step, "value": _number_data(value), "time": _iso_time_us(time_us)}
            for step, value, time_us in zip(series.point_steps, series.point_values, series.point_times_us, strict=True)
        ],
    }


def assignment_words(item: types_pb2.Assignment) -> str:
    """Return what a change does to one variable, in words."""
    return f"{safe(item.variable_id)} {shown(item.old_value)} {arrow()} {shown(item.new_value)}"


def change_words(change: types_pb2.Change) -> str:
    """Return what a change does, in words."""
    parts = list(map(assignment_words, change.assignments))
    parts += [f"fire {safe(item.trigger_id)}" for item in change.firings]
    return ", ".join(parts) + undo_words(change)


def who_words(actor: str, reason: str) -> str:
    """Return who asked for something, and why if that was said, as it stands behind what was asked."""
    return f"by {safe(actor) or 'unknown'}{quoted(reason)}"


def quoted(reason: str) -> str:
    """Return why, as it stands at the end of a line; nothing if nobody said why."""
    return f'  "{safe(reason)}"' if reason else ""


def names_in(change: types_pb2.Change) -> set[str]:
    """Return the names of the variables and triggers of a change."""
    return {item.variable_id for item in change.assignments} | {item.trigger_id for item in change.firings}


def waiting_words(change: types_pb2.Change) -> str:
    """Return what a change that waits does, and when, in words."""
    return f"{change_words(change)} at step {change.at_step}"


def waiting_lines(changes: Iterable[types_pb2.Change]) -> Iterator[str]:
    """Yield the changes that wait for their step, a line for each."""
    for change in changes:
        where = f"(revision {change.revision}, {who_words(change.actor, '')}){quoted(change.reason)}"
        yield f"waits for step {change.at_step}: {change_words(change)}  {where}"


def undo_words(change: types_pb2.Change) -> str:
    """Return a mark behind a change's words that tells which change it undoes; nothing if it undoes none."""
    return f" (undo of {change.undone_revision})" if change.undone_revision else ""


def reason_words(change: types_pb2.Change) -> str:
    """Return why, in the words of whoever asked; not the words that the daemon fills in for an undo."""
    return "" if change.reason == undo_words(change).strip(" ()") else change.reason


def applied_words(change: types_pb2.Change) -> str:
    """Return what became of a change, in words: the steps at which its parts took effect, or what did not."""
    parts: list[str] = []
    for apply in change.applies:
        for outcome in apply.outcomes:
            word = status(outcome)
            text = f"step {apply.step}" if word == "applied" else f"{word} at step {apply.step}"
            text += rewritten_words(change, outcome) + used_words(outcome)
            if outcome.reason:
                text += f" ({safe(outcome.reason)})"
            if text not in parts:
                parts.append(text)
    names = [item.variable_id for item in change.assignments] + [item.trigger_id for item in change.firings]
    if change.lapsed_ids:
        # Whole changes mostly: then the names need not be said again.
        whole = set(change.lapsed_ids) == set(names)
        parts.append("never" if whole else f"never: {', '.join(map(safe, change.lapsed_ids))}")
    return ", ".join(parts) or "pending"


def rewritten_words(change: types_pb2.Change, outcome: types_pb2.Outcome) -> str:
    """Return what the program uses instead of the value that was asked for; nothing if it uses that one."""
    asked = next((item.new_value for item in change.assignments if item.variable_id == outcome.variable_id), None)
    if asked is None or status(outcome) != "applied" or not outcome.HasField("effective"):
        return ""
    return f" as {shown(outcome.effective)}" if outcome.effective != asked else ""


def used_words(outcome: types_pb2.Outcome) -> str:
    """Return what the first step after it used, where that is another number; nothing if it used the value."""
    effective = value_from_proto(outcome.effective)
    used = list(dict.fromkeys(outcome.used))
    if not used or isinstance(effective, str) or effective is None:
        return ""
    if len(used) == 1 and math.isclose(used[0], effective, rel_tol=1e-6):
        return ""
    return f", that step used {', '.join(f'{number:.7g}' for number in used)}"


def status_words(outcome: types_pb2.Outcome) -> str:
    """Return what became of a part of a change, as a person says it."""
    word = "consumed" if outcome.trigger_id and status(outcome) == "applied" else status(outcome)
    return f"{word} ({safe(outcome.reason)})" if outcome.reason else word
