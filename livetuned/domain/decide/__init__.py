"""Decisions: given a job's state and a wish, the payload of the record that grants it, or the reason why not.

Every function is pure. The engine calls them one after the other and commits what they return; whatever they raise is
the caller's answer, and nothing has happened.
"""

from livetuned.domain.decide.changes import (
    Update,
    check_same_firing,
    check_same_set,
    check_same_undo,
    find_change,
    fire_triggers,
    set_variables,
    undo,
)
from livetuned.domain.decide.common import check_id, job_not_found
from livetuned.domain.decide.processes import (
    Declaration,
    check_registered,
    declare,
    end,
    give_up,
    register,
    remove,
    report_apply,
)
from livetuned.domain.decide.scheduled import Kept, When, cancel, check_same_step, due, made_of, reschedule, schedule

__all__ = [
    "Declaration",
    "Kept",
    "Update",
    "When",
    "cancel",
    "check_id",
    "check_registered",
    "check_same_firing",
    "check_same_set",
    "check_same_step",
    "check_same_undo",
    "declare",
    "due",
    "end",
    "find_change",
    "fire_triggers",
    "give_up",
    "job_not_found",
    "made_of",
    "register",
    "remove",
    "report_apply",
    "reschedule",
    "schedule",
    "set_variables",
    "undo",
]
