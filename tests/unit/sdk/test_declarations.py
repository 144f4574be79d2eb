"""What may be declared: names, types, bounds; what is refused, and how it is said. No daemon, no thread."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest

import livetune
from livetune import DeclarationError, InvalidNameError, JobFinishedError
from livetune.conversation import Identity
from livetune.job import Job, _rank_from


def local_job() -> Job:
    """A job whose driver never runs."""
    return Job(Identity("local", "instance", 0, 1), endpoint="unix:/nowhere")


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a-", "x" * 64, "x" * 300, "ä", None, 3])
def test_bad_job_names(name: Any) -> None:
    with pytest.raises(InvalidNameError, match="1 to 63 lower-case letters"):
        livetune.init(name)


@pytest.mark.parametrize("name", ["", "a b", ".a", "a..b", "9", "a-b", "x" * 300, "lr\n", "é", None])
def test_bad_names_of_variables_and_triggers(name: Any) -> None:
    job = local_job()
    with pytest.raises(InvalidNameError, match="joined by dots"):
        job.variable(name, 1.0)
    with pytest.raises(InvalidNameError, match="joined by dots"):
        job.trigger(name)


@pytest.mark.parametrize(
    ("initial", "keywords", "words"),
    [
        (math.nan, {}, "finite, got nan"),
        (math.inf, {}, "finite, got inf"),
        (2.0, {"max": 1.0}, "at most 1.0, got 2.0"),
        (0, {"min": 1}, "at least 1, got 0"),
        (0.5, {"min": 2.0, "max": 1.0}, "min 2.0 is above max 1.0"),
        (0.5, {"min": math.nan}, "min must be finite"),
        (0.5, {"min": "a"}, "min must be a number"),
        (1, {"min": 0.5}, "min must be an int"),
        (True, {"min": 0}, "not for bool"),
        ("a", {"max": 1}, "not for str"),
        (1.0, {"choices": ["a"]}, "choices are for str"),
        ("a", {"choices": ["b", "c"]}, "one of 'b', 'c', got 'a'"),
        ("a", {"choices": []}, "one or more"),
        ("a", {"choices": ["a", "a"]}, "differ"),
        ("a", {"choices": "abc"}, "sequence"),
        (0.1, {"scale": "exponential"}, "'linear' or 'log'"),
        (0.0, {"scale": "log"}, "positive initial value"),
        (0.1, {"scale": "log", "min": 0.0}, "positive min"),
        ("a", {"scale": "log"}, "not for str"),
        (2**63, {}, "64 bits"),
        (None, {}, "float, int, bool or str"),
        ([1.0], {}, "float, int, bool or str"),
        ("x" * 70_000, {}, "65536 bytes"),
        ("\ud800", {}, "UTF-8"),
        (1.0, {"doc": 5}, "doc must be text"),
        (1.0, {"doc": "d" * 200_000}, "may take 200000 bytes"),
    ],
)
def test_declarations_that_are_wrong(initial: Any, keywords: dict[str, Any], words: str) -> None:
    job = local_job()
    with pytest.raises(DeclarationError, match=words) as caught:
        job.variable("x", initial, **keywords)
    assert "'x'" in str(caught.value)
    assert {} == dict(job.variables)


def test_the_same_declaration_gives_the_same_object_and_another_one_is_refused() -> None:
    job = local_job()
    lr = job.variable("lr", 0.1, min=0.0, doc="Learning rate.")
    assert job.variable("lr", 0.1, min=0.0, doc="Learning rate.") is lr
    with pytest.raises(DeclarationError, match=r"min 0.01 \(was 0.0\)"):
        job.variable("lr", 0.1, min=0.01, doc="Learning rate.")
    with pytest.raises(DeclarationError, match=r"type int \(was float\)"):
        job.variable("lr", 1)
    save = job.trigger("save")
    assert job.trigger("save") is save
    with pytest.raises(DeclarationError, match=r"a variable \(was a trigger\)"):
        job.variable("save", 1.0)


def test_numpy_numbers_become_plain_ones() -> None:
    np = pytest.importorskip("numpy")
    assert float is type(local_job().variable("lr", np.float64(0.1)).value)


def test_nothing_can_be_declared_after_the_end() -> None:
    job = livetune.init("ends", endpoint="unix:/nowhere/d.sock")
    lr = job.variable("lr", 0.1)
    job.finish()
    job.finish()
    with pytest.raises(JobFinishedError, match="'ends' has ended"):
        job.variable("wd", 0.1)
    job.step()
    assert (0.1, 1) == (lr.value, job.current_step)


def test_two_live_jobs_of_one_name_in_one_process() -> None:
    first = livetune.init("twice", endpoint="unix:/nowhere/d.sock")
    with pytest.raises(livetune.JobExistsError, match="'twice' is live in this process"):
        livetune.init("twice", endpoint="unix:/nowhere/d.sock")
    first.finish()
    livetune.init("twice", endpoint="unix:/nowhere/d.sock").finish()


@pytest.mark.parametrize("endpoint", ["nonsense", "unix:relative", "host:99999", "host:0"])
def test_an_endpoint_that_cannot_be_read_is_told_at_once(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(livetune.EndpointError, match="endpoint"):
        livetune.init("x", endpoint=endpoint)
    monkeypatch.setenv("LIVETUNE_ENDPOINT", endpoint)
    with pytest.raises(livetune.EndpointError):
        livetune.init("x")


def test_the_step_may_be_given() -> None:
    job = local_job()
    job.step(100)
    job.step()
    assert 101 == job.current_step


def test_ranks_as_torchrun_sets_them() -> None:
    assert (0, 1) == _rank_from({})
    assert (3, 4) == _rank_from({"RANK": "3", "WORLD_SIZE": "4"})
    for environ in ({"RANK": "x"}, {"RANK": "4", "WORLD_SIZE": "4"}, {"RANK": "-1"}):
        with pytest.raises(ValueError, match="RANK"):
            _rank_from(environ)


@pytest.mark.parametrize("step", [3.0, "3", [3]])
def test_a_step_that_is_no_whole_number_is_told_where_it_is_made(step: Any) -> None:
    job = local_job()
    with pytest.raises(TypeError, match="step must be a whole number"):
        job.step(step)
    assert 0 == job.current_step


@pytest.mark.parametrize("step", [-1, 2**63])
def test_a_step_that_the_wire_cannot_carry_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match="from 0 to 2"):
        local_job().step(step)


def test_a_step_may_be_any_integer() -> None:
    np = pytest.importorskip("numpy")
    job = local_job()
    job.step(np.int64(7))
    assert (7, int) == (job.current_step, type(job.current_step))


def test_a_forked_child_does_not_consume_what_the_parent_is_to_consume() -> None:
    job = local_job()
    save = job.trigger("save")
    save._show(1)
    child = os.fork()
    if child == 0:
        os._exit(int(save()))
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
