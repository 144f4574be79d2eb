"""Owns how ltctl shows what a watch says: as plain data with stable names (for programs) and in words (for people)."""

from __future__ import annotations

from livetune.v1 import control_pb2, types_pb2
from ltctl import render
from ltctl.render import Data
from ltctl.text import safe

_VALUE_LENGTH = 40
"""How much of a value is shown where many stand in one line, in characters."""


def event_data(event: control_pb2.Event) -> Data:
    """Return an event of a watch."""
    kind = event.WhichOneof("kind") or "unknown"
    data: Data = {
        "revision": event.revision,
        "time": render.iso_time(event.time),
        "job": render.leaf(event.job),
        "kind": kind,
    }
    if kind == "registered":
        registered = event.registered
        data |= {
            "run": registered.run, "port": registered.port, "rank": registered.rank, "resumed": registered.resumed,
            "host": registered.process.host, "pid": registered.process.pid, "user": registered.process.user,
        }  # fmt: skip
    elif kind == "declared":
        data["variables"] = [render.variable_data(item) for item in event.declared.variables]
        data["triggers"] = [{"name": item.trigger_id, "doc": item.doc} for item in event.declared.triggers]
    elif kind in ("change", "scheduled"):
        data[kind] = render.change_data(getattr(event, kind))
    elif kind == "cancelled":
        cancelled = event.cancelled
        data |= {
            "scheduled_revision": cancelled.scheduled_revision, "actor": cancelled.actor, "reason": cancelled.reason,
        }  # fmt: skip
    elif kind == "apply":
        data["apply"] = render.apply_data(event.apply)
    elif kind == "ended":
        data |= {
            "state": render.enum_word(types_pb2.JobState, event.ended.state, "JOB_STATE_"),
            "message": event.ended.message,
        }
    elif kind == "port_moved":
        data |= {"port": event.port_moved.port, "previous_port": event.port_moved.previous_port}
    elif kind == "removed":
        data |= {"actor": event.removed.actor, "reason": event.removed.reason}
    return data


def watch_data(response: control_pb2.WatchResponse) -> Data:
    """Return whatever a watch says; its `kind` tells what it is."""
    item = response.WhichOneof("item")
    if item == "event":
        return event_data(response.event)
    if item == "snapshot_begin":
        cause = render.enum_word(control_pb2.SnapshotCause, response.snapshot_begin.cause, "SNAPSHOT_CAUSE_")
        return {"kind": item, "cause": cause, "store_id": response.store_id}
    if item == "snapshot_job":
        job = response.snapshot_job
        return {"kind": item, "job": render.leaf(job.name), **render.whole_job_data(job)}
    if item == "bookmark":
        return {"kind": item, "revision": response.bookmark.revision, "store_id": response.store_id}
    return {"kind": "unknown"}


def event_words(event: control_pb2.Event) -> str:
    """Return what happened, in words."""
    kind = event.WhichOneof("kind")
    if kind == "registered":
        how = "took up run" if event.registered.resumed else "began run"
        return f"{how} {event.registered.run} as rank {event.registered.rank}, port {event.registered.port}"
    if kind == "declared":
        names = [item.spec.variable_id for item in event.declared.variables]
        names += [item.trigger_id for item in event.declared.triggers]
        return f"declared {safe(', '.join(names))}"
    if kind == "change":
        who = render.who_words(event.change.actor, render.reason_words(event.change))
        return f"{render.change_words(event.change)}  {who}"
    if kind == "scheduled":
        who = render.who_words(event.scheduled.actor, event.scheduled.reason)
        return f"{render.waiting_words(event.scheduled)}  {who}"
    if kind == "cancelled":
        who = render.who_words(event.cancelled.actor, event.cancelled.reason)
        return f"change {event.cancelled.scheduled_revision} does not wait any more  {who}"
    if kind == "apply":
        parts = [
            f"{safe(item.variable_id or item.trigger_id)} {render.status_words(item)}{render.used_words(item)}"
            for item in event.apply.outcomes
        ]
        rank = f" on rank {event.apply.rank}" if event.apply.rank else ""
        return f"{', '.join(parts)} at step {event.apply.step}{rank} (revision {event.apply.change_revision})"
    if kind == "ended":
        word = render.enum_word(types_pb2.JobState, event.ended.state, "JOB_STATE_")
        return f"{word}{f': {safe(event.ended.message)}' if event.ended.message else ''}"
    if kind == "port_moved":
        return f"port moved from {event.port_moved.previous_port} to {event.port_moved.port}"
    if kind == "removed":
        return f"forgotten  {render.who_words(event.removed.actor, event.removed.reason)}"
    return "something that this ltctl does not know"


def snapshot_words(job: types_pb2.Job, most: int) -> str:
    """Return a job of a snapshot in one line: what it is doing, and values.

    Args:
        job: The job.
        most: How many values are shown.
    """
    values = [f"{safe(item.spec.variable_id)} {_short(render.shown(item.desired))}" for item in job.variables[:most]]
    if len(job.variables) > most:
        values.append(f"{len(job.variables) - most} more")
    port = f", port {job.port}" if job.port else ""
    return f"{render.state(job)} at step {job.step}{port}{': ' if values else ''}{', '.join(values)}"


def _short(text: str) -> str:
    return text if len(text) <= _VALUE_LENGTH else f"{text[: _VALUE_LENGTH - 3]}..."
