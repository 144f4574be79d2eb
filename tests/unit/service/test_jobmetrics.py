"""What is kept of what programs log: the limits, who makes room, what is forgotten when, and the page of metrics."""

from __future__ import annotations

import math

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from livetuned.domain import limits
from livetuned.domain.series import Sample
from livetuned.service.jobmetrics import JobMetrics, Source
from livetuned.service.metrics import Metrics


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.metrics = Metrics("test")
        self.logged = JobMetrics(self.metrics, lambda: self.now, lambda: int(self.now * 1e6))

    def take(self, source: Source, *names: str, step: int = 1, value: float = 0.5, refused: int = 0) -> None:
        self.logged.take(source, (Sample(name, step, value) for name in names), len(names), refused)

    def names(self, job: str = "vgg") -> list[str]:
        return [f"{name}@{rank}" for (name, rank), _ in self.logged.series(job)]

    def page(self, metric: str, /, **labels: str) -> list[float]:
        text = generate_latest(self.metrics.registry).decode()
        return [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == metric and labels.items() <= sample.labels.items()
        ]

    def dropped(self, reason: str) -> float:
        return sum(self.page("livetune_job_metric_samples_dropped_total", reason=reason))


@pytest.fixture
def world() -> World:
    return World()


def test_each_rank_has_series_of_its_own(world: World) -> None:
    first, second = world.logged.open("vgg", 0, 1), world.logged.open("vgg", 1, 1)
    world.take(first, "val/loss", "loss")
    world.take(second, "loss")
    assert ["loss@0", "loss@1", "val/loss@0"] == world.names()
    assert [("loss", 1)] == [key for key, _ in world.logged.series("vgg", {"loss"}, 1)]


def test_limits_of_series_drop_what_is_new_and_keep_what_is_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SERIES_PER_RANK", 3)
    monkeypatch.setattr(limits, "SERIES_PER_JOB", 4)
    first, second = world.logged.open("vgg", 0, 1), world.logged.open("vgg", 1, 1)
    world.take(first, "a", "b", "c", "d")
    assert ["a@0", "b@0", "c@0"] == world.names()
    world.take(second, "a", "b")
    assert ["a@0", "a@1", "b@0", "c@0"] == world.names()
    world.take(first, "a", step=2, refused=7)
    assert (2.0, 7.0, 9) == (world.dropped("series"), world.dropped("program"), world.logged.dropped("vgg"))
    assert 2 == world.logged.series("vgg", {"a"}, 0)[0][1].samples


def test_the_job_that_is_gone_for_longest_makes_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SERIES", 3)
    sources = [world.logged.open(job, 0, 1) for job in ("one", "two", "three")]
    for source in sources:
        world.take(source, "a")
    for source in (sources[1], sources[0]):
        world.logged.close(source)
    world.take(sources[2], "b")
    assert (["a@0"], [], ["a@0", "b@0"], 3) == (
        world.names("one"), world.names("two"), world.names("three"), len(world.logged),
    )  # fmt: skip
    world.logged.open("one", 0, 1)
    world.take(sources[2], "c")
    assert (["a@0"], 1.0) == (world.names("one"), world.dropped("series"))


def test_a_rate_for_each_session(world: World) -> None:
    loud, quiet = world.logged.open("loud", 0, 1), world.logged.open("quiet", 0, 1)
    for step in range(limits.SAMPLES_BURST + 10):
        world.take(loud, "a", step=step)
    world.take(quiet, "a")
    assert (10.0, 1) == (world.dropped("rate"), world.logged.series("quiet")[0][1].samples)
    world.now += 1.0
    world.take(loud, *["a"] * (limits.SAMPLES_PER_SECOND + 5), step=10_000)
    assert 15.0 == world.dropped("rate")
    assert 15 == world.logged.dropped("loud")


@pytest.mark.parametrize("name", ["", "a b", "a//b", "/a", "a/", "1a", "a" * 201, 'a"b', "ä"])
def test_what_is_no_name_is_dropped(world: World, name: str) -> None:
    source = world.logged.open("vgg", 0, 1)
    world.take(source, name, "grad/features.0.weight")
    world.take(source, "b", step=-1)
    assert (["grad/features.0.weight@0"], 2.0) == (world.names(), world.dropped("invalid"))


def test_a_new_run_a_removal_and_a_break(world: World) -> None:
    source = world.logged.open("vgg", 0, 1)
    world.take(source, "a")
    world.logged.close(source)
    again = world.logged.open("vgg", 0, 1)
    world.take(source, "b")  # the stream that was replaced has no say any more
    for _ in range(2):
        world.take(again, "a")  # told again after the break
    assert (["a@0"], 1) == (world.names(), world.logged.series("vgg")[0][1].samples)
    world.logged.close(source)
    world.take(again, "a", step=2)
    assert 2 == world.logged.series("vgg")[0][1].samples
    world.take(world.logged.open("vgg", 0, 2), "c")
    assert ["c@0"] == world.names()
    world.logged.forget("vgg")
    assert ([], 0, 0) == (world.names(), len(world.logged), world.logged.dropped("vgg"))


def test_the_page_shows_connected_ranks_and_how_many_series_it_leaves_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SERIES_ON_PAGE", 2)
    source = world.logged.open("vgg", 3, 1)
    world.take(source, "loss", value=math.nan)
    world.take(source, "val/loss", "c")
    (nan,) = world.page("livetune_job_metric", job="vgg", rank="3", name="loss")
    assert math.isnan(nan)
    assert [0.5] == world.page("livetune_job_metric", job="vgg", rank="3", name="val/loss")
    assert [1.0] == world.page("livetune_job_metric_series_hidden")
    assert [3.0] == world.page("livetune_job_metric_samples_total")
    world.logged.close(source)
    assert ([], [0.0]) == (world.page("livetune_job_metric"), world.page("livetune_job_metric_series_hidden"))
