"""Owns `Job`: what training code holds. Declares variables and triggers, and has the safe point, `step`."""

from __future__ import annotations

import atexit
import logging
import operator
import os
import sys
import threading
import uuid
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, overload

from livetune import messages as m
from livetune.checkpoint import Checkpoint
from livetune.conversation import Identity
from livetune.driver import Driver, ThreadDriver
from livetune.endpoints import parse_endpoint
from livetune.errors import CheckpointError, DeclarationError, JobExistsError, JobFinishedError
from livetune.files import chosen_files
from livetune.logged import Logged
from livetune.messages import AppliedChange
from livetune.ranks import Agreement, Follower, Lockstep
from livetune.session import Session
from livetune.shared import Page
from livetune.specs import (
    INT64_MAX,
    Scalar,
    TriggerSpec,
    VariableSpec,
    check_job_name,
    declare_trigger,
    differences,
    shown,
    utf8,
)
from livetune.trigger import Trigger
from livetune.variable import Variable

if TYPE_CHECKING:
    from typing_extensions import Self

    from livetune.recorder import Recorder
    from livetune.replay import Replay

__all__ = ["End", "Job", "Patience", "begin", "how_it_ends", "init"]

log = logging.getLogger("livetune")

FINISH_SECONDS = 1.0
"""How long `finish` waits until the daemon has recorded the end."""
STOP_SECONDS = 0.5
"""How long it then waits for the thread."""
SETTLE_SECONDS = 0.1
"""How long `finish` waits for logged values that are on their way from a GPU."""
SHOWN = 20
"""How many variables the `repr` of a job shows."""
_NEVER = INT64_MAX + 1
"""No step: there is nothing to do."""
CHANGES_KEPT = 10_000
"""How many of the newest changes `Job.changes` keeps."""

JobT = TypeVar("JobT", bound="Job")

_live: dict[str, Job] = {}
_jobs: weakref.WeakSet[Job] = weakref.WeakSet()
"""All jobs of this process, to make them inert in a forked child."""
_live_lock = threading.Lock()


class End(TypedDict):
    """How a job ends: what `Job.finish` is told."""

    failed: bool
    message: str


class Patience:
    """What is left of the time that an end may take, in seconds, over all jobs that end together.

    A daemon that kept one of them waiting is not waited for again.
    """

    def __init__(self) -> None:
        self.record = FINISH_SECONDS
        self.stop = STOP_SECONDS


def init(
    name: str,
    *,
    endpoint: str | None = None,
    latest_only: bool = False,
    ranks: Agreement | None = None,
    record: str | os.PathLike[str] | None = None,
    replay: str | os.PathLike[str] | None = None,
) -> Job:
    """Make this process a tunable job. Returns at once, whether a daemon is there or not.

    A daemon is looked for at ``LIVETUNE_ENDPOINT``, then at the user's socket, the system's socket and
    ``127.0.0.1:7470``, again and again: the job trains on without one, and converges when one comes (back).

    A distributed job passes `ranks`: then rank 0 alone talks to the daemon, and every change takes effect at the same
    step on all ranks, or on none. Without it each process is on its own, with rank and world size as torchrun sets them
    in ``RANK`` and ``WORLD_SIZE``: then the ranks take a change at different steps.

    Args:
        name: 1 to 63 lower-case letters, digits and hyphens.
        endpoint: ``unix:/path`` or ``host:port``, to look nowhere else.
        latest_only: After a break, take only the newest value of each variable, not every change between. Firings of
            triggers are never left out.
        ranks: The ranks of the job, as `livetune.torch.Ranks`. Declare the same variables on all of them.
        record: File to write what takes effect to, and at which step; ``LIVETUNE_RECORD`` if None. ``{rank}`` in its
            name stands for the rank. A file that exists is continued. A fault of the disk is a warning, and ends the
            record, not the training.
        replay: File to take values and firings from, at the steps that it says; ``LIVETUNE_REPLAY`` if None. A record,
            or what ``ltctl history JOB -o jsonl`` printed. There is no daemon then: endpoints are ignored. ``{rank}``
            as above.

    Raises:
        InvalidNameError: The name breaks the rule.
        EndpointError: The endpoint, or ``LIVETUNE_ENDPOINT``, can't be read.
        JobExistsError: This process has a live job of that name.
        ReplayError: The file to replay is missing, empty, of a newer version or wrong in a line; or a record is asked
            for in the very file that is replayed, or in one file for several ranks.
        ValueError: ``RANK`` or ``WORLD_SIZE`` are set to what is no rank.
    """
    return begin(
        Job, name, endpoint=endpoint, latest_only=latest_only, ranks=ranks, record=record, replay=replay
    )  # fmt: skip


