"""Variables in children of the job's process: what was written last, whole, whatever becomes of the writer."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import livetune
from livetune import shared
from livetune.messages import Assign
from livetune.shared import WorkerVariable
from livetune.variable import Variable
from support.daemon import eventually
from support.forking import Child, in_child

LONG = 64 * 1024


@pytest.fixture
def job() -> Iterator[livetune.Job]:
    """A job without a daemon."""
    with livetune.init("shared", endpoint="unix:/nowhere") as job:
        yield job


def put(job: livetune.Job, variable: Variable[Any], value: Any, revision: int = 1, step: int = 1) -> None:
    """Does what the job does at its safe point."""
    job._page.put(variable, Assign(variable.name, value, revision, step, value != variable.value))


def sees(variable: Variable[Any], value: object) -> tuple[Any, int, int]:
    """Waits, in a child, until a variable has a value; returns its state."""
    eventually(lambda: variable.value == value)
    return variable.value, variable.revision, variable.applied_step


@pytest.mark.parametrize(
    ("initial", "value"),
    [(0.1, 1e-300), (3, -(2**63)), (False, True), ("a", "ä" * (LONG // 2)), ("", "x"), ("full", "")],
)
def test_a_forked_child_reads_what_is_written_after_the_fork(job: livetune.Job, initial: Any, value: Any) -> None:
    x = job.variable("x", initial)
    child = Child(lambda: (*sees(x, value), type(x.value)))
    put(job, x, value, 7, 42)
    assert (value, 7, 42, type(initial)) == child.result()


def test_a_grandchild_reads_it_too(job: livetune.Job) -> None:
    x = job.variable("x", 0.1)
    child = Child(lambda: in_child(lambda: in_child(lambda: sees(x, 0.5))))
    put(job, x, 0.5, 7, 42)
    assert (0.5, 7, 42) == child.result()


def test_in_a_child_it_is_the_variable_that_it_was(job: livetune.Job) -> None:
    x = job.variable("x", 0.1, min=0.0, unit="1/step")

    def facts() -> list[object]:
        again = pickle.loads(pickle.dumps(x))
        return [
            type(x) is WorkerVariable, isinstance(x, livetune.Variable), x(), x * 2, 2 - x, x < 1, x == 0.5, float(x),
            f"{x:.2f}", hash(x) == object.__hash__(x), copy.deepcopy([x])[0] is x, repr(x), x.name, x.min, bool(x),
            type(again) is WorkerVariable, again.value, again.revision, again.name, job.variables["x"] is x,
        ]  # fmt: skip

    put(job, x, 0.5, 7, 42)
    text = "<Variable x=0.5 1/step, min=0.0, revision 7 since step 42>"
    told = in_child(facts)
    assert [
        True, True, 0.5, 1.0, 1.5, True, True, 0.5, "0.50", True, True, text, "x", 0.0, True, True, 0.5, 7, "x", True
    ] == told  # fmt: skip
    assert text == repr(x)
    assert Variable is type(x)


def test_it_is_not_assigned_to_in_a_child(job: livetune.Job) -> None:
    x = job.variable("x", 0.1)

    def refusal() -> str:
        with pytest.raises(AttributeError, match="ltctl set JOB x=2") as error:
            x.value = 2.0
        return str(error.value)

    assert "'x'" in in_child(refusal)


def test_changed_is_told_once_in_each_process(job: livetune.Job) -> None:
    x = job.variable("x", 0.1)
    y = job.variable("y", 0.1)
    put(job, x, 0.2)

    asked, asks = os.pipe()

    def told() -> list[bool]:
        first = [x.changed(), x.changed(), y.changed()]
        os.write(asks, b".")
        sees(y, 0.3)
        return [*first, y.changed(), y.changed(), x.changed()]

    child = Child(told)
    os.read(asked, 1)
    put(job, x, 0.2, 2, 2)  # the same value
    put(job, y, 0.3, 3, 3)
    assert [True, False, False, True, False, False] == child.result()
    assert [True, False] == [y.changed(), y.changed()]
    os.close(asked)
    os.close(asks)


def test_a_variable_declared_after_the_fork_is_not_known_there_and_is_in_the_next_child(job: livetune.Job) -> None:
    x = job.variable("x", 0.1)
    ready, go = os.pipe()
    child = Child(lambda: (os.read(ready, 1), list(job.variables), sees(x, 0.5)[0])[1:])
    late = job.variable("late", "a")
    os.write(go, b".")
    put(job, x, 0.5)
    assert (["x"], 0.5) == child.result()
    second = Child(lambda: (sees(late, "b")[0], sees(x, 0.6)[0]))
    put(job, late, "b")
    put(job, x, 0.6)
    assert ("b", 0.6) == second.result()
    os.close(ready)
    os.close(go)


def test_there_is_room_for_any_number(job: livetune.Job) -> None:
    texts = [job.variable(f"t{number}", "") for number in range(20)]
    numbers = [job.variable(f"n{number}", number) for number in range(200)]
    modes = [job.variable(f"m{number}", "on", choices=["on", "off"]) for number in range(20)]

    def all_of_them() -> list[object]:
        sees(modes[-1], "off")
        return [variable.value for variable in (*texts, *numbers, *modes)]

    child = Child(all_of_them)
    for number, variable in enumerate(texts):
        put(job, variable, str(number) * 30_000)
    for number, count in enumerate(numbers):
        put(job, count, -number)
    for mode in modes:
        put(job, mode, "off")
    expected = [*(str(n) * 30_000 for n in range(20)), *(-n for n in range(200)), *(["off"] * 20)]
    assert expected == child.result()


def test_without_children_there_is_no_memory_and_the_parent_reads_a_slot(job: livetune.Job) -> None:
    x = job.variable("x", 0.1)
    put(job, x, 0.5)
    assert [] == job._page._segments
    in_child(lambda: x.value)
    assert 1 == len(job._page._segments)
    assert "member" in type(Variable.__dict__["value"]).__name__
    assert Variable is type(x)


def test_where_the_system_gives_no_memory_children_keep_the_values_they_start_with(
    job: livetune.Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none() -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(shared, "_memory_file", none)
    x, y = job.variable("x", 0.1), job.variable("y", 0.2)
    put(job, x, 0.5)
    assert (0.5, 0.2, Variable) == in_child(lambda: (x.value, pickle.loads(pickle.dumps(y)).value, type(x)))
    assert 1 == len([record for record in caplog.records if "Too many open files" in record.message])
    put(job, x, 0.6)
    assert 0.6 == x.value


def test_an_old_kernel_without_the_newest_flag_will_do(job: livetune.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    make = os.memfd_create

    def old(name: str, flags: int) -> int:
        if flags & 0x8:
            raise OSError(22, "Invalid argument")
        return make(name, flags)

    monkeypatch.setattr(os, "memfd_create", old)
    x = job.variable("x", 0.1)
    child = Child(lambda: sees(x, 0.5))
    put(job, x, 0.5, 7, 42)
    assert (0.5, 7, 42) == child.result()


# -- pickles --


def test_a_pickle_is_an_inert_copy_in_the_process_itself(job: livetune.Job) -> None:
    x = job.variable("x", 0.1)
    loaded = pickle.loads(pickle.dumps(x))
    put(job, x, 0.5)
    assert (0.1, Variable) == (loaded.value, type(loaded))
    assert 0.1 == pickle.loads(pickle.dumps(loaded)).value


CHILD = "import pickle, sys; x = pickle.load(sys.stdin.buffer); print(type(x).__name__, x.value, x.changed())"


def load_elsewhere(pickled: bytes) -> str:
    return subprocess.run([sys.executable, "-c", CHILD], input=pickled, capture_output=True, check=True).stdout.decode()


def test_a_pickle_is_current_in_a_descendant(job: livetune.Job) -> None:
    x = job.variable("x", 0.1)
    pickled = pickle.dumps(x)
    put(job, x, 0.5)
    assert ["WorkerVariable", "0.5", "False"] == load_elsewhere(pickled).split()


def test_a_pickle_is_an_inert_copy_for_who_is_no_descendant_and_after_the_end() -> None:
    owner = (
        "import livetune, pickle, sys\n"
        "job = livetune.init('owner', endpoint='unix:/nowhere')\n"
        "sys.stdout.buffer.write(pickle.dumps(job.variable('x', 0.1))); sys.stdout.flush(); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", owner], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        x = pickle.load(process.stdout)
        assert (0.1, Variable) == (x.value, type(x))
        pickled = pickle.dumps(x)
        process.communicate(timeout=30)
    assert ["Variable", "0.1", "False"] == load_elsewhere(pickled).split()


@pytest.mark.parametrize(
    "wrong", [{"pid": 2**22 + 1}, {"fd": 1}, {"fd": 999_999}, {"nonce": b"?" * 16}, {"size": 1 << 30}]
)
def test_a_place_that_is_not_there_any_more_gives_an_inert_copy(job: livetune.Job, wrong: dict[str, Any]) -> None:
    x = job.variable("x", 0.1)
    place = job._page.place_of(x)
    assert place is not None

    def loaded(where: shared.Place) -> tuple[float, type]:
        shared._attached.clear()
        y = shared.restore(x._spec, 0.1, 0, 0, where)
        return y.value, type(y)

    assert (0.1, Variable) == in_child(lambda: loaded(place._replace(**wrong)))
    assert (0.1, WorkerVariable) == in_child(lambda: loaded(place))


def test_what_is_loaded_in_a_child_can_be_handed_on(job: livetune.Job) -> None:
    x = job.variable("x", 0.1)
    pickled = pickle.dumps(x)

    def hand_on() -> str:
        return load_elsewhere(pickle.dumps(pickle.loads(pickled)))

    child = Child(hand_on)
    put(job, x, 0.5)
    assert "WorkerVariable 0.5" in child.result()


# -- never torn --


def _tears(job: livetune.Job, writes: int) -> int:
    """Hammers two variables while two children read them; returns how many reads were not of one safe point."""
    text, number = job.variable("text", "a" * LONG), job.variable("number", 0.0)
    stop = job.variable("stop", False)
    deadline = time.monotonic() + 60  # a test that fails must not leave children behind that read for ever

    def reads() -> tuple[int, int, int]:
        torn = done = backwards = last = 0
        while not stop.value and time.monotonic() < deadline:
            seen = number._shared.latest()  # type: ignore[union-attr]
            torn += not seen.value == seen.revision == seen.step
            backwards += seen.revision < last
            last = seen.revision
            letters = text.value
            torn += letters != letters[:1] * LONG
            done += 1
        return torn, done, backwards

    children = [Child(reads) for _ in range(2)]
    for write in range(1, writes):
        put(job, number, float(write), write, write)
        put(job, text, "abcdefgh"[write % 8] * LONG, write, write)
    put(job, stop, True)
    results = [child.result() for child in children]
    assert all(done > 100 for _, done, _ in results), results
    return sum(torn + backwards for torn, _, backwards in results)


def test_a_reader_never_sees_halves(job: livetune.Job) -> None:
    assert 0 == _tears(job, 20_000)


def test_control_one_record_without_a_check_is_torn(job: livetune.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_half", lambda sequence: 0)
    monkeypatch.setattr(shared, "_is_whole", lambda record, sequence: True)
    assert _tears(job, 20_000) > 0


class _Killed(BaseException):
    pass


class _Dying:
    """Memory whose writer is killed after so many bytes of its next record."""

    def __init__(self, memory: Any, after: int) -> None:
        self._memory, self._after = memory, after

    def __setitem__(self, where: slice, data: bytes) -> None:
        self._memory[where.start : where.start + self._after] = data[: self._after]
        raise _Killed


@pytest.mark.parametrize("after", [0, 4, 12, 40, 41, 20_000])
def test_a_writer_killed_at_any_moment_leaves_the_last_value(job: livetune.Job, after: int) -> None:
    x = job.variable("x", "a" * LONG)
    in_child(lambda: None)
    put(job, x, "b" * LONG, 2, 2)
    segment = job._page._segments[0]
    whole = segment.memory
    segment.memory = _Dying(whole, after)  # type: ignore[assignment]
    with pytest.raises(_Killed):
        put(job, x, "c" * LONG, 3, 3)
    segment.memory = whole

    def state() -> tuple[bool, int]:
        reader = x._shared
        reader.seen = reader.seen._replace(sequence=0, value="never read")  # type: ignore[union-attr]
        return x.value == "b" * LONG, x.revision

    assert (True, 2) == in_child(state)


def test_nothing_is_left_when_the_job_is_gone() -> None:
    gc.collect()
    before = _shared_files()
    for number in range(3):
        with livetune.init(f"gone-{number}", endpoint="unix:/nowhere") as job:
            x = job.variable("x", 0.1)
            in_child(lambda x=x: x.value)
            assert _shared_files() > before
        del job, x
        gc.collect()
    assert before == _shared_files()


def _shared_files() -> int:
    return sum("memfd:livetune" in os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir())
