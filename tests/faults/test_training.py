"""A network that trains while all that can befall its daemon does: it goes on, hears of nothing, and both meet again."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from livetune.v1 import control_pb2, types_pb2
from support import needs
from support.calls import get_job, set_request
from support.daemon import Daemon, eventually
from support.programs import Program, program
from support.proxy import Proxy, proxy
from support.results import count, long_run, seed
from support.shell import state_of

pytest.importorskip("torch")

PORTS = ("--job-ports", "22310-22319")
STEPS = 300
"""How many steps the job makes in a fault, at least."""
LEAVES_SECONDS = 20.0
"""Within this a program ends. Two seconds are promised: `test_finish_asks_for_less_than_two_seconds` holds what the SDK waits,
`benchmarks/step_under_faults.py` measures; here other work may hold the machine, and without the promise it takes for ever."""

FORKS_IN_A_FAULT = 20
CONTROL_SECONDS = 10.0
"""How long a control waits for what does not come."""
EARLY = Path(__file__).parent.parent / "support" / "ack_before_commit.py"


class EarlyDaemon(Daemon):
    """A daemon that acknowledges before it commits."""

    def command(self) -> list[str]:
        return [sys.executable, str(EARLY), *super().command()[3:]]


@dataclass
class Stage:
    """A daemon, the way to it, and what was acknowledged to those who changed the job.

    Attributes:
        daemon: The daemon.
        way: Between the job and it.
        patience: Seconds that the job may say nothing that is waited for.
        acknowledged: Revisions that the daemon gave, of the store that it has.
        lr: The newest value that was acknowledged.
        fired: How many firings were acknowledged.
        declared: How many variables the job was told to declare late.
    """

    daemon: Daemon
    way: Proxy | None
    patience: float
    acknowledged: list[int] = field(default_factory=list)
    lr: float = 0.1
    fired: int = 0
    declared: int = 0

    def change(self, lr: float, *, kill: bool = False) -> None:
        """Fires a trigger and changes a value; each is acknowledged, and then at once the daemon is killed, if it is to be."""
        with self.daemon.control() as control:
            request = control_pb2.FireTriggersRequest(job="jobs/vgg", trigger_ids=["save"])
            self.acknowledged.append(control.FireTriggers(request, timeout=60).change.revision)
            self.acknowledged.append(control.SetVariables(set_request(lr=lr), timeout=60).change.revision)
            if kill:
                self.daemon.kill()
        self.lr, self.fired = lr, self.fired + 1

    def changes(self) -> dict[int, types_pb2.Change]:
        """What the daemon knows of the job's changes, by revision."""
        with self.daemon.control() as control:
            request = control_pb2.ListChangesRequest(job="jobs/vgg", page_size=1_000)
            return {change.revision: change for change in control.ListChanges(request, timeout=60).changes}


def killed(stage: Stage, lr: float) -> Iterator[None]:
    stage.change(lr, kill=True)
    yield
    stage.daemon.start()


def frozen(stage: Stage, lr: float) -> Iterator[None]:
    stage.change(lr)
    assert stage.daemon.process is not None
    stage.daemon.process.send_signal(signal.SIGSTOP)
    yield
    stage.daemon.process.send_signal(signal.SIGCONT)


def cut_off(stage: Stage, lr: float) -> Iterator[None]:
    stage.way.refuse()
    stage.way.reset()
    stage.change(lr)
    yield
    stage.way.refuse(on=False)


def swallowed(stage: Stage, lr: float) -> Iterator[None]:
    stage.way.swallow()
    stage.change(lr)
    yield
    stage.way.swallow(on=False)
    stage.way.reset()  # bytes are missing: no stream can go on over what is left of the connection


def slow(stage: Stage, lr: float) -> Iterator[None]:
    stage.way.slow(delay=0.05, slice_bytes=64)
    stage.change(lr)
    yield
    stage.way.slow()


def replaced(stage: Stage, lr: float) -> Iterator[None]:
    """What the old store acknowledged is gone with it; what the job uses is not."""
    stage.change(lr)
    eventually(lambda: in_use(stage.daemon) == lr, 60)
    stage.daemon.kill()
    for file in stage.daemon.state.iterdir():
        file.unlink()
    stage.acknowledged.clear()
    yield
    stage.daemon.start()


FAULTS: dict[str, Callable[[Stage, float], Iterator[None]]] = {
    "killed": killed,
    "frozen": frozen,
    "cut off": cut_off,
    "swallowed": swallowed,
    "slow": slow,
    "replaced by an empty one": replaced,
}


