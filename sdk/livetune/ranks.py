"""Owns how the ranks of one job take changes at the same safe point: rank 0 leads, the others do what it says.

Only rank 0 talks to the daemon. About ten times a second the ranks meet, at safe points that all of them count in the
same way: rank 0 sends a message, and at the safe point that follows each rank has it. It says how many safe points lie
until the next meeting, and what is to take effect; nobody waits, the message travels while a step computes. If another
rank than 0 has a word on new values, the ranks vote on them in the same way, for one safe point more. Whatever becomes
of the daemon, or of the connection to it, every rank is told the same for the same safe point.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from livetune import messages as m
from livetune.checkpoint import Checkpoint
from livetune.errors import CheckpointError
from livetune.standin import Standin

if TYPE_CHECKING:
    from livetune.session import Session
    from livetune.variable import Variable

__all__ = ["Agreement", "Follower", "Lockstep"]

MEETING_SECONDS = 0.1
"""How often the ranks meet, where steps are shorter; otherwise at every step."""
_REGULAR = 2
"""So many safe points in a row, each one step after the one before, let the next ones be foreseen, a count."""
MOST_STEPS = 100
"""How many steps lie between two meetings at most: the steps to come may be longer than those that were measured."""

_Vetoes = dict[tuple[int, str], str]
"""Reasons, by the question's revision and name."""


class Agreement(Protocol):
    """What carries the messages between ranks.

    All ranks call `send`, `receive`, `poll`, `polled`, `share` and `gather` in the same order. Whatever a method raises
    is taken to mean that a rank is gone: from then on no change takes effect any more.
    """

    @property
    def rank(self) -> int:
        """This rank, from 0."""

    @property
    def size(self) -> int:
        """Number of ranks."""

    def attach(self, step: Callable[[], None]) -> None:
        """Take the job's safe point, for ranks that have run out of inputs before the others."""

    def passed(self) -> None:
        """Note that this rank is at a safe point."""

    def send(self, message: object) -> None:
        """Begin to bring a message from rank 0 to all ranks, without waiting. What others give here is not used."""

    def receive(self) -> Any:
        """Return that message."""

    def poll(self, yes: bool) -> None:
        """Begin to learn whether any rank says yes, without waiting."""

    def polled(self) -> bool:
        """Return whether any rank did."""

    def share(self, message: object) -> Any:
        """Bring a message from rank 0 to all ranks, and wait for it. Returns it, on every rank."""

    def gather(self, answer: object) -> list[Any]:
        """Bring an answer of each rank to rank 0. Returns them by rank there, nothing elsewhere."""

    def raise_hand(self) -> None:
        """Tell rank 0, at any time and without waiting, that this rank is to be asked from now on."""

    @property
    def hand_raised(self) -> bool:
        """For rank 0: whether any rank has raised its hand."""


class Follower(Standin):
    """What a rank other than 0 has instead of a session: it does what rank 0's session decided, at its own steps."""

    store_id = ""

    def __init__(self) -> None:
        super().__init__()
        self._told: tuple[m.Effect, ...] = ()
        self._values: dict[str, m.Assign] = {}
        """Newest values of what is not declared here yet."""

    def tell(self, effects: tuple[m.Effect, ...]) -> None:
        """Take what is to take effect at the safe point."""
        self._told = effects

    def handle(self, event: m.Event) -> list[m.Action]:
        """Take an event and return what is to be done, in order."""
        if isinstance(event, m.Restored):
            return self.restored(event)
        if isinstance(event, m.SafePoint):
            told, self._told = self._told, ()
            return [action for effect in told for action in effect.actions(event.step) if not self._kept(action)]
        if isinstance(event, m.VariableDeclared):
            value = self._values.pop(event.spec.name, None)
            self._in_use[event.spec.name] = event.spec.initial if value is None else value.value
            return [] if value is None else [value]
        return []

    def _kept(self, action: m.Action) -> bool:
        if not isinstance(action, m.Assign):
            return False
        declared = action.name in self._in_use
        if declared:
            self._in_use[action.name] = action.value
        else:
            self._values[action.name] = action
        return not declared


_Message = tuple[int, bool, int, "m.Proposal | None"]
"""What rank 0 says at a meeting.

How many safe points pass, after the one at which what it says takes effect, before the next meeting begins, with 0 at
that very one; whether the others are asked before what is proposed takes effect; how many safe points pass before it
does, besides those that it takes to tell and to ask; and that. Plain, since it is mostly (9, False, 0, None).
"""


