"""Owns what became of a change so far: from the events of a watch or, where those are gone, from the job's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from livetune.v1 import control_pb2, types_pb2
from ltctl import render
from ltctl.exits import CommandError, Exit

_ENDED = (types_pb2.JOB_STATE_FINISHED, types_pb2.JOB_STATE_FAILED)
UNKNOWN = "changed again since; whether this was ever in effect is not kept any more"
ANY_RANK = -1
"""Stands for ranks that nobody can name: of what is known only from a job's state."""


@dataclass
class Applying:
    """For each name that is waited for, by rank, the outcome and the step at which it came."""

    wanted: Mapping[str, int]
    """By name of a variable or trigger: the revision of the change that is waited for."""
    ranks: Sequence[int]
    """The ranks that were connected when it was committed; empty if the job was away."""
    steps: dict[str, dict[int, int]] = field(default_factory=dict)
    """Lacks what is known to have come, but not when."""
    outcomes: dict[str, dict[int, types_pb2.Outcome]] = field(default_factory=dict)

    def take_event(self, event: control_pb2.Event) -> None:
        """Note what an event says.

        Raises:
            CommandError: The job ended, or was removed, before it applied all.
        """
        kind = event.WhichOneof("kind")
        if kind == "apply":
            self._take_apply(event.apply)
        elif kind == "ended":
            raise self.too_late("ended")
        elif kind == "removed":
            raise self.too_late("was removed")

    def conclude(self, changes: Sequence[types_pb2.Change], job: types_pb2.Job | None) -> None:
        """Learn without events what became of it.

        Args:
            changes: Those of the changes waited for that the history still keeps, with what was acknowledged of them.
            job: The job's state, None if it is no more.

        Raises:
            CommandError: The job ended, or was removed, before it applied all.
        """
        for change in changes:
            for apply in change.applies:
                self._take_apply(apply)
        if job is not None:
            self._take_state(job)
        if not self.done and (job is None or job.state in _ENDED):
            raise self.too_late("was removed" if job is None else "ended")
        for change in changes:
            for name in change.lapsed_ids:
                if self.wanted.get(name) == change.revision:
                    self._note(name, ANY_RANK, types_pb2.APPLY_STATUS_SUPERSEDED)

    def _take_state(self, job: types_pb2.Job) -> None:
        for variable in job.variables:
            name = variable.spec.variable_id
            for item in variable.applied:
                if name in self.wanted and item.revision >= self.wanted[name]:
                    if item.revision == self.wanted[name]:
                        self._note(name, item.rank, types_pb2.APPLY_STATUS_APPLIED, item.step, item.value)
                    else:
                        self._note(name, item.rank, types_pb2.APPLY_STATUS_SUPERSEDED, reason=UNKNOWN)
        for trigger in job.triggers:
            name = trigger.spec.trigger_id
            if name in self.wanted and trigger.consumed == trigger.fired and trigger.revision >= self.wanted[name]:
                self._note(name, ANY_RANK, types_pb2.APPLY_STATUS_APPLIED, is_trigger=True)

    def _take_apply(self, apply: types_pb2.Apply) -> None:
        for outcome in apply.outcomes:
            name = outcome.variable_id or outcome.trigger_id
            if self.wanted.get(name) == apply.change_revision:
                self.steps.setdefault(name, {})[apply.rank] = apply.step
                self.outcomes.setdefault(name, {})[apply.rank] = outcome

    def _note(
        self,
        name: str,
        rank: int,
        status: types_pb2.ApplyStatus.ValueType,
        step: int | None = None,
        effective: types_pb2.Value | None = None,
        *,
        reason: str = "",
        is_trigger: bool = False,
    ) -> None:
        if rank in self.outcomes.get(name, {}) or (rank == ANY_RANK and self.complete(name)):
            return  # an event has told more
        outcome = types_pb2.Outcome(status=status, effective=effective, reason=reason)
        setattr(outcome, "trigger_id" if is_trigger else "variable_id", name)
        self.outcomes.setdefault(name, {})[rank] = outcome
        if step is not None:
            self.steps.setdefault(name, {})[rank] = step

    def complete(self, name: str) -> bool:
        """Say whether every rank that is waited for has answered for a name; any rank, if the job was away."""
        answered = self.outcomes.get(name, {})
        if ANY_RANK in answered:
            return True
        return all(rank in answered for rank in self.ranks) if self.ranks else bool(answered)

    @property
    def done(self) -> bool:
        """Whether nothing is left to wait for."""
        return all(map(self.complete, self.wanted))

    @property
    def accepted(self) -> str:
        """Which change was accepted, in words."""
        return f"accepted as revision {max(self.wanted.values())}"

    def too_late(self, what: str) -> CommandError:
        """Build the error for a job that did something else before it applied the change."""
        return CommandError(Exit.NOT_APPLIED, f"{self.accepted}, but the job {what} before it applied it")

    def of(self, status: str) -> list[tuple[str, types_pb2.Outcome]]:
        """Return the outcomes of a status, as `render.status` names it, with the names they are of."""
        return [
            (name, outcome)
            for name, by_rank in self.outcomes.items()
            for outcome in by_rank.values()
            if render.status(outcome) == status
        ]
