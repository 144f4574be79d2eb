"""A training process as the contract sees it, without the SDK: so that the daemon is tested against the contract itself."""

from __future__ import annotations

import queue
import uuid
from collections.abc import Iterator

import grpc

from livetune.v1 import job_pb2, job_pb2_grpc, types_pb2


def float_spec(
    name: str, initial: float, minimum: float | None = None, maximum: float | None = None
) -> types_pb2.VariableSpec:
    spec = types_pb2.VariableSpec(variable_id=name, type=types_pb2.VARIABLE_TYPE_FLOAT)
    spec.initial.float_value = initial
    if minimum is not None:
        spec.minimum.float_value = minimum
    if maximum is not None:
        spec.maximum.float_value = maximum
    return spec


class Process:
    """Registers, opens a session and speaks when told to."""

    def __init__(
        self, channel: grpc.Channel, job: str, instance_id: str = "", rank: int = 0, world_size: int = 1
    ) -> None:
        self._stub = job_pb2_grpc.JobServiceStub(channel)
        self.job = f"jobs/{job}"
        self.instance_id = instance_id or uuid.uuid4().hex
        self.rank = rank
        self.world_size = world_size
        self.token = ""
        self.latest_only = False
        self.registration: job_pb2.RegisterResponse | None = None
        self._up: queue.SimpleQueue[job_pb2.SessionRequest | None] = queue.SimpleQueue()
        self._down: Iterator[job_pb2.SessionResponse] | None = None

    def register(self) -> job_pb2.RegisterResponse:
        self.registration = self._stub.Register(
            job_pb2.RegisterRequest(
                job=self.job, instance_id=self.instance_id, rank=self.rank, world_size=self.world_size,
                process=types_pb2.Process(host="testhost", pid=42, user="tester"), job_token=self.token,
            ),
            timeout=10,
        )  # fmt: skip
        self.token = self.registration.job_token
        return self.registration

    def open(self, after_revision: int | None = None) -> job_pb2.SessionOpened:
        assert self.registration is not None
        after = self.registration.revision if after_revision is None else after_revision
        opening = job_pb2.SessionOpen(
            job=self.job, instance_id=self.instance_id, rank=self.rank, after_revision=after, job_token=self.token,
            latest_only=self.latest_only,
        )  # fmt: skip
        self._up.put(job_pb2.SessionRequest(open=opening))
        self._down = self._stub.Session(iter(self._up.get, None), timeout=60)
        return self.expect("opened").opened

    def join(self) -> job_pb2.SessionOpened:
        """Registers and opens the session."""
        self.register()
        return self.open()

    def send(self, **message: object) -> None:
        self._up.put(job_pb2.SessionRequest(**message))

    def expect(self, kind: str) -> job_pb2.SessionResponse:
        """Returns the next response, which must be of the kind."""
        assert self._down is not None
        response = next(self._down)
        assert kind == response.WhichOneof("message"), response
        return response

    def declare(self, *specs: types_pb2.VariableSpec, triggers: tuple[str, ...] = ()) -> job_pb2.DeclareResult:
        declare = job_pb2.Declare(
            variables=[job_pb2.VariableDeclaration(spec=spec, current=spec.initial) for spec in specs],
            triggers=[types_pb2.TriggerSpec(trigger_id=name) for name in triggers],
        )
        self.send(declare=declare)
        return self.expect("declared").declared

    def apply(self, change: types_pb2.Change, step: int) -> None:
        """Acknowledges a change as applied whole, firings included."""
        for firing in change.firings:
            outcome = types_pb2.Outcome(trigger_id=firing.trigger_id, status=types_pb2.APPLY_STATUS_APPLIED)
            self.send(apply=job_pb2.ApplyReport(change_revision=change.revision, step=step, outcomes=[outcome]))
            self.expect("apply_recorded")
        if change.assignments:
            outcomes = [
                types_pb2.Outcome(
                    variable_id=item.variable_id, status=types_pb2.APPLY_STATUS_APPLIED, effective=item.new_value
                )
                for item in change.assignments
            ]
            self.send(apply=job_pb2.ApplyReport(change_revision=change.revision, step=step, outcomes=outcomes))
            self.expect("apply_recorded")

    def close(self) -> None:
        """Ends the stream without an `end`, as a process that was killed."""
        self._up.put(None)
        if self._down is not None:
            self._down.cancel()  # type: ignore[attr-defined]