def variables(daemon: Daemon) -> dict[str, types_pb2.Variable]:
    """What the daemon knows of the job's variables; nothing, if it does not know the job."""
    if state_of(daemon, "vgg") == types_pb2.JOB_STATE_UNSPECIFIED:
        return {}
    return {item.spec.variable_id: item for item in get_job(daemon).variables}


def in_use(daemon: Daemon) -> float | None:
    """What the job uses, as the daemon knows it: what it applied, or what it declared if it applied nothing."""
    lr = variables(daemon).get("lr")
    if lr is None:
        return None
    return (lr.applied[0].value if lr.applied else lr.desired).float_value


@contextmanager
def trained(target: str, folder: Path, *, workers: int = 2, batches: int = 64, **environment: str) -> Iterator[Program]:
    """A network that trains.

    Args:
        target: Where it finds the daemon.
        folder: Where its log goes.
        workers: Forked anew in each epoch.
        batches: Of an epoch.
        environment: Added to its environment.
    """
    words = ("epochs.py", "vgg", str(workers), str(batches))
    with program(*words, log=folder / "training.log", LIVETUNE_ENDPOINT=target, **environment) as job:
        yield job


@contextmanager
def staged(daemon: Daemon, patience: float = 60.0) -> Iterator[Stage]:
    with proxy(daemon.socket) as way:
        yield Stage(daemon, way, patience)


def suffer(stage: Stage, job: Program, fault: str, lr: float) -> int:
    """Lets a fault happen and go, and waits until daemon and job agree. Returns the steps that were made in it."""
    begun = job.facts(lambda _: True, stage.patience)["step"]
    happening = FAULTS[fault](stage, lr)
    next(happening)
    stage.declared += 1
    job.tell(f"declare late{stage.declared}")  # what needs the daemon, at the worst time
    now = job.facts(lambda fact: fact["step"] > begun + STEPS, stage.patience)
    next(happening, None)
    assert not stage.acknowledged or set(stage.acknowledged) <= set(stage.changes()), (
        "a change that was acknowledged is gone"
    )
    meet(stage, job)
    return int(now["step"]) - int(begun)


def meet(stage: Stage, job: Program) -> None:
    """Waits until daemon and job agree, on what was acknowledged last."""
    agreed = {"connected": True, "lr": stage.lr, "used": stage.lr, "saved": stage.fired}
    job.facts(lambda fact: agreed.items() <= fact.items(), stage.patience)
    eventually(lambda: stage.lr == in_use(stage.daemon), 60)
    late = {f"late{number}": 0.0 for number in range(1, stage.declared + 1)}
    expected = {"lr": stage.lr, "strength": 0.5, **late}
    eventually(lambda: expected == {name: item.desired.float_value for name, item in variables(stage.daemon).items()})


def nothing_lost(stage: Stage) -> None:
    """Each change that was acknowledged is in the history, and the job took it, or a later one at the same safe point."""

    def settled() -> bool:
        known = stage.changes() if stage.acknowledged else {}
        return all(known[revision].applies or known[revision].lapsed_ids for revision in stage.acknowledged)

    eventually(settled, 60)


def end(stage: Stage, job: Program) -> None:
    job.tell("end")
    assert [] == job.facts(lambda fact: "over" in fact)["lies"]
    assert 0 == job.wait(), job.log.read_text()[-2_000:]
    assert "Traceback" not in job.log.read_text()
    eventually(lambda: types_pb2.JOB_STATE_FINISHED == state_of(stage.daemon, "vgg"), 30)


def run_through(
    daemon: Daemon, folder: Path, faults: list[str], chosen_seed: int, patience: float = 60.0, **planted: str
) -> dict[str, object]:
    """Trains without a daemon, which then comes, and then through faults, one after the other."""
    generator = random.Random(chosen_seed)
    steps = dict.fromkeys(faults, 0)
    with staged(daemon, patience) as stage, trained(stage.way.target, folder, **planted) as job:
        assert not job.facts(lambda fact: fact["step"] > STEPS)["connected"]
        daemon.start()
        job.facts(lambda fact: fact["connected"])
        for fault in faults:
            steps[fault] += suffer(stage, job, fault, generator.uniform(0.001, 1.0))
            nothing_lost(stage)
        end(stage, job)
    return {"steps_in_faults": steps}


