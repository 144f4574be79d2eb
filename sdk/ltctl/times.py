"""Owns reading points in time as a person types them. Loads no gRPC."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

import click

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AGO = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?[smhdw])+", re.ASCII)
_PART = re.compile(r"([0-9.]+)([smhdw])")
# Every Python from 3.10 on reads this much of ISO 8601 alike, but for the Z and the fraction, which are unfolded.
_ISO = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[T ]([0-9]{2}:[0-9]{2})(:[0-9]{2})?(?:\.([0-9]{1,6})[0-9]*)?"
    r"(?:([Zz])|([+-][0-9]{2}):?([0-9]{2})?)?)?",
    re.ASCII,
)

TIME_HELP = "2026-11-24, 2026-11-24T14:30 (of this machine's zone, or with Z or +01:00), or how long ago: 30m, 2h, 3d"


def moment(text: str, now: datetime | None = None) -> datetime:
    """Read a point in time.

    Args:
        text: ISO 8601, a date or a date with a time, without an offset in the time of this machine; or how long ago it
            was, as in `90s`, `30m`, `2h`, `1h30m`, `3d`, `2w`.
        now: What "ago" counts from; the present if None.

    Returns:
        The time, in UTC.

    Raises:
        click.BadParameter: It is neither, or no time that a calendar has.
    """
    text = text.strip()
    try:
        if _AGO.fullmatch(text):
            ago = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
            return (now or datetime.now(timezone.utc)).astimezone(timezone.utc) - timedelta(seconds=ago)
        if found := _ISO.fullmatch(text):
            return datetime.fromisoformat(_unfolded(found)).astimezone(timezone.utc)
    except (ValueError, OverflowError, OSError) as error:
        raise click.BadParameter(f"{text!r} is no time that can be: {error}") from None
    raise click.BadParameter(f"{text!r} is not a time: write {TIME_HELP}")


def _unfolded(found: re.Match[str]) -> str:
    date, time, seconds, fraction, utc, hours, minutes = found.groups()
    if time is None:
        return date
    offset = "+00:00" if utc else f"{hours}:{minutes or '00'}" if hours else ""
    return f"{date}T{time}{seconds or ':00'}.{(fraction or '').ljust(6, '0')}{offset}"