def begin(
    kind: type[JobT],
    name: str,
    *,
    endpoint: str | None,
    latest_only: bool,
    ranks: Agreement | None,
    record: str | os.PathLike[str] | None,
    replay: str | os.PathLike[str] | None,
) -> JobT:
    """Make this process a tunable job of a kind, as `init` says."""
    check_job_name(name)
    rank, world_size = _rank_from(os.environ) if ranks is None else (ranks.rank, ranks.size)
    files = chosen_files(record, replay, rank, world_size)
    chosen = "" if files.replay else endpoint or os.environ.get("LIVETUNE_ENDPOINT")
    if chosen:
        parse_endpoint(chosen)  # a typing error must be told now: later nobody listens
    if world_size > 1 and ranks is None and not files.replay:
        log.warning(
            "job %s: rank %d of %d is tuned by itself, and takes changes at a step of its own; "
            "livetune.init(..., ranks=livetune.torch.Ranks()) makes all ranks take them at the same step",
            name,
            rank,
            world_size,
        )
    identity = Identity(name, uuid.uuid4().hex, rank, world_size, latest_only, ranks is not None)
    # What rank 0 reports of a job whose ranks agree stands for all of them.
    played = files.open_replay(name, rank if ranks is None else 0)
    with _live_lock:
        if name in _live:
            raise JobExistsError(f"job {name!r} is live in this process already: finish() it first, or use that one")
        recorder = files.open_recorder(name, rank, world_size)
        job = _live[name] = kind(identity, endpoint=endpoint, ranks=ranks, replay=played, recorder=recorder)
    job._start()  # noqa: SLF001 - made here
    return job


def live_jobs() -> list[Job]:
    """The jobs of this process that have not ended."""
    return list(_live.values())


def _rank_from(environ: Mapping[str, str]) -> tuple[int, int]:
    rank_text, size_text = environ.get("RANK", "0"), environ.get("WORLD_SIZE", "1")
    try:
        rank, world_size = int(rank_text), int(size_text)
    except ValueError:
        raise ValueError(f"RANK={rank_text!r} and WORLD_SIZE={size_text!r} must be whole numbers") from None
    if not 0 <= rank < world_size:
        raise ValueError(f"RANK={rank} must be from 0 to WORLD_SIZE - 1 = {world_size - 1}")
    return rank, world_size