@pytest.mark.timeout(400)
def test_training_goes_on_through_every_fault_and_agrees_with_the_daemon_again(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    run_through(make_daemon(*PORTS), tmp_path, list(FAULTS), 120)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_training_outlives_one_fault_after_the_other(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    chosen, rounds = seed(121), count("TRAINING_FAULTS", 60)
    faults = random.Random(chosen).choices(list(FAULTS), k=rounds)
    with long_run("training through faults", chosen, faults=rounds) as figures:
        figures.update(run_through(make_daemon(*PORTS), tmp_path, faults, chosen))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("bug", "fault", "seen"),
    [
        pytest.param("waits", "frozen", "nothing for", marks=pytest.mark.slow),
        ("raises", "killed", "ConnectionError: the daemon has gone"),
        pytest.param("gives_up", "cut off", "nothing for", marks=pytest.mark.slow),
        pytest.param("alive_in_children", "slow", r"a worker says \(0.5, True\)", marks=pytest.mark.slow),
    ],
)
def test_control_without_its_protection_training_turns_it_red(
    make_daemon: Callable[..., Daemon], tmp_path: Path, bug: str, fault: str, seen: str
) -> None:
    with pytest.raises(AssertionError, match=seen):
        run_through(make_daemon(*PORTS), tmp_path, [fault], 1, CONTROL_SECONDS, LIVETUNE_PLANTED=bug)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_control_a_daemon_that_acknowledges_too_early_turns_it_red(tmp_path: Path) -> None:
    daemon = EarlyDaemon(tmp_path, *PORTS)
    try:
        with pytest.raises(AssertionError, match="a change that was acknowledged is gone"):
            run_through(daemon, tmp_path, ["killed"] * 20, 1)
    finally:
        daemon.close()


# -- a thousand forks --


def fork_often(daemon: Daemon, folder: Path, forks: int, chosen_seed: int, **environment: str) -> dict[str, object]:
    """Forks workers again and again, while the daemon is now frozen, now killed, now well. All of them do their work."""
    generator = random.Random(chosen_seed)
    faults = 0
    with staged(daemon.start()) as stage, trained(daemon.target, folder, batches=8, **environment) as job:
        fact = job.facts(lambda fact: fact["connected"] and fact["epoch"] > 10)
        process = psutil.Process(job.process.pid)
        files, threads = process.num_fds(), process.num_threads()
        while fact["forks"] < forks:
            fault, lr, forked = generator.choice(("frozen", "killed")), generator.uniform(0.001, 1.0), fact["forks"]
            happening = FAULTS[fault](stage, lr)
            next(happening)
            # Long enough for the connection to be given up, and made anew, while workers are forked.
            job.facts(lambda fact, forked=forked: fact["forks"] > forked + FORKS_IN_A_FAULT)
            next(happening, None)
            meet(stage, job)
            fact = job.facts(lambda _: True)
            faults += 1
        # Workers of the epoch that is under way, and the connection, come and go.
        eventually(lambda: process.num_fds() <= files + 8 and process.num_threads() <= threads + 8, 30)
        nothing_lost(stage)
        end(stage, job)
    return {"forks": fact["forks"], "faults": faults}


def test_workers_are_forked_while_the_daemon_comes_and_goes(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    fork_often(make_daemon(*PORTS), tmp_path, 60, 122)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_a_thousand_workers_are_forked_while_the_daemon_comes_and_goes(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    chosen, forks = seed(123), count("WORKER_FORKS", 1_000)
    with long_run("forks of workers", chosen, forks=forks) as figures:
        figures.update(fork_often(make_daemon(*PORTS), tmp_path, forks, chosen))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_control_workers_die_of_the_fork_handlers_of_grpc(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """They run in the child while a call is under way in the driver's thread. The SDK leaves them out unless it is told to."""
    with pytest.raises(AssertionError):
        fork_often(make_daemon(*PORTS), tmp_path, 1_000, 124, GRPC_ENABLE_FORK_SUPPORT="1")
    assert "DataLoader worker" in (tmp_path / "training.log").read_text()


# -- no step waits for the network, seen from the system --


def network_calls(daemon: Daemon, folder: Path, **planted: str) -> tuple[list[str], int]:
    """Traces a network that trains while the daemon is well, frozen, killed and back.

    Returns:
        The calls of the network that the training thread made since its first step, and how many the others made.
    """
    needs.strace()
    trace = folder / "trace"
    daemon.start()
    traced = ["-f", "-qq", "-o", str(trace), "-e", "trace=%network,write"]
    stage = Stage(daemon, None, 60.0)
    with program(
        "epochs.py", "vgg", "0", "64", log=folder / "training.log", under=["strace", *traced],
        LIVETUNE_ENDPOINT=daemon.target, **planted,
    ) as job:  # fmt: skip
        job.facts(lambda fact: fact["connected"])
        for fault in ("frozen", "killed"):
            suffer(stage, job, fault, 0.25 if fault == "frozen" else 0.5)
        end(stage, job)
    calls = [line.split(maxsplit=1) for line in trace.read_text().splitlines()]
    # The training thread is the one that says at which step it is; what else it writes is no matter.
    training, _ = next(call for call in calls if 'write(1, "{\\"step' in call[1])
    begun = next(number for number, (_, call) in enumerate(calls) if 'write(1, "{\\"step' in call)
    over = next(number for number, (_, call) in enumerate(calls) if 'write(1, "{\\"over' in call)
    network = [(thread, call) for thread, call in calls[begun:over] if not call.startswith(("write(", "<... write"))]
    return [call for thread, call in network if thread == training], sum(thread != training for thread, _ in network)


@pytest.mark.timeout(300)
def test_the_training_thread_makes_no_call_of_the_network(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    training, others = network_calls(make_daemon(*PORTS), tmp_path)
    assert others, "nobody spoke with the daemon: the trace sees nothing"
    assert [] == training


@pytest.mark.timeout(300)
def test_control_a_step_that_knocks_at_the_daemon_is_seen(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    training, _ = network_calls(make_daemon(*PORTS), tmp_path, LIVETUNE_PLANTED="knocks")
    assert any(call.startswith("connect(") for call in training)


# -- a rank is killed --


def survivors(daemon: Daemon, folder: Path, victim: int, *, frozen_too: bool, **planted: str) -> list[tuple[int, str]]:
    """Kills one of three ranks that share nothing but the SDK's own messages. Returns exit code and log of the others."""
    daemon.start()
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(
                program(
                    "ranked.py", "vgg", str(rank), "3", str(folder / "meeting"), "bare", log=folder / f"rank{rank}.log",
                    LIVETUNE_ENDPOINT=daemon.target, **planted,
                )
            )
            for rank in range(3)
        ]  # fmt: skip
        for rank in ranks:
            rank.facts(lambda fact: fact.get("ready"))
        eventually(lambda: types_pb2.JOB_STATE_RUNNING == state_of(daemon, "vgg"), 60)
        if frozen_too:
            assert daemon.process is not None
            daemon.process.send_signal(signal.SIGSTOP)
        ranks.pop(victim).process.kill()
        return [(rank.wait(), rank.log.read_text()) for rank in ranks]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("victim", "frozen_too"), [(0, False), (2, True)])
def test_the_ranks_that_are_left_train_to_their_end(
    make_daemon: Callable[..., Daemon], tmp_path: Path, victim: int, frozen_too: bool
) -> None:
    for code, log in survivors(make_daemon(*PORTS), tmp_path, victim, frozen_too=frozen_too):
        assert 0 == code, log
        assert "the ranks can't agree any more; training goes on, and no change is taken" in log


@pytest.mark.timeout(300)
def test_control_a_rank_that_is_gone_is_no_matter_of_the_program(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    ends = survivors(make_daemon(*PORTS), tmp_path, 0, frozen_too=False, LIVETUNE_PLANTED="ranks_raise")
    assert all(code and "livetune/job.py" in log.split("Traceback")[-1] for code, log in ends)


# -- the end --


def leave(daemon: Daemon, folder: Path, state: str, how: str, seconds: float, **planted: str) -> None:
    """Ends a program whose daemon is in a state. It ends by itself, as the program would without us."""
    with staged(daemon.start()) as stage, trained(stage.way.target, folder, **planted) as job:
        job.facts(lambda fact: fact["connected"])
        happening = FAULTS[state](stage, 0.5)
        next(happening)
        job.facts(lambda _: True)
        if how == "SIGINT":
            job.process.send_signal(signal.SIGINT)
        else:
            job.tell("leave")
        code = job.wait(seconds)
        assert {"SIGINT": code not in (0, -signal.SIGKILL), "leave": code == 0}[how], code
        next(happening, None)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["SIGINT", "leave"])
@pytest.mark.parametrize("state", ["frozen", pytest.param("swallowed", marks=pytest.mark.slow), "killed"])
def test_a_program_ends_at_once_whatever_its_daemon_does(
    make_daemon: Callable[..., Daemon], tmp_path: Path, state: str, how: str
) -> None:
    leave(make_daemon(*PORTS), tmp_path, state, how, LEAVES_SECONDS)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["SIGINT", "leave"])
def test_control_an_end_that_waits_for_the_daemon_is_seen(
    make_daemon: Callable[..., Daemon], tmp_path: Path, how: str
) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        leave(make_daemon(*PORTS), tmp_path, "frozen", how, CONTROL_SECONDS, LIVETUNE_PLANTED="never_leaves")
