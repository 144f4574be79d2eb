"""What both framework callbacks share: names, what a checkpoint brings back, and what must be refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import livetune
from livetune import messages as m
from livetune.integrations.training import (
    MAX_SERIES_NAME,
    Asked,
    Settings,
    Training,
    _is_loggable,
    _series_name,
    live_hyperparameters,
    own_value,
)
from livetune.logged import _check_name
from livetune.torch import BindError, Mode, bind

NOWHERE = "unix:/nowhere/d.sock"
OWN = {"lr": 0.1, "weight_decay": 0.01}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVETUNE_ENDPOINT", NOWHERE)


@pytest.fixture
def begun() -> Iterator[list[Training]]:
    trainings: list[Training] = []
    yield trainings
    for training in trainings:
        training.end()


class Run:
    """A training of one weight and one bias, under a cosine from the optimizer's lr to 0 over 100 steps."""

    def __init__(
        self,
        begun: list[Training],
        state: dict[str, Any] | None = None,
        lr: float = 0.1,
        mode: str = "scale",
        schedule: Any = None,
        hyperparameters: tuple[str, ...] | None = None,
    ) -> None:
        groups = [
            {"params": [torch.nn.Parameter(torch.ones(1))], "weight_decay": 0.01},
            {"params": [torch.nn.Parameter(torch.ones(1))], "weight_decay": 0.0, "lr": lr / 10},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=lr)
        schedule = schedule or (lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100))
        self.scheduler = schedule(self.optimizer)
        self.training = Training(Settings("run", hyperparameters, mode))
        begun.append(self.training)
        self.count = 0
        if state is not None:
            self.training.resume(state["live"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.count = state["count"]
        self.training.control(0, None)
        self.training.bind(self.optimizer, schedulers=[self.scheduler], own={**OWN, "lr": lr, "momentum": 0.0})

    def set(self, name: str, value: float | bool) -> None:
        """Changes a variable as the safe point does, whoever asked for it."""
        job = self.training.job
        job._assign(m.Assign(name, value, 7, self.count, changed=True))

    def fire(self, name: str) -> None:
        """Makes a firing visible as the safe point does, whoever asked for it."""
        job = self.training.job
        job._session._triggers[name].visible.append(7)
        job._triggers[name]._show(1)

    def steps(self, count: int) -> list[float]:
        """Steps; returns the first group's learning rate that each used."""
        used = []
        for _ in range(count):
            self.optimizer.step()
            self.scheduler.step()
            self.count += 1
            self.training.step(self.count)
            used.append(self.training._optimizers[""].binding.effective("lr")[0])
        return used

    def state(self) -> dict[str, Any]:
        return {
            "live": self.training.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "count": self.count,
        }

    def decays(self) -> list[float]:
        return [group["weight_decay"] for group in self.optimizer.param_groups]


def cosine(step: int, base: float = 0.1) -> float:
    return base * (1 + math.cos(math.pi * (step - 1) / 100)) / 2


def end(run: Run) -> dict[str, Any]:
    state = run.state()
    run.training.end()
    return state


@pytest.mark.parametrize("mode", [mode.value for mode in Mode])
def test_a_run_that_goes_on_uses_what_it_would_have_used(begun: list[Training], mode: str) -> None:
    through = Run(begun, mode=mode)
    through.steps(20)
    through.set("lr", 0.03)
    through.steps(10)
    state = end(through)
    whole = Run(begun, mode=mode)
    whole.steps(20)
    whole.set("lr", 0.03)
    whole.steps(10)
    expected = whole.steps(10)
    whole.training.end()
    again = Run(begun, state, mode=mode)
    assert 0.03 == again.training.job.variables["lr"].value
    assert pytest.approx(expected) == again.steps(10)


def test_a_value_that_came_at_the_safe_point_of_the_checkpoint_is_not_lost(begun: list[Training]) -> None:
    run = Run(begun)
    run.steps(20)
    run.set("lr", 0.03)
    again = Run(begun, end(run))
    used = again.steps(2)
    assert 0.03 == used[0]
    assert pytest.approx(0.03 * cosine(22) / cosine(21)) == used[1]


def test_a_weight_decay_of_zero_keeps_its_ratio_over_a_checkpoint(begun: list[Training]) -> None:
    run = Run(begun)
    run.set("weight_decay", 0.0)
    run.steps(1)
    assert [0.0, 0.0] == run.decays()
    again = Run(begun, end(run))
    again.steps(1)
    assert [0.0, 0.0] == again.decays()
    again.set("weight_decay", 0.5)
    again.steps(1)
    assert [0.5, 0.0] == again.decays()


def test_hyperparameters_that_were_not_live_before_can_be_after_a_checkpoint(begun: list[Training]) -> None:
    run = Run(begun)
    run.steps(20)
    run.set("lr", 0.03)
    run.steps(1)
    again = Run(begun, end(run), hyperparameters=("lr", "momentum"))
    assert pytest.approx([0.03 * cosine(22) / cosine(21)]) == again.steps(1)
    again.set("momentum", 0.9)
    again.steps(1)
    assert [0.9, 0.9] == [group["momentum"] for group in again.optimizer.param_groups]


@pytest.mark.parametrize("mode", ["scale", "rebase"])
def test_an_edited_lr_is_the_base_of_the_schedule_that_was_restored(
    begun: list[Training], mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(begun, mode=mode)
    run.set("lr", 0.03)
    run.steps(20)
    again = Run(begun, end(run), lr=0.4, mode=mode)
    assert pytest.approx([cosine(21, 0.4), cosine(22, 0.4)]) == again.steps(2)
    assert "the program says lr=0.4 now, and said 0.1" in caplog.text


def test_an_edited_lr_under_a_schedule_that_cannot_be_moved_is_refused(begun: list[Training]) -> None:
    class Own(torch.optim.lr_scheduler.ExponentialLR):
        pass

    def schedule(optimizer: Any) -> Any:
        return Own(optimizer, 0.9)

    run = Run(begun, schedule=schedule)
    run.steps(3)
    with pytest.raises(BindError, match=r"edited from 0.1 to 0.4 .* does not know all rates that Own keeps"):
        Run(begun, end(run), lr=0.4, schedule=schedule)


def test_a_checkpoint_that_was_asked_for_with_a_pause_is_saved_before_it(begun: list[Training]) -> None:
    run = Run(begun)
    assert Asked(checkpoint=False, evaluate=False, stop=False) == run.training.step(1)
    run.set("run.paused", True)
    run.fire("run.checkpoint")
    # It comes back, although the run is paused.
    assert Asked(checkpoint=True, evaluate=False, stop=False) == run.training.step(2)
    run.set("run.paused", False)
    run.fire("run.stop")
    assert Asked(checkpoint=False, evaluate=False, stop=True) == run.training.step(3)


def test_a_state_of_another_version_is_refused(begun: list[Training]) -> None:
    run = Run(begun)
    with pytest.raises(BindError, match="must be 1, got 2"):
        run.training.resume({**run.training.state_dict(), "version": 2})


def test_a_training_that_nobody_ended_is_failed_by_the_next_of_its_name(begun: list[Training]) -> None:
    left = Run(begun)
    again = Run(begun)
    assert not left.training.running
    assert left.training.job is not again.training.job
    with pytest.raises(livetune.JobFinishedError):
        left.training.job.variable("late", 1.0)


def test_a_job_that_is_live_under_the_name_is_used_and_not_ended() -> None:
    with livetune.init("own") as job:
        training = Training(Settings("own", None, "scale"))
        assert job is training.job
        training.end()
        job.variable("late", 1.0)


def test_the_name_of_a_job_is_checked_when_the_callback_is_made() -> None:
    with pytest.raises(livetune.InvalidNameError):
        Settings("No Name", None, "scale")


def test_hyperparameters_that_an_optimizer_does_not_have_are_named() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    assert ["lr"] == live_hyperparameters(torch.optim.LBFGS([weight]), None)
    assert ["lr", "weight_decay"] == live_hyperparameters(torch.optim.Adam([weight]), None)
    with pytest.raises(BindError, match=r"Adam has no number 'momentum' in its groups, only \['lr', 'eps'"):
        live_hyperparameters(torch.optim.Adam([weight]), ["momentum"])


def test_an_optimizer_is_built_on_the_peak_of_its_schedule() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    assert 0.1 == own_value(optimizer, "lr", [])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=10)
    assert 0.5 == own_value(optimizer, "lr", [scheduler])
    assert 0.0 == own_value(optimizer, "weight_decay", [scheduler])


def test_an_optimizer_that_accelerate_wrapped_is_bound_inside() -> None:
    accelerate = pytest.importorskip("accelerate")
    inner = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    outer = accelerate.Accelerator(cpu=True).prepare(inner)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(outer)

    class Live:
        value = 0.1

    live = Live()
    binding = bind(outer, lr=live, scheduler=scheduler)
    live.value = 0.02
    inner.param_groups[0]["params"][0].grad = torch.ones(1)
    outer.step()
    assert [0.02] == binding.effective("lr")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loss", "loss"),
        ("val/loss", "val/loss"),
        ("train/acc (top-1)", "train/acc_top_1_"),
        ("1st//loss..x/", "_1st/loss.x"),
        ("é", "_"),
        ("..", "_"),
        ("x" * 300, "x" * MAX_SERIES_NAME),
        ("x" * 199 + "/y", "x" * 199),
    ],
)
def test_names_of_metrics_are_rewritten_until_the_daemon_takes_them(name: str, expected: str) -> None:
    assert expected == _series_name(name)
    _check_name(_series_name(name))


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, True), (0.5, True), (torch.ones(()), True), (torch.ones(2), False), ("fast", False), (None, False)],
)
def test_what_is_no_number_is_left_out(value: object, expected: bool) -> None:
    assert expected == _is_loggable(value)


def test_control_without_its_protection_a_value_at_the_checkpoints_safe_point_is_lost(
    begun: list[Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("livetune.integrations.training._Said", lambda variable: variable)
    run = Run(begun)
    run.steps(20)
    run.set("lr", 0.03)
    again = Run(begun, end(run))
    assert pytest.approx(cosine(21)) == again.steps(1)[0]


def test_control_without_its_protection_an_edited_lr_is_ignored(
    begun: list[Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("livetune.integrations.training._rebuild", lambda *_: None)
    run = Run(begun)
    run.steps(20)
    again = Run(begun, end(run), lr=0.4)
    assert pytest.approx(cosine(21)) == again.steps(1)[0]


def test_control_without_its_protection_the_ratio_of_weight_decays_is_lost(
    begun: list[Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("livetune.integrations.training._write", lambda *_: None)
    run = Run(begun)
    run.set("weight_decay", 0.0)
    run.steps(1)
    again = Run(begun, end(run))
    again.steps(1)
    again.set("weight_decay", 0.5)
    again.steps(1)
    assert [0.5, 0.5] == again.decays()
