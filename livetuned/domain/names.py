"""Names of jobs, variables and triggers: the rules, resource names, and the nearest name to a typing error."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import lru_cache

from livetuned.domain import limits
from livetuned.domain.errors import DomainError, Reason

_JOB = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_IDENTIFIERS = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_SERIES = re.compile(r"[A-Za-z_][A-Za-z0-9_]*([./][A-Za-z0-9_]+)*")

JOB_RULE = "1 to 63 of a-z, 0-9 and '-', not starting or ending with '-'"
"""The rule for job names, in words."""

IDENTIFIER_RULE = f"identifiers joined by dots, such as 'lr' or 'lc.strength', at most {limits.NAME_BYTES} bytes"
"""The rule for names of variables and triggers, in words."""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def check_job_name(name: str) -> str:
    """Returns the job name if it keeps `JOB_RULE`.

    Raises:
        DomainError: INVALID_NAME.
    """
    if not _JOB.fullmatch(name):
        raise DomainError(
            Reason.INVALID_NAME,
            f"job name {_shown(name)} is not allowed: {JOB_RULE}",
            job=name[:200],
            rule=JOB_RULE,
        )
    return name


def check_identifier(kind: str, name: str) -> str:
    """Returns the name of a variable or trigger if it keeps `IDENTIFIER_RULE`.

    Args:
        kind: ``"variable"`` or ``"trigger"``, for the message.
        name: The name to check.

    Raises:
        DomainError: INVALID_NAME.
    """
    if len(name) > limits.NAME_BYTES or not _IDENTIFIERS.fullmatch(name):
        raise DomainError(
            Reason.INVALID_NAME,
            f"{kind} name {_shown(name)} is not allowed: {IDENTIFIER_RULE}",
            rule=IDENTIFIER_RULE,
            **{kind: name[:200]},
        )
    return name


def is_series_name(name: str) -> bool:
    """Tells whether a name may be that of a series: parts of letters, digits and '_', joined by '.' or '/'.

    Parts after the first may begin with a digit, as PyTorch's names of parameters do: ``grad/features.0.weight``.
    """
    return len(name) <= limits.NAME_BYTES and _SERIES.fullmatch(name) is not None


def job_resource(job: str) -> str:
    """``jobs/{job}``."""
    return f"jobs/{job}"


def variable_resource(job: str, variable: str) -> str:
    """``jobs/{job}/variables/{variable}``."""
    return f"jobs/{job}/variables/{variable}"


def trigger_resource(job: str, trigger: str) -> str:
    """``jobs/{job}/triggers/{trigger}``."""
    return f"jobs/{job}/triggers/{trigger}"


@lru_cache(maxsize=1_000)
def parse_job_resource(resource: str) -> str:
    """Returns the job's name out of ``jobs/{job}``.

    Raises:
        DomainError: INVALID_NAME.
    """
    collection, separator, job = resource.partition("/")
    if collection != "jobs" or not separator:
        raise DomainError(
            Reason.INVALID_NAME, f"{_shown(resource)} is not a job's resource name: jobs/JOB", rule="jobs/JOB"
        )
    return check_job_name(job)


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Returns the candidate most like the name, or ``""`` if none is like it."""
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    return close[0] if close else ""
