"""What `job.log` takes, refuses and hands on: plain numbers, tensors of every place, names, bounds, breaks."""

from __future__ import annotations

import logging
import math
import sys
import threading
import types
from typing import Any

import numpy as np
import pytest
import torch

import livetune
from livetune import logged as module
from livetune import messages as m
from livetune.conversation import Identity
from livetune.job import Job
from livetune.logged import SERIES, Logged
from livetune.session import Session
from livetune.wire import request_from_message


@pytest.fixture
def job() -> Job:
    made = Job(Identity("logs", "instance", 0, 1), endpoint="unix:/nowhere/d.sock")
    made.step(7)
    return made


def taken(job: Job) -> dict[str, float]:
    return {sample.name: sample.value for sample in job._logged.take()[0]}


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0.5, 0.5), (3, 3.0), (True, 1.0), (np.float32(0.5), 0.5), (np.float64(0.25), 0.25), (np.int64(7), 7.0),
        (np.bool_(True), 1.0), (np.array(2.0), 2.0), (torch.tensor(0.5), 0.5), (torch.tensor([0.5]), 0.5),
        (torch.tensor(0.5, requires_grad=True) * 2, 1.0), (torch.tensor(3), 3.0), (torch.tensor(True), 1.0),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5), (math.inf, math.inf), (-math.inf, -math.inf), (2**60, 2.0**60),
    ],
)  # fmt: skip
def test_numbers_of_every_kind_are_taken_at_once(job: Job, value: Any, number: float) -> None:
    job.log(x=value)
    job.log(x=value)
    (sample,), refused = job._logged.take()
    assert (m.Sample("x", 7, number), float, 0) == (sample, type(sample.value), refused)


def test_nan_is_a_value(job: Job) -> None:
    job.log(loss=math.nan)
    assert math.isnan(taken(job)["loss"])


