"""Small builders for the domain, so that tests say only what matters to them."""

from __future__ import annotations

from livetuned.domain import decide
from livetuned.domain.job import Job, evolve
from livetuned.domain.records import Draft, Payload, Process, Record
from livetuned.domain.specs import TriggerSpec, VariableSpec
from livetuned.domain.values import Value, type_of

PROCESS = Process("host", 1, "user", "train.py", "0")


def spec(name: str, initial: Value, minimum: Value | None = None, maximum: Value | None = None) -> VariableSpec:
    return VariableSpec(name, type_of(initial), initial, minimum, maximum)


def draft(payload: Payload, job: str = "vgg", time_us: int = 1_000_000) -> Draft:
    return Draft(time_us, job, payload)


class JobLog:
    """A job that is moved by decisions, as the engine moves it."""

    def __init__(self, name: str = "vgg") -> None:
        self.name = name
        self.job: Job | None = None
        self.revision = 0

    def record(self, payload: Payload | None) -> Job:
        if payload is not None:
            self.revision += 1
            self.job = evolve(self.job, Record(self.revision, self.revision * 1_000_000, self.name, payload))
        assert self.job is not None
        return self.job

    def register(self, instance_id: str = "a", rank: int = 0, world_size: int = 1, port: int = 21000) -> Job:
        return self.record(
            decide.register(
                self.job, self.name, rank=rank, world_size=world_size, instance_id=instance_id, process=PROCESS,
                port=port, active_jobs=0,
            )
        )  # fmt: skip

    def declare(
        self, *specs: VariableSpec, triggers: tuple[str, ...] = (), instance_id: str = "a", rank: int = 0
    ) -> Job:
        assert self.job is not None
        declared, errors = decide.declare(
            self.job,
            rank,
            instance_id,
            [decide.Declaration(item, item.initial) for item in specs],
            [TriggerSpec(name) for name in triggers],
        )
        assert {} == errors
        return self.record(declared)

    def set(self, **texts: str) -> Job:
        assert self.job is not None
        return self.record(
            decide.set_variables(self.job, [decide.Update(name, text=text) for name, text in texts.items()])
        )
