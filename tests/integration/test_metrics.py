"""What a job logs: from the program to the daemon, the page of metrics and ltctl; bounded, sampled, over breaks."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import yaml

import livetune
from livetune.v1 import control_pb2, job_pb2, types_pb2
from livetuned.domain import limits
from support.calls import get_job, set_values
from support.daemon import Daemon, eventually
from support.metrics import metric, page
from support.process import Process, float_spec
from support.programs import program
from support.shell import Shell, state_of


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon]) -> Daemon:
    return make_daemon("--job-ports", "25500-25509").start()


@pytest.fixture
def job(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[livetune.Job]:
    monkeypatch.setattr("livetune.driver.TICK_SECONDS", 0.05)
    with livetune.init("vgg", endpoint=daemon.target) as job:
        job.variable("lr", 0.1)
        assert job.wait_connected(20)
        yield job


@pytest.fixture
def process(daemon: Daemon) -> Iterator[Process]:
    """A process of the contract, rank 0 of 2."""
    with daemon.channel() as channel:
        process = Process(channel, "two", world_size=2)
        process.join()
        yield process
        process.close()


def get_metrics(daemon: Daemon, job: str = "vgg", target: str = "", **fields: object) -> control_pb2.GetMetricsResponse:
    request = control_pb2.GetMetricsRequest(job=f"jobs/{job}" if job else "", **fields)  # type: ignore[arg-type]
    with daemon.control(target) as control:
        return control.GetMetrics(request, timeout=10)


def newest(daemon: Daemon, job: str = "vgg") -> dict[str, float]:
    return {series.name: series.last_value for series in get_metrics(daemon, job).series}


def send(process: Process, *names: str, step: int = 1, value: float = 0.5, refused: int = 0) -> None:
    samples = [job_pb2.MetricSample(name=name, step=step, value=value) for name in names]
    process.send(metrics=job_pb2.Metrics(samples=samples, refused=refused))


def heard(process: Process) -> None:
    """Waits until the daemon has read all that was sent: declarations are answered in their order."""
    process.declare()


def test_values_arrive_with_their_step_and_the_end_takes_the_last_along(daemon: Daemon, job: livetune.Job) -> None:
    for step in range(1, 4):
        job.step(step * 100)
        job.log({"val/loss": 1.0 / step}, loss=math.nan, epoch=step)
        eventually(lambda expected=step: newest(daemon).get("epoch") == expected)  # type: ignore[misc]
    series = {one.name: one for one in get_metrics(daemon).series}
    assert ["epoch", "loss", "val/loss"] == list(series)
    assert ([100, 200, 300], [1.0, 2.0, 3.0]) == (list(series["epoch"].point_steps), list(series["epoch"].point_values))
    assert (1.0 / 3, 1.0, 3, 0) == (
        series["val/loss"].minimum, series["val/loss"].maximum, series["val/loss"].samples, series["val/loss"].rank,
    )  # fmt: skip
    assert math.isnan(series["loss"].last_value)
    assert not series["loss"].HasField("minimum")
    assert sorted(series["epoch"].point_times_us) == list(series["epoch"].point_times_us)
    job.step(400)
    job.log(epoch=4)
    job.finish()
    assert 4.0 == newest(daemon)["epoch"]


def test_a_killed_daemon_forgets_the_course_and_learns_the_newest_values(daemon: Daemon, job: livetune.Job) -> None:
    for step in range(1, 4):
        job.step(step)
        job.log(loss=float(step), once=7.0)
        eventually(lambda expected=step: newest(daemon).get("loss") == expected)  # type: ignore[misc]
    daemon.kill()
    eventually(lambda: not job.connected, 20)
    for step in range(4, 1_000):
        job.step(step)
        job.log(loss=float(step))
    daemon.start()
    assert job.wait_connected(20)
    eventually(lambda: newest(daemon) == {"loss": 999.0, "once": 7.0})
    job.step(1_000)
    job.log(loss=1_000.0)
    eventually(lambda: newest(daemon)["loss"] == 1_000.0)
    loss, once = get_metrics(daemon).series
    # Nothing piled up meanwhile, and what was before is gone.
    assert ([999, 1_000], [3]) == (list(loss.point_steps), list(once.point_steps))


def test_ten_thousand_names_are_bounded_counted_and_told_of(
    daemon: Daemon, job: livetune.Job, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "livetune")
    for number in range(10_000):
        job.log({f"s{number}": 1.0})
    eventually(lambda: get_metrics(daemon).dropped == 9_800)
    assert limits.SERIES_PER_RANK == len(get_metrics(daemon).series) == 200
    assert 1 == len([text for text in caplog.messages if "not kept" in text])
    assert 9_800.0 == metric(daemon, "livetune_job_metric_samples_dropped_total", reason="program")
    assert 200.0 == metric(daemon, "livetune_job_metric", job="vgg", rank="0")
    assert "rank 0 logs more than is kept" in daemon.log
    assert job.connected


def test_a_flood_of_calls_disturbs_neither_a_set_nor_the_session(daemon: Daemon, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with program("logs.py", "flood", log=log, LIVETUNE_ENDPOINT=daemon.target) as flood:
        eventually(lambda: state_of(daemon, "flood") == types_pb2.JOB_STATE_RUNNING, 30)
        eventually(lambda: newest(daemon, "flood"))
        for number in range(1, 11):
            change = set_values(daemon, "flood", lr=number / 100)

            def applied(revision: int = change.revision) -> bool:
                return get_job(daemon, "flood").ranks[0].applied_revision >= revision

            eventually(applied)
        flood.tell()
        facts = json.loads(flood.line())
        assert 0 == flood.wait()
    # Sampled: at most once a second and twice at the ends, however many calls there were.
    loss = next(series for series in get_metrics(daemon, "flood").series if series.name == "loss")
    assert 1 <= loss.samples <= facts["seconds"] + 3
    assert facts["calls"] > 100 * loss.samples
    assert loss.last_step == facts["steps"]
    assert "is gone" not in daemon.log
    assert 1 == log.read_text().count("connected to")


def test_each_rank_has_its_own_series_and_a_port_serves_its_job_only(
    daemon: Daemon, job: livetune.Job, process: Process
) -> None:
    with daemon.channel() as channel:
        other = Process(channel, "two", rank=1, world_size=2)
        other.join()
        send(process, "loss", value=1.0)
        send(other, "loss", value=2.0)
        heard(process)
        heard(other)
        values = [(series.rank, series.last_value) for series in get_metrics(daemon, "two").series]
        assert [(0, 1.0), (1, 2.0)] == values
        assert [1] == [series.rank for series in get_metrics(daemon, "two", rank=1).series]
        assert process.registration is not None
        port = f"127.0.0.1:{process.registration.port}"
        assert 2 == len(get_metrics(daemon, "", port).series)
        with pytest.raises(grpc.RpcError) as caught:
            get_metrics(daemon, "vgg", port)
        assert grpc.StatusCode.NOT_FOUND is caught.value.code()  # type: ignore[attr-defined]
        other.close()


def test_a_course_is_asked_for_in_part(daemon: Daemon, process: Process) -> None:
    for step in range(300):
        send(process, "loss", step=step, value=float(step))
    heard(process)
    (series,) = get_metrics(daemon, "two").series
    assert (300, [*range(0, 299, 4), 299]) == (series.samples, list(series.point_steps))
    (series,) = get_metrics(daemon, "two", after_step=289, max_points=3).series
    assert ([290, 295, 299], 0.0, 299.0) == (list(series.point_steps), series.minimum, series.maximum)
    (series,) = get_metrics(daemon, "two", after_step=1_000).series
    assert ([], 299) == (list(series.point_steps), series.last_step)
    assert [] == list(get_metrics(daemon, "two", names=["other"]).series)
    for wrong in ({"max_points": -1}, {"rank": -1}, {"after_step": -1}):
        with pytest.raises(grpc.RpcError) as caught:
            get_metrics(daemon, "two", **wrong)
        assert grpc.StatusCode.INVALID_ARGUMENT is caught.value.code()  # type: ignore[attr-defined]


def test_nothing_of_it_ends_the_stream(daemon: Daemon, process: Process) -> None:
    process.send()  # a message of a newer program: none that this daemon knows
    send(process, "", "a b", "loss", step=-5)
    process.send(metrics=job_pb2.Metrics(samples=[job_pb2.MetricSample(name="x")] * 20_000, refused=-(2**63)))
    send(process, refused=2**63 - 1)
    heard(process)
    answer = get_metrics(daemon, "two")
    assert ["x"] == [series.name for series in answer.series]
    assert answer.dropped >= 20_000 - limits.SAMPLES_BURST - limits.SAMPLES_PER_SECOND
    assert metric(daemon, "livetune_job_metric_samples_dropped_total", reason="rate") > 0
    assert 3.0 == metric(daemon, "livetune_job_metric_samples_dropped_total", reason="invalid")


def test_the_largest_answer_is_one_that_every_client_takes(daemon: Daemon, process: Process) -> None:
    names = ["x" * 190 + str(number) for number in range(50)]
    # What a client sends that tries: steps and names as long as they get. Paced by the daemon's own rate.
    for step in range(20):
        send(process, *names, step=2**62 + step, value=-1e300)
    heard(process)
    answer = get_metrics(daemon, "two", max_points=1_000)
    points = sum(len(series.point_steps) for series in answer.series)
    assert points == 50 * 20
    assert answer.ByteSize() / points * limits.POINTS_IN_ANSWER < 4 * 2**20


def test_a_new_run_begins_anew_and_a_removal_forgets(daemon: Daemon) -> None:
    with daemon.channel() as channel, daemon.control() as control:
        for name in ("first", "second"):
            process = Process(channel, "runs")
            process.join()
            process.declare(float_spec("lr", 0.1))
            send(process, name)
            process.send(end=job_pb2.End(step=5))
            process.expect("end_recorded")
            assert {name: 0.5} == newest(daemon, "runs")
        control.RemoveJob(control_pb2.RemoveJobRequest(name="jobs/runs"))
        process = Process(channel, "runs")
        process.join()
        assert {} == newest(daemon, "runs")
        process.close()


def test_the_page_of_metrics_is_what_prometheus_reads(daemon: Daemon, process: Process) -> None:
    send(process, "val/loss", value=0.25)
    send(process, "nan", value=math.nan)
    heard(process)
    assert 0.25 == metric(daemon, "livetune_job_metric", job="two", rank="0", name="val/loss")
    assert math.isnan(metric(daemon, "livetune_job_metric", job="two", rank="0", name="nan"))
    assert 0.0 == metric(daemon, "livetune_job_metric_series_hidden")
    assert 2.0 == metric(daemon, "livetune_job_metric_samples_total")
    process.close()
    eventually(lambda: "livetune_job_metric{" not in page(daemon))


def test_ltctl_shows_what_is_logged(daemon: Daemon, process: Process) -> None:
    shell = Shell(daemon)
    for step in range(8):
        send(process, "loss", step=step, value=float(step))
    send(process, "val/loss", step=7, value=math.nan)
    heard(process)
    assert (
        "NAME       LAST   STEP   MIN   MAX\nloss       7      7      0     7\nval/loss   nan    7      -     -\n"
        == shell.inside("metrics", "two").out
    )
    wide = shell.inside("metrics", "two", "loss", "-o", "wide").out.splitlines()
    assert ["NAME", "RANK", "LAST", "STEP", "MIN", "MAX", "SAMPLES", "RECEIVED", "COURSE"] == wide[0].split()
    assert wide[1].endswith("▁▂▃▄▅▆▇█")
    assert "loss\nval/loss\n" == shell.inside("metrics", "two", "-o", "name").out
    loss, nan = shell.data("metrics", "two", "--points", "3")
    assert ("loss", 0, 7, 7.0, 8) == (loss["name"], loss["rank"], loss["step"], loss["value"], loss["samples"])
    assert [0, 4, 7] == [point["step"] for point in loss["points"]]
    assert ("NaN", None, "NaN") == (nan["value"], nan["minimum"], nan["points"][0]["value"])
    assert [loss, nan] == yaml.safe_load(shell.inside("metrics", "two", "--points", "3", "-o", "yaml").out)
    lines = shell.inside("metrics", "two", "--points", "3", "-o", "jsonl").out.splitlines()
    assert [loss, nan] == [json.loads(line) for line in lines]
    assert [] == shell.data("metrics", "two", "--rank", "1")
    assert [6, 7] == [point["step"] for point in shell.data("metrics", "two", "loss", "--after", "5")[0]["points"]]


def test_ltctl_on_the_jobs_own_port_and_its_exit_codes(daemon: Daemon, process: Process) -> None:
    shell = Shell(daemon)
    assert process.registration is not None
    port = str(process.registration.port)
    empty = shell.inside("metrics", "two")
    assert (0, "NAME   LAST   STEP   MIN   MAX\n") == (empty.code, empty.out) or (0, "") == (empty.code, empty.out)
    assert "nothing is logged" in empty.err
    send(process, "loss", refused=5)
    heard(process)
    for words in (["loss"], [], ["two"], ["two", "loss"]):
        answer = shell.inside("--port", port, "metrics", *words)
        assert (0, True) == (answer.code, "loss" in answer.out), (words, answer)
        assert "5 values were dropped" in answer.err
    for words, code, text in (
        (["metrics", "two", "los"], 3, "job 'two' has no series 'los'; did you mean 'loss'?"),
        (["metrics", "two", "loss", "--rank", "4"], 3, "no series 'loss' of rank 4"),
        (["metrics", "none"], 3, "none"),
        (["metrics"], 2, "which job?"),
        (["metrics", "two", "--points", "0"], 2, "--points"),
        (["--port", port, "metrics", "other"], 3, "job 'two' has no series 'other'; it logs loss"),
    ):
        answer = shell.inside(*words)
        assert (code, True) == (answer.code, text in answer.err), answer
    daemon.stop()
    assert 7 == shell.inside("metrics", "two").code


def test_a_finished_job_shows_what_it_logged(daemon: Daemon, job: livetune.Job) -> None:
    job.step(3)
    job.log(loss=0.5)
    job.finish()
    assert types_pb2.JOB_STATE_FINISHED == get_job(daemon).state
    assert {"loss": 0.5} == newest(daemon)
    assert "livetune_job_metric{" not in page(daemon)
