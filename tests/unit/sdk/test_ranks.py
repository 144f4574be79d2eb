"""Ranks of one job as threads, each at its own pace: the same changes at the same safe point, whatever the order of things."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import livetune
from livetune import messages as m
from livetune.checkpoint import Checkpoint
from livetune.ranks import MOST_STEPS, Follower, Lockstep
from livetune.session import Session
from livetune.specs import Scalar, VariableSpec
from livetune.variable import Variable
from support.table import Table

LR, WD = VariableSpec.declare("lr", 0.0), VariableSpec.declare("wd", 0.0)
SPECS = (LR, WD)


class Rank:
    """One rank: values, what took effect at which of its safe points, and on rank 0 what was reported."""

    def __init__(self, table: Table, rank: int) -> None:
        self.lock = threading.RLock()
        self.variables = {spec.name: Variable(spec, spec.initial) for spec in SPECS}
        self.session: Session | Follower = Follower() if rank else Session(self.judge)
        for spec in SPECS:
            self.session.handle(m.VariableDeclared(spec))
        self.lockstep = Lockstep(table.seats[rank], self.session, self.variables, lock=self.lock, take=self.take)
        self.passed = 0
        self.stride = self.pieces = 1
        """What a safe point adds to its step, as a fraction."""
        self.taken: list[tuple[int, dict[str, tuple[Scalar, Scalar]]]] = []
        self.fired: list[int] = []
        self.outcomes: dict[int, list[tuple[m.Status, str]]] = {}
        self.backlog: list[m.Event] = []

    def judge(self, name: str, value: Scalar, old: Scalar) -> Scalar | m.Refusal:
        return self.variables[name]._callbacks.judge(value, old)

    def take(self) -> None:
        actions = self.session.handle(m.SafePoint(self.now))
        for action in actions:
            if isinstance(action, m.Assign):
                self.variables[action.name]._put(action.value, action.revision, action.step, changed=action.changed)
            elif isinstance(action, m.Record):
                assert action.change.step == self.now
                self.taken.append((self.passed, action.change.values))
            elif isinstance(action, m.Show):
                self.fired.append(self.passed)
            elif isinstance(action, m.Send) and isinstance(action.message, m.Report):
                report = action.message
                self.outcomes[report.revision] = [(item.status, item.reason) for item in report.outcomes]
        backlog, self.backlog = self.backlog, []
        for event in backlog:
            self.session.handle(event)

    def hear(self, event: m.Event) -> None:
        """Takes an event of the daemon, as the job does."""
        with self.lock:
            if self.lockstep.proposed:
                self.backlog.append(event)
            else:
                self.session.handle(event)

    def step(self) -> None:
        self.passed += 1
        self.lockstep.at_safe_point(self.now)

    @property
    def now(self) -> int:
        """Its step: each rank may count as it likes."""
        return 1_000 * self.lockstep._ranks.rank + self.passed * self.stride // self.pieces


class Ranks:
    """All ranks of a job, rank 0 connected."""

    def __init__(self, size: int = 3) -> None:
        self.table = Table(size)
        self.all = [Rank(self.table, rank) for rank in range(size)]
        self.revision = 10
        for event in (
            m.Registered("store", 1, 21_000, 10),
            m.Opened("store", 10),
            m.Declared(tuple(m.VariableAnswer(spec.name, 0.0, 3, False) for spec in SPECS)),
        ):
            self.all[0].hear(event)

    def change(self, *firings: str, **values: float) -> int:
        self.revision += 1
        self.all[0].hear(m.ChangeReceived(self.revision, tuple(values.items()), firings))
        return self.revision

    def schedule(self, step: int, *firings: str, **values: float) -> int:
        self.revision += 1
        change = m.ScheduledChange(self.revision, step, tuple(values.items()), firings)
        self.all[0].hear(m.ScheduledReceived(change))
        return self.revision

    def run(self, points: int, each: Any = lambda rank: None) -> None:
        """Lets every rank pass so many safe points, in a thread of its own."""

        def go(rank: Rank) -> None:
            for _ in range(points):
                each(rank)
                rank.step()

        with ThreadPoolExecutor(len(self.all)) as pool:
            for done in [pool.submit(go, rank) for rank in self.all]:
                done.result()

    def agreed(self) -> list[tuple[int, dict[str, tuple[Scalar, Scalar]]]]:
        """Returns what took effect, the same on all ranks."""
        first = self.all[0]
        for other in self.all[1:]:
            assert first.taken == other.taken
            assert first.fired == other.fired
            assert {n: v.value for n, v in first.variables.items()} == {n: v.value for n, v in other.variables.items()}
        return first.taken


def veto_above(limit: float) -> Any:
    def callback(new: float, _old: float) -> None:
        if new > limit:
            raise livetune.Veto(f"{new} is above {limit}")

    return callback


def test_a_change_takes_effect_at_the_same_safe_point_and_costs_no_message_of_its_own() -> None:
    ranks = Ranks()
    ranks.change(lr=0.5, wd=0.1)
    ranks.run(2)
    assert [(2, {"lr": (0.0, 0.5), "wd": (0.0, 0.1)})] == ranks.agreed()
    # What is asked once is who has a word on values.
    assert [["poll", "message", "message"]] * 3 == [seat.order for seat in ranks.table.seats]


def test_control_a_rank_that_misses_a_safe_point_takes_changes_at_another() -> None:
    ranks = Ranks()
    ranks.all[1].passed += 1
    ranks.change(lr=0.5)
    ranks.run(2)
    with pytest.raises(AssertionError):
        ranks.agreed()


def test_a_veto_of_one_rank_refuses_the_whole_change_and_no_other() -> None:
    ranks = Ranks()
    ranks.all[2].variables["lr"].on_set(veto_above(1.0))
    ranks.run(10 * MOST_STEPS)
    vetoed, taken = ranks.change(lr=7.0, wd=0.1), ranks.change(wd=0.2)
    ranks.run(MOST_STEPS + 3)  # to the next meeting; then one to vote, one to count, one to take what is left
    ((_, values),) = ranks.agreed()
    assert {"wd": (0.0, 0.2)} == values
    refused = ranks.all[0].outcomes[vetoed]
    assert [m.Status.REFUSED] * 2 == [status for status, _ in refused]
    assert ["rank 2: 7.0 is above 1.0", "refused together with 'lr'"] == [reason for _, reason in refused]
    assert [(m.Status.APPLIED, "")] == ranks.all[0].outcomes[taken]


def test_a_veto_is_about_the_value_that_the_change_before_it_brings() -> None:
    """0.9 after 0.5 is a rise; vetoed, it leaves 0.5 for what comes after it."""
    ranks = Ranks()

    def only_falling(new: float, old: float) -> None:
        if old and new > old:
            raise livetune.Veto(f"{new} after {old}")

    ranks.all[1].variables["lr"].on_set(only_falling)
    for value in (0.5, 0.9, 0.4):
        ranks.change(lr=value)
    ranks.run(8)
    assert [{"lr": (0.0, 0.4)}] == [values for _, values in ranks.agreed()]
    assert "rank 1: 0.9 after 0.5" == ranks.all[0].outcomes[12][0][1]


def test_rank_0_refuses_without_asking_the_others() -> None:
    ranks = Ranks()
    ranks.all[0].variables["lr"].on_set(veto_above(1.0))
    vetoed = ranks.change(lr=7.0)
    ranks.run(1)
    assert [(m.Status.REFUSED, "7.0 is above 1.0")] == ranks.all[0].outcomes[vetoed]
    assert [] == ranks.agreed()


def test_a_callback_that_comes_later_is_asked_from_the_meeting_after_the_next_one_on() -> None:
    ranks = Ranks()
    ranks.run(5)
    ranks.all[1].variables["lr"].on_set(veto_above(1.0))
    ranks.run(3 * MOST_STEPS)
    vetoed = ranks.change(lr=7.0)
    ranks.run(2 * MOST_STEPS)
    assert [] == ranks.agreed()
    assert "rank 1: 7.0 is above 1.0" == ranks.all[0].outcomes[vetoed][0][1]


def test_between_meetings_lie_no_more_steps_than_a_change_may_wait() -> None:
    ranks = Ranks()
    points = 30 * MOST_STEPS
    ranks.run(points)
    counts = ranks.table.seats[0].counts
    assert points // MOST_STEPS <= counts["message"]
    ranks.change(lr=0.5)
    ranks.run(MOST_STEPS + 1)
    assert 1 == len(ranks.agreed())


def test_a_run_that_stands_still_meets_at_every_safe_point() -> None:
    ranks = Ranks()
    ranks.run(10 * MOST_STEPS)
    before = ranks.table.seats[1].counts["message"]
    ranks.run(5, lambda rank: rank.lockstep.hurry())
    assert 4 <= ranks.table.seats[1].counts["message"] - before
    ranks.change(lr=0.5)
    ranks.run(3, lambda rank: rank.lockstep.hurry())
    assert 1 == len(ranks.agreed())


def test_what_is_begun_in_a_hurry_ends_at_the_next_safe_point() -> None:
    ranks = Ranks()
    ranks.run(10 * MOST_STEPS)
    while ranks.all[0].lockstep._idle < 2:
        ranks.run(1)
    ranks.change(lr=0.5)
    ranks.run(1, lambda rank: rank.lockstep.hurry())
    assert [] == ranks.agreed()
    ranks.run(1)
    assert 1 == len(ranks.agreed())


def test_what_the_daemon_says_before_all_ranks_took_what_was_proposed_waits() -> None:
    """A daemon with another store, at the worst moment: it is told of the value that is in use then."""
    ranks = Ranks()
    leader = ranks.all[0]
    ranks.change(lr=0.5)
    ranks.run(1)
    assert leader.lockstep.proposed
    for event in (m.Disconnected(), m.Registered("other", 1, 21_000, 0)):
        leader.hear(event)
    ranks.run(1)
    assert [(2, {"lr": (0.0, 0.5)})] == ranks.agreed()
    assert "other" == leader.session.store_id
    declared = [a.message for a in leader.session.handle(m.Opened("other", 0)) if isinstance(a, m.Send)]
    assert isinstance(declared[0], m.Declare)
    assert {"lr": 0.5, "wd": 0.0} == {spec.name: value for spec, value in declared[0].variables}


def test_a_follower_takes_a_value_when_it_declares_the_variable() -> None:
    follower = Follower()
    effect = m.Effect(12, {"lr": (0.1, 0.5)}, ("save",), "plateau", "ann", inherited=False)
    follower.tell((effect,))
    actions = follower.handle(m.SafePoint(42))
    assert [m.Record, m.Show] == [type(action) for action in actions]
    assert [m.Assign("lr", 0.5, 12, 42, changed=True)] == follower.handle(m.VariableDeclared(LR))
    follower.tell((effect,))
    assert m.Assign("lr", 0.5, 12, 43, changed=True) in follower.handle(m.SafePoint(43))
    assert [] == follower.handle(m.SafePoint(44))


def test_a_follower_is_not_changed_by_a_checkpoint_that_has_its_value() -> None:
    follower = Follower()
    follower.handle(m.VariableDeclared(LR))
    follower.tell((m.Effect(12, {"lr": (0.0, 0.5)}, (), "", "", inherited=False),))
    follower.handle(m.SafePoint(42))
    for value, changed in ((0.5, False), (0.7, True)):
        (assigned,) = follower.handle(m.Restored("store", 1, (("lr", value, 12),), (), 40))
        assert m.Assign("lr", value, 12, 40, changed=changed, inherited=True) == assigned


def test_a_variable_declared_after_the_decision_takes_over_what_was_set_before() -> None:
    session = Session()
    session.handle(m.VariableDeclared(LR))
    for event in (m.Registered("store", 1, 21_000, 10), m.Opened("store", 10), m.Declared()):
        session.handle(event)
    session.handle(m.ChangeReceived(11, (("lr", 0.5), ("wd", 0.1))))
    assert session.propose({}, 1) is not None
    session.handle(m.VariableDeclared(WD))
    session.handle(m.SafePoint(1))
    session.handle(m.Declared((m.VariableAnswer("wd", 0.1, 11, True),)))
    assert ["wd"] == [action.name for action in session.handle(m.SafePoint(2)) if isinstance(action, m.Assign)]


@pytest.mark.parametrize("asked", ["nobody is asked", "they are asked", "they were asked once"])
@pytest.mark.parametrize("ahead", [3, 4, 5, 50, MOST_STEPS, 3 * MOST_STEPS + 7])
def test_what_waits_for_a_step_takes_effect_exactly_there_on_all_ranks(ahead: int, asked: str) -> None:
    ranks = Ranks()
    if asked != "nobody is asked":
        remove = ranks.all[1].variables["lr"].on_set(veto_above(1.0))
        ranks.run(3 * MOST_STEPS)
        if asked == "they were asked once":
            remove()
    ranks.run(MOST_STEPS * 5)
    begun = ranks.all[0].passed
    first, second = begun + ahead + MOST_STEPS, begun + ahead + 2 * MOST_STEPS
    ranks.schedule(first, lr=0.5)
    ranks.schedule(second, "save")
    third = second + (1 if asked == "nobody is asked" else 2)  # to ask takes a step: sooner is not foreseen
    ranks.schedule(third, wd=0.1)
    ranks.run(third + 5 - begun)
    assert [(first, {"lr": (0.0, 0.5)}), (third, {"wd": (0.0, 0.1)})] == ranks.agreed()
    assert [second] == ranks.all[2].fired


@pytest.mark.parametrize(("stride", "pieces"), [(1, 4), (3, 1), (2, 3)], ids=["accumulated", "by threes", "unevenly"])
def test_where_steps_are_not_counted_one_by_one_it_comes_soon_after_its_step_and_not_before(
    stride: int, pieces: int
) -> None:
    ranks = Ranks()
    for rank in ranks.all:
        rank.stride, rank.pieces = stride, pieces
    ranks.run(20 * MOST_STEPS)
    step = ranks.all[0].now + 40
    ranks.schedule(step, lr=0.5)
    ranks.run(60 * pieces + 2 * MOST_STEPS)
    ((passed, _),) = ranks.agreed()
    assert step <= passed * stride // pieces <= step + 3 * stride + MOST_STEPS * stride


@pytest.mark.parametrize("meanwhile", [False, True], ids=["as it was", "changed since"])
def test_all_ranks_go_on_from_the_checkpoint_of_rank_0(meanwhile: bool) -> None:
    ranks = Ranks()
    if meanwhile:
        ranks.change(lr=0.9)  # revision 11: after the checkpoint
        ranks.run(3)
    saved = Checkpoint("vgg", "store", 1, 40, {"lr": (0.5, 10), "wd": (0.2, 10)}, ())

    def go(rank: Rank) -> None:
        state = saved.to_dict() if rank is ranks.all[0] else {"this rank": "has read nothing"}

        def take(checkpoint: Checkpoint) -> None:
            checkpoint.check(SPECS)
            for action in rank.session.handle(checkpoint.restored(checkpoint.variables, scheduled=True)):
                if isinstance(action, m.Assign):
                    rank.variables[action.name]._put(action.value, action.revision, action.step, changed=True)

        rank.lockstep.go_on_from(state, take)

    with ThreadPoolExecutor(len(ranks.all)) as pool:
        for done in [pool.submit(go, rank) for rank in ranks.all]:
            done.result()
    expected = {"lr": 0.9 if meanwhile else 0.5, "wd": 0.2}
    assert [expected] * 3 == [{name: item.value for name, item in rank.variables.items()} for rank in ranks.all]


def test_a_checkpoint_that_rank_0_can_not_go_on_from_is_refused_on_all_ranks() -> None:
    ranks = Ranks()

    def go(rank: Rank) -> str:
        with pytest.raises(livetune.CheckpointError) as caught:
            rank.lockstep.go_on_from({"version": 99}, lambda _: None)
        return str(caught.value)

    with ThreadPoolExecutor(len(ranks.all)) as pool:
        assert {"the version of a job's state must be 1, got 99"} == set(pool.map(go, ranks.all))


@pytest.mark.parametrize("chosen", range(6))
def test_ranks_never_differ(chosen: int) -> None:
    """Changes, firings, vetoes, callbacks that come later and pauses, while every rank runs at its own pace."""
    dice = random.Random(chosen)
    ranks = Ranks(4)
    own = {rank: random.Random(100 * chosen + number) for number, rank in enumerate(ranks.all)}
    if chosen % 2:
        ranks.all[dice.randrange(4)].variables["lr"].on_set(veto_above(0.7))
    never = threading.Event()

    def each(rank: Rank) -> None:
        if own[rank].random() < 0.02:
            never.wait(0.001)  # a step that takes longer, here only
        if rank.passed == 150 and rank is ranks.all[3]:
            rank.variables["wd"].on_set(veto_above(0.8))
        if 200 <= rank.passed < 220:
            rank.lockstep.hurry()
        if rank is ranks.all[0] and own[rank].random() < 0.3 and rank.passed < 1_000:
            ranks.change(lr=own[rank].random(), wd=own[rank].random())

    ranks.run(1_000 + 3 * MOST_STEPS, each)
    assert len(ranks.agreed()) > 5
    outcomes = ranks.all[0].outcomes
    assert list(range(11, ranks.revision + 1)) == sorted(outcomes)
    reasons = [reason for told in outcomes.values() for _, reason in told]
    assert bool(chosen % 2) == any(reason.endswith("is above 0.7") for reason in reasons)
    assert any(reason.endswith("is above 0.8") for reason in reasons)