def test_a_cpu_tensor_that_is_changed_later_was_taken_as_it_was(job: Job) -> None:
    loss = torch.tensor(1.0)
    job.log(loss=loss)
    loss.fill_(2.0)
    assert {"loss": 1.0} == taken(job)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        ([0.5], TypeError, r"'loss' must be a number .* got \[0.5\] of type list"),
        ("0.5", TypeError, "'loss' must be a number .* got '0.5' of type str"),
        (None, TypeError, "got None of type NoneType"),
        (1j, TypeError, "got 1j of type complex"),
        (torch.zeros(2, 3), TypeError, r"'loss' must be one number, got a tensor of shape \(2, 3\)"),
        (torch.tensor(1j), TypeError, "got 1j of type complex"),
        (np.zeros(1), TypeError, "must be a number"),
        (np.array("a"), TypeError, "must be a number"),
        (10**400, ValueError, "'loss' must fit a 64-bit float, got an int of 1329 bits"),
        ("x" * 1_000, TypeError, "xxx... of type str"),
    ],
)
def test_what_is_no_number_is_refused_by_name_rule_and_value(
    job: Job, value: object, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        job.log(loss=value)
    assert {} == taken(job)


@pytest.mark.parametrize("name", ["loss", "val/loss", "a.b/c_1", "grad/features.0.weight", "x" * 200])
def test_names(job: Job, name: str) -> None:
    job.log({name: 1.0})
    assert {name: 1.0} == taken(job)


@pytest.mark.parametrize("name", ["", "1a", "a b", "a//b", "/a", "a.", "x" * 201, "ä", "a\n", 5])
def test_names_that_are_none(job: Job, name: Any) -> None:
    with pytest.raises(livetune.InvalidNameError, match="not beginning with a digit, of 1 to 200 bytes"):
        job.log({name: 1.0})


def test_a_dictionary_and_words_together(job: Job) -> None:
    job.log({"val/loss": 1, "a": 1.0}, a=2.0, values=3.0, self=4.0)
    assert {"val/loss": 1.0, "a": 2.0, "values": 3.0, "self": 4.0} == taken(job)
    job.log()
    assert {} == taken(job)


def test_only_what_is_new_is_handed_on_with_the_step_at_which_it_was_logged(job: Job) -> None:
    job.log(a=1.0, b=1.0)
    job.step(8)
    job.log(a=2.0)
    assert ((m.Sample("a", 8, 2.0), m.Sample("b", 7, 1.0)), 0) == job._logged.take()
    assert ((), 0) == job._logged.take()
    job.log(a=2.0)
    assert {"a": 2.0} == taken(job)
    job._logged.repeat()
    assert {"a": 2.0, "b": 1.0} == taken(job)


def test_too_many_series_are_counted_and_told_of_once(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(10_000):
        job.log({f"s{number}": 1.0})
    job.log(s0=2.0)
    samples, refused = job._logged.take()
    assert (SERIES, 10_000 - SERIES, 2.0) == (len(samples), refused, samples[0].value)
    assert ["job logs: 200 series are logged, 's200' and any further one is not kept"] == caplog.messages
    assert 0 == job._logged.take()[1]


def test_after_the_end_and_in_a_forked_child_it_does_nothing(job: Job) -> None:
    job._become_inert()
    job.log(loss=1.0)
    job.finish()
    job.log(loss=2.0)


def test_threads_log_while_the_driver_takes(job: Job) -> None:
    stop = threading.Event()
    errors: list[BaseException] = []

    def write(prefix: str) -> None:
        number = 0
        try:
            while not stop.is_set():
                job.log({f"{prefix}{number % 50}": float(number)})
                number += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, the test fails with it
            errors.append(error)

    threads = [threading.Thread(target=write, args=(prefix,)) for prefix in "abc"]
    for thread in threads:
        thread.start()
    seen: dict[str, float] = {}
    for _ in range(200):
        for sample in job._logged.take()[0]:
            assert seen.get(sample.name, -1.0) < sample.value
            seen[sample.name] = sample.value
    stop.set()
    for thread in threads:
        thread.join()
    assert ([], 150) == (errors, len({**seen, **taken(job)}))


# -- tensors of a GPU, played by objects --


class Cuda:
    """A tensor in a GPU's memory: its copies arrive when the test says so, and reading it at once is a failure."""

    device = types.SimpleNamespace(type="cuda")

    def __init__(self, gpu: Gpu, value: float) -> None:
        self.gpu, self.value = gpu, value

    def numel(self) -> int:
        return 1

    def detach(self) -> Cuda:
        return self

    def reshape(self, shape: tuple[int, ...]) -> Cuda:
        assert () == shape
        return self

    def item(self) -> float:
        raise AssertionError("the GPU was waited for")


class Host:
    """Pinned memory."""

    def __init__(self, gpu: Gpu, value: float) -> None:
        self.gpu, self.value = gpu, value

    def fill_(self, value: float) -> None:
        self.value = value

    def copy_(self, tensor: Cuda, *, non_blocking: bool) -> None:
        assert non_blocking
        assert threading.current_thread() is self.gpu.training
        self.gpu.under_way.append((self, tensor.value))

    def item(self) -> float:
        return self.value


class Gpu:
    """Stands for the module torch."""

    float64 = torch.float64

    def __init__(self) -> None:
        self.training = threading.current_thread()
        self.under_way: list[tuple[Host, float]] = []
        self.capturing = False
        self.memory = True
        self.pinned = 0
        self.cuda = types.SimpleNamespace(is_current_stream_capturing=lambda: self.capturing)

    def empty(self, count: int, *, dtype: object, pin_memory: bool) -> list[Host]:
        assert (SERIES, self.float64, True) == (count, dtype, pin_memory)
        if not self.memory:
            raise RuntimeError("no pinned memory")
        self.pinned += 1
        return [Host(self, 0.0) for _ in range(count)]

    def arrive(self) -> None:
        for host, value in self.under_way:
            host.value = value
        self.under_way.clear()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    monkeypatch.setitem(sys.modules, "torch", gpu)  # type: ignore[arg-type]
    return gpu


def test_a_value_on_a_gpu_is_copied_and_not_waited_for(job: Job, gpu: Gpu) -> None:
    job.log(loss=Cuda(gpu, 1.0))
    assert {} == taken(job)
    gpu.arrive()
    assert {"loss": 1.0} == taken(job)
    assert {} == taken(job)


def test_series_on_a_gpu_do_not_share_their_room_and_memory_is_pinned_once(job: Job, gpu: Gpu) -> None:
    values = {f"s{number}": float(number) for number in range(SERIES)}
    job.log({name: Cuda(gpu, value) for name, value in values.items()})
    job.log(more=Cuda(gpu, 1.0))
    gpu.arrive()
    assert (values, 1) == (taken(job), gpu.pinned)


def test_a_copy_begins_once_the_one_before_was_taken_and_the_newest_comes_in_the_end(job: Job, gpu: Gpu) -> None:
    for number in range(100):
        job.step(number)
        job.log(loss=Cuda(gpu, float(number)))
    assert 1 == len(gpu.under_way)
    gpu.arrive()
    assert (m.Sample("loss", 0, 0.0),) == job._logged.take()[0]
    job.log(other=1.0)  # whatever is logged next takes the newest along
    assert [99.0] == [value for _, value in gpu.under_way]
    gpu.arrive()
    assert {m.Sample("loss", 99, 99.0), m.Sample("other", 99, 1.0)} == set(job._logged.take()[0])
    job.log(loss=Cuda(gpu, 5.0))
    assert 1 == len(gpu.under_way)


def test_while_a_graph_is_captured_nothing_is_copied(job: Job, gpu: Gpu) -> None:
    gpu.capturing = True
    job.log(loss=Cuda(gpu, 1.0))
    assert {} == taken(job)
    job.log(loss=Cuda(gpu, 2.0))
    assert [] == gpu.under_way
    gpu.capturing = False
    assert {} == taken(job)
    job.log()
    gpu.arrive()
    assert {"loss": 2.0} == taken(job)


def test_without_pinned_memory_it_is_told_once_and_training_goes_on(
    job: Job, gpu: Gpu, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.memory = False
    for _ in range(3):
        job.log(loss=Cuda(gpu, 1.0))
    assert ["job logs: a value logged as 'loss' can't be read: RuntimeError: no pinned memory"] == caplog.messages
    assert ((), 3) == job._logged.take()


def test_the_end_waits_a_moment_for_what_is_under_way(job: Job, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    job.log(loss=Cuda(gpu, 1.0))
    job.log(loss=Cuda(gpu, 2.0))
    monkeypatch.setattr(module.time, "sleep", lambda _: gpu.arrive())
    job._logged.settle(10.0)
    assert {"loss": 2.0} == taken(job)
    job.log(loss=Cuda(gpu, 3.0))
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    job._logged.settle(0.01)  # what does not come is not waited for
    assert {} == taken(job)


class Elsewhere:
    """A number of another library, which may still be computed."""

    ndim = 0

    def __init__(self, value: object) -> None:
        self.value = value

    def item(self) -> object:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def test_a_number_of_another_library_is_read_by_the_driver(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "livetune")
    job.log(a=Elsewhere(0.5), b=Elsewhere(RuntimeError("gone")), c=1.0)
    assert {"a": 0.5, "c": 1.0} == taken(job)
    assert ["job logs: a value logged as 'b' can't be read: RuntimeError: gone"] == caplog.messages


# -- the session --


def opened(takes: bool) -> tuple[Session, Logged]:
    logged = Logged()
    session = Session(logged=logged)
    logged.put({"loss": 0.5}, 3)
    assert [] == session.handle(m.Tick(3))
    session.handle(m.Registered("store", 1, 21_000, 10))
    session.handle(m.Opened("store", 10, takes))
    return session, logged


SENT = m.Send(m.Metrics((m.Sample("loss", 3, 0.5),), 0))


def test_a_session_sends_what_is_new_and_everything_after_a_break_and_before_the_end() -> None:
    session, logged = opened(True)
    assert [SENT, m.Send(m.Progress(3))] == session.handle(m.Tick(3))
    assert [] == session.handle(m.Tick(3))
    session.handle(m.Disconnected())
    logged.put({"loss": 0.4}, 4)
    assert [] == session.handle(m.Tick(4))
    session.handle(m.Registered("store", 1, 21_000, 10))
    session.handle(m.Opened("store", 10, True))
    assert m.Send(m.Metrics((m.Sample("loss", 4, 0.4),), 0)) == session.handle(m.Tick(-1))[0]
    logged.put({"loss": 0.5}, 3)
    end = m.Send(m.End(False, "", 5))
    assert [SENT, end] == session.handle(m.Finish(False, "", 5))
    session.handle(m.Disconnected())
    session.handle(m.Registered("store", 1, 21_000, 10))
    assert [SENT, end] == session.handle(m.Opened("store", 10, True))


def test_a_daemon_that_does_not_know_metrics_is_sent_none() -> None:
    session, _ = opened(False)
    assert [m.Send(m.Progress(3))] == session.handle(m.Tick(3))
    assert [m.Send(m.End(False, "", 5))] == session.handle(m.Finish(False, "", 5))


def test_the_largest_message_fits() -> None:
    samples = tuple(m.Sample("x" * 200, 2**63 - 1, math.nan) for _ in range(SERIES))
    request = request_from_message(m.Metrics(samples, 2**40), job="j", instance_id="i", rank=0, token="t")
    assert (SERIES, 2**40) == (len(request.metrics.samples), request.metrics.refused)
    assert request.ByteSize() < 64 * 1024