class Job:
    """A training job that is tuned while it runs. Made by `init`.

    ``step`` is the safe point: changes take effect there, on the thread that calls it, and nowhere else. Variables may
    be read from any thread; everything else belongs to the training thread. As a context manager the job finishes at
    the end, as failed if an exception leaves.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        endpoint: str | None,
        ranks: Agreement | None = None,
        replay: Replay | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._name = identity.job
        self._step = 0
        self._started = False
        self._due = 0
        """The step from which on there is something to do: at first any, to note that a safe point was reached."""
        self._variables: dict[str, Variable[Any]] = {}
        self._triggers: dict[str, Trigger] = {}
        self._specs: dict[str, VariableSpec | TriggerSpec] = {}
        self._changes: deque[AppliedChange] = deque(maxlen=CHANGES_KEPT)
        self._port: int | None = None
        self._logged = Logged(self._name)
        self._replay = replay
        self._recorder = recorder
        self._page = Page()
        self._checkpoint: Checkpoint | None = None
        """The one that the program went on from."""
        self._reactions: list[tuple[Variable[Any], Scalar, Scalar]] = []
        """Variables that were given values at this safe point, with the value and the one before."""
        self._applying: int | None = None
        """The step whose safe point is being worked on."""
        self._lock = threading.RLock()
        self._connected = threading.Event()
        self._recorded = threading.Event()
        self._finished = False
        self._session: Session | Follower | Replay
        self._lockstep: Lockstep | None = None
        self._backlog: list[m.Event] = []
        """What the daemon said while the ranks knew what is to take effect, and it had not yet."""
        follows = ranks is not None and ranks.rank > 0
        if replay is not None:
            # What was recorded has been judged, and each rank is told by its file, the same as the others.
            self._session = replay
        else:
            self._session = session = Follower() if follows else Session(self._judge, self._logged)
            if ranks is not None and ranks.size > 1:
                self._lockstep = Lockstep(ranks, session, self._variables, lock=self._lock, take=self._take_changes)
        self._driver: Driver | None = None
        if replay is None and not follows:
            self._driver = self._new_driver(identity, endpoint)
        if ranks is not None:
            ranks.attach(self.step)
        _jobs.add(self)

    def _new_driver(self, identity: Identity, endpoint: str | None) -> Driver:
        return ThreadDriver(identity, endpoint, self._deliver, self._reached)

    def _start(self) -> None:
        if self._driver is not None:
            self._driver.start()

    # -- declarations --

    @overload
    def variable(
        self,
        name: str,
        initial: bool,
        *,
        unit: str = "",
        doc: str = "",
        on_restart: Literal["keep", "reset"] = "keep",
    ) -> Variable[bool]: ...

    @overload
    def variable(
        self,
        name: str,
        initial: int,
        *,
        min: int | None = None,
        max: int | None = None,
        scale: str | None = None,
        unit: str = "",
        doc: str = "",
        on_restart: Literal["keep", "reset"] = "keep",
    ) -> Variable[int]: ...

    @overload
    def variable(
        self,
        name: str,
        initial: float,
        *,
        min: float | None = None,
        max: float | None = None,
        scale: str | None = None,
        unit: str = "",
        doc: str = "",
        on_restart: Literal["keep", "reset"] = "keep",
    ) -> Variable[float]: ...

    @overload
    def variable(
        self,
        name: str,
        initial: str,
        *,
        choices: Sequence[str] | None = None,
        unit: str = "",
        doc: str = "",
        on_restart: Literal["keep", "reset"] = "keep",
    ) -> Variable[str]: ...

    def variable(
        self,
        name: str,
        initial: Scalar,
        *,
        min: float | None = None,  # noqa: A002 - the words people use
        max: float | None = None,  # noqa: A002
        choices: Sequence[str] | None = None,
        scale: str | None = None,
        unit: str = "",
        doc: str = "",
        on_restart: Literal["keep", "reset"] = "keep",
    ) -> Variable[Any]:
        """Declare a value that can be changed from outside. Declaring the same again gives the same object.

        Args:
            name: Identifiers joined by dots, such as ``lr`` or ``lc.strength``; at most 200 bytes.
            initial: The value to begin with; its type (float, int, bool or str) is the variable's for good.
            min: Smallest value allowed; for float and int.
            max: Largest value allowed; for float and int.
            choices: The values allowed; for str.
            scale: ``"linear"`` or ``"log"``: how a control should space the values.
            unit: The value's unit as a person reads it, such as ``"1/step"``.
            doc: One sentence for whoever is about to change it.
            on_restart: What it begins with when the program is started again after its run was lost (killed, cut off):
                ``"keep"`` the value that was asked for last, ``"reset"`` `initial`; but a change that the lost run had
                not taken yet still applies.

        Raises:
            InvalidNameError: The name breaks the rule.
            DeclarationError: The declaration is wrong in itself, contradicts an earlier one, or does not allow a value
                that is to be replayed.
            JobFinishedError: The job has ended.
        """
        spec = VariableSpec.declare(
            name,
            initial,
            minimum=min,
            maximum=max,
            choices=choices,
            scale=scale,
            unit=unit,
            doc=doc,
            on_restart=on_restart,
        )
        with self._lock:
            if self._declares(spec):
                self._variables[name] = Variable(spec, spec.initial, shared=self._page, witness=self._witness)
                self._do(self._session.handle(m.VariableDeclared(spec)))
                self._restore_late(spec)
            return self._variables[name]

    def _restore_late(self, spec: VariableSpec) -> None:
        """Give a variable that is declared after a checkpoint was loaded the value that it has there."""
        if self._checkpoint is None or spec.name not in self._checkpoint.variables:
            return
        try:
            self._checkpoint.check([spec])
        except CheckpointError as error:
            log.warning("job %s: %s", self._name, error)
        else:
            self._do(self._session.handle(self._checkpoint.restored([spec.name], scheduled=False)))

    def trigger(self, name: str, *, doc: str = "") -> Trigger:
        """Declare an event that a person fires: ``if save(): ...`` is True once per firing.

        Args:
            name: Identifiers joined by dots; shares one set of names with the variables.
            doc: One sentence for whoever is about to fire it.

        Raises:
            InvalidNameError: The name breaks the rule.
            DeclarationError: The name is a variable's, or was declared with another doc.
            JobFinishedError: The job has ended.
        """
        spec = declare_trigger(name, doc)
        with self._lock:
            if self._declares(spec):
                self._triggers[name] = Trigger(spec, self._consume)
                self._do(self._session.handle(m.TriggerDeclared(spec)))
            return self._triggers[name]

    def _declares(self, spec: VariableSpec | TriggerSpec) -> bool:
        """Say whether a declaration is new."""
        if self._finished:
            raise JobFinishedError(f"job {self._name!r} has ended: {spec.name!r} can't be declared any more")
        known = self._specs.get(spec.name)
        if known is None:
            if self._replay is not None:
                self._replay.check(spec)
            if self._recorder is not None:
                self._recorder.declared(spec)
            self._specs[spec.name] = spec
            return True
        if differs := differences(known, spec):
            raise DeclarationError(f"{spec.name!r} is declared already, now with another declaration: {differs}")
        return False

    # -- the safe point --

    def step(self, step: int | None = None) -> None:
        """Be at the safe point: let changes take effect. Call it once per training step.

        Costs an increment and a test when nothing waits; never waits for the network; never raises because of the
        daemon.

        Args:
            step: The step's number; None counts on from the last one, from 1.

        Raises:
            TypeError: `step` is no whole number.
            ValueError: `step` is negative, or takes more than 64 bits.
        """
        self._step = now = self._step + 1 if step is None else _checked_step(step)
        if now >= self._due:
            self._apply()

    # -- checkpoints --

    def state_dict(self) -> dict[str, Any]:
        """Return what a restarted program needs in order to go on: values, step, and changes that wait for their step.

        Plain dictionaries, lists, text and numbers. Save it in the checkpoint, beside the states of model and optimizer
        (and of what `livetune.torch.bind` returned); `load_state_dict` takes it.
        """
        with self._lock:
            session = self._session
            return Checkpoint(
                job=self._name,
                store_id=session.store_id,
                run=session.run,
                step=self._step,
                variables={
                    name: (variable.value, session.revision_of(name)) for name, variable in self._variables.items()
                },
                scheduled=tuple(session.agenda),
            ).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: values, step and waiting changes are where they were.

        What was changed after the checkpoint was written wins, and the log says so: at once if it is known here
        already, else when the daemon tells. ``step()`` counts on from the checkpoint's step. Variables that the
        checkpoint does not have keep their values; one that is declared later takes its value then.

        Call it before the first step; or between any two, to go back to an earlier checkpoint. With
        ``init(..., ranks=...)`` it is a collective call: every rank makes it, and rank 0's checkpoint counts.

        Args:
            state: What `state_dict` returned, in this program or in another of the same variables.

        Raises:
            CheckpointError: It can't be read, is of another version, or has a value that a declaration does not allow
                now. Nothing has changed then.
            JobFinishedError: The job has ended.
        """
        if self._finished:
            raise JobFinishedError(f"job {self._name!r} has ended: it can't go on from a checkpoint")
        if self._lockstep is None:
            self._go_on_from(Checkpoint.from_dict(state))
        else:
            self._lockstep.go_on_from(state, self._go_on_from)

    def _go_on_from(self, checkpoint: Checkpoint) -> None:
        checkpoint.check(variable.spec for variable in self._variables.values())
        with self._lock:
            self._step = checkpoint.step
            self._checkpoint = checkpoint
            names = self._variables.keys() & checkpoint.variables.keys()
            self._do(self._session.handle(checkpoint.restored(names, scheduled=True)))

    def log(self, values: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        """Log numbers of the training, for whoever watches it: ``job.log(loss=loss, accuracy=0.9)``.

        Call it as often as you like, from any thread: it never waits, for the network or for a GPU, and never raises
        because of the daemon. It is a sample, not a record: about once a second the newest value of each series is
        sent, with the number of the last safe point before it was logged; values between are dropped. While the daemon
        is away nothing piles up; it gets the newest values when it is back. With ``init(..., ranks=...)`` only what
        rank 0 logs is sent, since it alone talks to the daemon; ranks on their own each have series of their own. After
        `finish` nothing is sent any more.

        A value is a float, an int, a bool, a NumPy scalar, or a tensor of one element. A CUDA tensor is copied to the
        host behind what computes it, about once a second, and nothing waits for that copy; in between, the newest
        tensor is held, and if the program changes it in place, the later value may be shown. NaN and infinity are
        values like others.

        Args:
            values: Values by name, for names that are no identifiers, such as ``{"val/loss": 0.3}``: ASCII letters,
                digits and underscores in parts joined by dots or slashes, at most 200 bytes. 200 names at most; what is
                logged under further ones is dropped, and told of once.
            **named: More values.

        Raises:
            InvalidNameError: A name breaks the rule.
            TypeError: A value is no number.
            ValueError: An int is too large for a 64-bit float.
        """
        self._logged.put(named if values is None else {**values, **named}, self._step)

    @property
    def _pending(self) -> bool:
        """Whether there is something to do at the next safe point, if that is one step on."""
        return self._due <= self._step + 1

    def _reached(self) -> int:
        """The step the program is at, -1 before the first safe point; for the driver."""
        return self._step if self._started else -1

    def _apply(self) -> None:
        if self._applying is not None:
            self._step = self._applying
            raise RuntimeError("job.step() can't be called by a callback: it is inside job.step()")
        self._applying = self._step
        self._due = 0  # a `step` of a callback comes here too
        try:
            if not self._started and self._recorder is not None:
                self._recorder.begin(self._step, self._session.store_id)
            self._started = True
            if self._lockstep is None:
                self._take_changes()
            else:
                self._meet(self._lockstep)
            reactions, self._reactions = self._reactions, []
            # Without the lock: what reacts may take its time, and the daemon is listened to meanwhile.
            for variable, new, old in reactions:
                variable._callbacks.react(new, old)  # noqa: SLF001 - made here
        finally:
            self._applying = None

    def _take_changes(self) -> None:
        with self._lock:
            actions = self._session.handle(m.SafePoint(self._step))
            self._due = _NEVER if self._lockstep is None else 0  # each rank has its part in every safe point
            self._do(actions)
            if self._recorder is not None:
                self._recorder.safe_point(self._step, actions, self._session.store_id)
            if self._reactions:
                self._due = 0
            self._catch_up()

    def _judge(self, name: str, value: Scalar, old: Scalar) -> Scalar | m.Refusal:
        return self._variables[name]._callbacks.judge(value, old)  # noqa: SLF001 - the safe point asks it

    def _meet(self, lockstep: Lockstep) -> None:
        try:
            lockstep.at_safe_point(self._step)
        except Exception:
            # A rank is gone. Nobody knows what the others were told last: no change takes effect any more.
            log.exception(
                "job %s: the ranks can't agree any more; training goes on, and no change is taken", self._name
            )
            self._lockstep = None
            self._leave()

    def _still(self, step: int) -> None:
        """Be at the safe point of a run that stands still: the ranks, which all do, meet at each of these."""
        if self._lockstep is not None:
            self._lockstep.hurry()
        self.step(step)

    def _leave(self, patience: Patience | None = None) -> None:
        """Stop talking to the daemon: it shows that the job is lost."""
        patience = patience or Patience()
        with self._lock:
            driver, self._driver = self._driver, None
            self._connected.clear()
            self._due = _NEVER
        if driver is not None and not driver.stop(patience.stop):
            patience.stop = 0.0

    def _witness(self, event: m.Witnessed | m.Used) -> None:
        with self._lock:
            self._do(self._session.handle(event))

    def _consume(self, trigger: str) -> None:
        with self._lock:
            self._do(self._session.handle(m.FiringConsumed(trigger, self._step)))
            if self._recorder is not None:
                self._recorder.consumed(trigger, self._step)

    def _deliver(self, event: m.Event) -> None:
        """Take an event on the driver's thread."""
        with self._lock:
            if self._driver is None:
                return
            if self._lockstep is not None and self._lockstep.proposed and not isinstance(event, m.Tick):
                self._backlog.append(event)
                return
            if isinstance(event, m.Registered):
                self._port = event.port
            self._do(self._session.handle(event))
            if self._finished and isinstance(event, m.Disconnected):
                self._recorded.set()  # the end does not wait for a daemon that has gone
            if self._session.connected:
                self._connected.set()
            else:
                self._connected.clear()

    def _catch_up(self) -> None:
        backlog, self._backlog = self._backlog, []
        for event in backlog:
            self._deliver(event)

    def _do(self, actions: list[m.Action]) -> None:
        for action in actions:
            if isinstance(action, m.Send):
                if self._driver is not None:
                    self._driver.send(action.message)
            elif isinstance(action, m.Assign):
                self._assign(action)
            elif isinstance(action, m.Show):
                if action.trigger in self._triggers:
                    self._triggers[action.trigger]._show(action.firings)  # noqa: SLF001
            elif isinstance(action, m.Record):
                self._changes.append(action.change)
            elif isinstance(action, m.Pending):
                self._due = min(self._due, action.step)
            elif isinstance(action, m.Warn):
                log.warning("job %s: %s", self._name, action.text)
            else:
                self._recorded.set()

    def _assign(self, action: m.Assign) -> None:
        variable = self._variables[action.name]
        if variable._callbacks.post:  # noqa: SLF001
            self._reactions.append((variable, action.value, variable.value))
        self._page.put(variable, action)

    # -- what is known --

    @property
    def name(self) -> str:
        """The job's name."""
        return self._name

    @property
    def port(self) -> int | None:
        """The port that the daemon assigned to the job; None until one has."""
        return self._port

    @property
    def current_step(self) -> int:
        """The number of the last safe point; 0 before the first."""
        return self._step

    @property
    def connected(self) -> bool:
        """Whether the daemon is connected right now, and knows what was declared before."""
        return self._connected.is_set()

    @property
    def variables(self) -> Mapping[str, Variable[Any]]:
        """The declared variables by name."""
        return MappingProxyType(self._variables)

    @property
    def changes(self) -> list[AppliedChange]:
        """The newest changes that took effect in this process, oldest first; at most 10,000."""
        from livetune.notebook import AppliedChanges

        return AppliedChanges(self._changes)

    def wait_connected(self, timeout: float) -> bool:
        """Wait until the daemon is connected; for notebooks and tests, not for training loops.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether it is; False at once in a replay.
        """
        return self._connected.wait(timeout if self._replay is None else 0)

    def _state(self) -> str:
        """Where it is, in words."""
        state = f"port {self._port}" if self.connected else "not connected"
        if self._replay is not None:
            state = f"replay of {self._replay.path}"
        return f"step {self._step}, {'ended' if self._finished else state}"

    def __repr__(self) -> str:
        variables = list(self._variables.items())
        values = [f"{name}={shown(variable.value)}" for name, variable in variables[:SHOWN]]
        if len(variables) > SHOWN:
            values.append(f"and {len(variables) - SHOWN} more")
        return f"<Job {self._name}, {self._state()}{': ' if values else ''}{', '.join(values)}>"

    def _repr_html_(self) -> str:
        from livetune.notebook import job_html

        variables, triggers = list(self._variables.values()), list(self._triggers.values())
        return job_html(self._name, self._state(), variables, triggers, self.changes)

    # -- the end --

    def finish(self, *, failed: bool = False, message: str = "") -> None:
        """Tell the daemon that the job ends, and stop talking to it. Takes a second at most; again does nothing.

        Variables stay readable, and `step` goes on counting.

        Args:
            failed: Whether it ends with an error.
            message: What the error was; shortened to 1,000 characters.
        """
        driver = self._say_end(failed=failed, message=message)
        self._part(driver, Patience(), failed=failed)

    def _part(self, driver: Driver | None, patience: Patience, *, failed: bool) -> None:
        """Wait until the daemon has recorded the end, and leave it."""
        if driver is not None:
            if driver.trying and not self._recorded.wait(patience.record):
                patience.record = 0.0
            self._leave(patience)
        self._ended(failed=failed)

    def _say_end(self, *, failed: bool, message: str) -> Driver | None:
        """Tell the daemon that the job ends. Returns who carries it there; None if nobody does, or it was said."""
        if not self._finished and self._driver is not None:
            self._logged.settle(SETTLE_SECONDS)
        with self._lock:
            if self._finished or self._driver is None:
                return None
            self._finished = True
            self._lockstep = None
            self._catch_up()
            # Exceptions carry names of files, and those anything; the wire carries UTF-8.
            self._do(self._session.handle(m.Finish(failed, utf8(message, 1000), self._step)))
            return self._driver

    def _begin_exit(self, end: End) -> Driver | None:
        """At the interpreter's exit, before `_end_exit` of any job: they all wait for the same time."""
        return self._say_end(**end)

    def _end_exit(self, driver: Driver | None, patience: Patience, end: End) -> None:
        self._part(driver, patience, failed=end["failed"])

    def _ended(self, *, failed: bool) -> None:
        with self._lock:
            recorder, self._recorder = self._recorder, None
            if recorder is not None:
                recorder.end(self._step, self._session.store_id, failed=failed)
        self._finished = True
        self._lockstep = None
        self._due = _NEVER
        with _live_lock:
            if _live.get(self._name) is self:
                del _live[self._name]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish(**how_it_ends(error))

    def _share(self) -> None:
        """Before a fork: let the child read the values that are in use here."""
        self._page.share(list(self._variables.values()))

    def _become_inert(self) -> None:
        """In a forked child: no network, no threads, no end to report; values are the parent's."""
        self._page.follow(self._variables.values())
        self._driver = None
        self._lockstep = None
        self._finished = True
        self._due = _NEVER
        self._logged = Logged(self._name)  # what is on its way from a GPU is the parent's
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.close()
        for trigger in self._triggers.values():
            trigger._drop()  # noqa: SLF001 - the parent consumes its firings
        # The parent's threads held these in a state that nobody will ever change again.
        self._lock = threading.RLock()
        self._connected = threading.Event()


def _checked_step(step: int) -> int:
    try:
        number = operator.index(step)
    except TypeError:
        raise TypeError(f"step must be a whole number, got {step!r} of type {type(step).__name__}") from None
    if not 0 <= number <= INT64_MAX:
        raise ValueError(f"step must be from 0 to 2**63 - 1, got {step!r}")
    return number


def how_it_ends(error: BaseException | None) -> End:
    """Say what `Job.finish` is to be told when an exception, or none, ends the program."""
    # SystemExit(0) is how a program says that all is well.
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return {"failed": False, "message": ""}
    text = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
    return {"failed": True, "message": text}


def _finish_all() -> None:
    """At the interpreter's exit: a job that nobody finished has ended well, unless an exception ended the program."""
    # In an interactive session it is just the last mistake that was typed.
    error = None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)
    end, patience = how_it_ends(error), Patience()
    for job, driver in [(job, job._begin_exit(end)) for job in live_jobs()]:  # noqa: SLF001 - the exit is this
        job._end_exit(driver, patience, end)  # noqa: SLF001 - module's business


def _before_fork() -> None:
    for job in live_jobs():
        job._share()  # noqa: SLF001 - forking is this module's business


def _after_fork_in_child() -> None:
    global _live_lock  # noqa: PLW0603 - another thread of the parent may have held it
    _live_lock = threading.Lock()
    for job in _jobs:
        job._become_inert()  # noqa: SLF001 - the same
    _live.clear()


atexit.register(_finish_all)
os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