class Lockstep:
    """One rank's part in the job's meetings.

    Args:
        ranks: Carries the messages.
        session: On rank 0 the session, elsewhere what stands for it.
        variables: What is declared, by name.
        lock: Held while the session is asked.
        take: Lets take effect what the session has for this safe point.
    """

    def __init__(
        self,
        ranks: Agreement,
        session: Session | Follower,
        variables: Mapping[str, Variable[Any]],
        *,
        lock: threading.RLock,
        take: Callable[[], None],
    ) -> None:
        self._ranks = ranks
        self._session = session
        self._variables = variables
        self._lock = lock
        self._take = take
        self._leads = not isinstance(session, Follower)
        self._asks = False
        """Some rank other than 0 has a word on new values."""
        self._hand_raised = False
        self._idle = 0
        """Safe points that lie before the next one at which there is something to do."""
        self._hurried = False
        self._refusals: _Vetoes = {}
        """What other ranks refuse of the changes that wait; for rank 0."""
        self._step = 0
        self._regular = 0
        """How many safe points in a row were one step after the one before."""
        self._pace = _Pace()
        self._course = self._meet()
        self.proposed = False
        """Rank 0 has said what is to take effect, and it has not yet: until then the session must learn nothing new."""

    def at_safe_point(self, step: int) -> None:
        """Be at the safe point.

        Args:
            step: Its step: on rank 0 it is the one that counts.

        Raises:
            Exception: The ranks can't agree any more.
        """
        self._ranks.passed()
        self._pace.passed += 1
        self._regular = self._regular + 1 if step == self._step + 1 else 0
        self._step = step
        if self._idle and not self._hurried:
            self._idle -= 1
        else:
            next(self._course)

    def go_on_from(self, state: Mapping[str, Any], take: Callable[[Checkpoint], None]) -> None:
        """Go on from rank 0's checkpoint, on every rank: to be called by all of them in the same place.

        Args:
            state: What `Job.state_dict` returned.
            take: Goes on from it here.

        Raises:
            CheckpointError: Rank 0 can't go on from it; raised on every rank.
        """
        shared: Checkpoint | CheckpointError | None = None
        if self._leads:
            try:
                checkpoint = Checkpoint.from_dict(state)
                take(checkpoint)
                # What is newer here than the checkpoint is so everywhere.
                in_use = {
                    name: (self._variables[name].value if name in self._variables else value, revision)
                    for name, (value, revision) in checkpoint.variables.items()
                }
                shared = replace(checkpoint, variables=in_use)
            except CheckpointError as error:
                shared = error
        shared = self._ranks.share(shared)
        if isinstance(shared, CheckpointError):
            raise shared
        if not self._leads and shared is not None:
            take(shared)

    def hurry(self) -> None:
        """Meet at the coming safe point: to be called by all ranks before the same one, where safe points are rare."""
        self._hurried = True

    def _meet(self) -> Iterator[None]:
        """Meet again and again. At each yield the rank goes on to its next safe point that is not an idle one."""
        self._ranks.poll(not self._leads and self._has_a_word())
        self._ranks.send(self._message())
        yield
        self._asks = self._ranks.polled()
        while True:
            message: _Message = self._ranks.receive()
            idle, asks, hold, proposal = message
            vetoed = False
            if proposal is not None:
                if proposal.questions and (asks or self._asks):
                    vetoed = yield from self._ask(proposal)
                if not vetoed:
                    for _ in range(hold):
                        yield
                    self._commit(proposal)
            if idle and not vetoed and not self._hurried:
                self._idle = idle - 1
                yield
            self._idle, self._hurried = 0, False
            if not self._leads and not self._hand_raised and self._has_a_word():
                self._hand_raised = True
                self._ranks.raise_hand()
            self._ranks.send(self._message())
            yield

    def _message(self) -> _Message | None:
        """On rank 0: what it says at this meeting."""
        session = self._session
        if isinstance(session, Follower):
            return None
        asks = self._has_a_word() or self._ranks.hand_raised
        # To tell takes one safe point, to ask one more. Where steps are counted one by one, it is known which step it
        # will be then; elsewhere what waits for a step is told when the step has come.
        lead = 2 if asks or self._asks else 1
        ahead = lead if self._regular >= _REGULAR else 0
        with self._lock:
            proposal = session.propose(self._refusals, self._step + ahead)
            if proposal is not None and not proposal.effects:
                self._commit(proposal)  # nothing that others would have a part in
                proposal = None
            self.proposed = proposal is not None
            later = session.next_step(self._step + ahead)
        took = lead if proposal is not None and proposal.questions else 1
        hold = 0 if proposal is None else max(0, proposal.step - self._step - took)
        idle = self._pace.next() - 1
        if later:
            idle = min(idle, max(0, later - ahead - self._step - took - hold))
        return idle, asks, hold, proposal

    def _ask(self, proposal: m.Proposal) -> Generator[None, None, bool]:
        """Vote on what is proposed, and say whether any rank vetoes a part of it."""
        vetoes = {} if self._leads else self._vetoes(proposal)
        self._ranks.poll(bool(vetoes))
        yield
        if not self._ranks.polled():
            return False
        answers: list[_Vetoes] = self._ranks.gather(vetoes)
        for rank, answer in enumerate(answers):
            for question, reason in answer.items():
                self._refusals.setdefault(question, f"rank {rank}: {reason}")
        return True

    def _vetoes(self, proposal: m.Proposal) -> _Vetoes:
        vetoes: _Vetoes = {}
        for asked in proposal.questions:
            variable = self._variables.get(asked.name)
            # rank 0 was asked when it proposed
            veto = None if variable is None else variable._callbacks.veto(asked.value, asked.old)  # noqa: SLF001
            if veto is not None:
                vetoes[asked.revision, asked.name] = veto.reason
        return vetoes

    def _commit(self, proposal: m.Proposal) -> None:
        if isinstance(self._session, Follower):
            self._session.tell(proposal.effects)
        self.proposed = False
        self._refusals = {}
        self._take()

    def _has_a_word(self) -> bool:
        return any(variable._callbacks.on for variable in self._variables.values())  # noqa: SLF001


class _Pace:
    """How many safe points there are from one meeting to the next, from how long the last ones took."""

    def __init__(self) -> None:
        self.passed = 0
        """Safe points since the last meeting."""
        self._steps = 1
        self._since = 0.0

    def next(self) -> int:
        """Return the number, at the beginning of a meeting."""
        now, passed = time.monotonic(), self.passed
        if passed and self._since:
            fitting = int(MEETING_SECONDS * passed / max(now - self._since, 1e-9))
            # A few quick calls say little about the steps that follow.
            self._steps = max(1, min(fitting, 2 * self._steps, MOST_STEPS))
        self._since, self.passed = now, 0
        return self._steps
