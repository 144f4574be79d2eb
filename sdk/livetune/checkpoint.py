"""Owns what of a job goes into a checkpoint, as plain data, and the reading of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from livetune.errors import CheckpointError
from livetune.messages import Restored, ScheduledChange
from livetune.specs import INT64_MAX, Scalar, VariableSpec

__all__ = ["Checkpoint"]

_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A job as it was at one step."""

    job: str
    store_id: str
    """The daemon's store that revisions belong to; "" if there was none."""
    run: int
    step: int
    variables: Mapping[str, tuple[Scalar, int]]
    """By name: value, and revision of the newest record of it that had been taken."""
    scheduled: tuple[ScheduledChange, ...]
    """Changes that wait for their step."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as dictionaries, lists, text and numbers, for `torch.save`, JSON or whatever keeps a checkpoint."""
        return {
            "version": _VERSION,
            "job": self.job,
            "store_id": self.store_id,
            "run": self.run,
            "step": self.step,
            "variables": {
                name: {"value": value, "revision": revision} for name, (value, revision) in self.variables.items()
            },
            "scheduled": [
                {
                    "revision": change.revision,
                    "step": change.step,
                    "values": dict(change.assignments),
                    "firings": list(change.firings),
                    "reason": change.reason,
                    "actor": change.actor,
                }
                for change in self.scheduled
            ],
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Checkpoint:
        """Read what `to_dict` returned.

        Raises:
            CheckpointError: It is something else, or of another version.
        """
        try:
            if state["version"] != _VERSION:
                raise CheckpointError(f"the version of a job's state must be {_VERSION}, got {state['version']!r}")
            variables = {
                str(name): (_scalar(name, item["value"]), _whole(item["revision"]))
                for name, item in state["variables"].items()
            }
            scheduled = tuple(
                ScheduledChange(
                    revision=_whole(item["revision"]),
                    step=_whole(item["step"]),
                    assignments=tuple((str(name), _scalar(name, value)) for name, value in item["values"].items()),
                    firings=tuple(map(str, item["firings"])),
                    reason=str(item["reason"]),
                    actor=str(item["actor"]),
                )
                for item in state["scheduled"]
            )
            return cls(
                str(state["job"]), str(state["store_id"]), _whole(state["run"]), _whole(state["step"]), variables,
                scheduled,
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"not a job's state: {error!r}") from error

    def restored(self, names: Iterable[str], *, scheduled: bool) -> Restored:
        """Return the event that it is for some of its variables, with or without the changes that wait."""
        variables = tuple((name, *self.variables[name]) for name in names)
        changes = self.scheduled if scheduled else ()
        return Restored(self.store_id, self.run, variables, changes, self.step)

    def check(self, specs: Iterable[VariableSpec]) -> None:
        """Check its values against what the program declares.

        Raises:
            CheckpointError: The declaration of a variable does not allow its value.
        """
        for spec in specs:
            if spec.name in self.variables:
                value, _ = self.variables[spec.name]
                if refusal := spec.refusal(value):
                    raise CheckpointError(f"the checkpoint's value is not allowed any more: {refusal}")


def _scalar(name: object, value: object) -> Scalar:
    if not isinstance(value, (bool, int, float, str)):
        raise TypeError(f"value of {name!r} is {value!r}")
    return value


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= INT64_MAX:
        raise TypeError(f"{value!r} is no whole number of 63 bits")
    return value
