"""Owns the classic names: code for LiveTune 0.0.8 runs with ``from livetune.compat import liveVar, liveTrigger``.

Classic code has no job and no safe point. So this is what it gets:

- **One job for the process**, made with the first classic object. Its name is ``LIVETUNE_JOB``, else the script's name:
  ``train_vgg.py`` is job ``train-vgg``. If the program has one live job of its own (`livetune.init`), that is used.
- **Reads are the safe points** of a job made here. ``lr()`` begins a new round if ``lr`` was read in this one already,
  and changes take effect between two rounds. In a loop that reads each variable once, a round is an iteration: a change
  shows at the next iteration, all variables of one change together, and its acknowledgement tells the iteration's
  number. Where a single variable is read, a change shows at the next read. If the program has a job of its own, its
  ``job.step()`` is the safe point, and reads are only reads.
- **Values are checked** as everything is: no nan, no infinity. What the daemon offers (history, undo, acknowledgement)
  works for these variables too. They have no bounds: `Job.variable` declares those.

The classic ``tune`` command reaches them if the daemon's ``[classic]`` protocol is on. docs/migrating.md leads from
here to `livetune.init`, step by step. Only what is documented of LiveTune was used to write this, none of its code.
"""

from __future__ import annotations

import logging
import operator
import os
import re
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

from livetune.arithmetic import Arithmetic
from livetune.job import Job, init, live_jobs
from livetune.specs import Scalar, VariableSpec, declare_trigger
from livetune.trigger import Trigger
from livetune.variable import Variable

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["liveTrigger", "liveVar"]

log = logging.getLogger("livetune")

CONNECT_SECONDS = 5.0
"""How long the question for a port waits for a daemon, and for its answer."""

_NO_NAME = re.compile(r"[^A-Za-z0-9_.]")
_HOST = "127.0.0.1"
_DICTIONARY_ENTRY = b"request_type: dictionary_entry - "


class _Process:
    """What the classic objects of this process have in common."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.inert = False
        """This is a forked child: it has no job of its own."""
        self.objects: dict[str, liveVar | liveTrigger] = {}
        """By name: the newest of each tag."""
        self._job: Job | None = None
        self._own = False
        """The job was made here, so that reads are its safe points."""
        self._read: set[tuple[str, str]] | None = None
        """What was read in this round; None before the first."""
        self._told = False

    def job(self) -> Job | None:
        """Return the job to declare in, None where there can't be one."""
        with self.lock:
            live = live_jobs()
            if self._job not in live:
                self._job, self._own = None, False
                self.objects.clear()
                if len(live) == 1:
                    self._job = live[0]
                elif not self._is_child():
                    self._job, self._own, self._read = init(_job_name()), True, None
            return self._job

    def _is_child(self) -> bool:
        """Whether a job made here would be its parent's once more.

        A spawned worker runs the script again, up to its main part: what the script makes at its top is made there too.
        """
        processes = sys.modules.get("multiprocessing.process")
        spawned = processes is not None and processes.current_process().name != "MainProcess"
        if (spawned or self.inert) and not self._told:
            self._told = True
            log.info("a worker process has no job of its own: classic variables made in it keep their first value")
        return spawned or self.inert

    def about_to_read(self, job: Job | None, name: str, how: str) -> None:
        """Begin a new round if this was read in this one."""
        if job is None or job is not self._job or not self._own:
            return
        with self.lock:
            if self._read is None or (name, how) in self._read:
                job.step()
                self._read = set()
            self._read.add((name, how))

    def replace(self, name: str, tag: str, new: liveVar | liveTrigger) -> bool:
        """Let an object answer for its tag; say whether it takes another's place."""
        old = self.objects.get(name)
        self.objects[name] = new
        if old is None:
            return False
        old._end()  # noqa: SLF001 - ours
        warnings.warn(f"tag {tag!r} is used twice: from here on it is the newer one's", UserWarning, stacklevel=4)
        return True

    def after_fork_in_child(self) -> None:
        self.lock = threading.RLock()  # another thread of the parent may have held it
        self.inert = True
        self._job, self._own = None, False


_process = _Process()
os.register_at_fork(after_in_child=_process.after_fork_in_child)


def _job_name() -> str:
    """Name the job of a program that does not."""
    chosen = os.environ.get("LIVETUNE_JOB")
    if chosen:
        return chosen
    script = Path(sys.argv[0] if sys.argv else "")
    stem = script.resolve().parent.name if script.stem == "__main__" else script.stem
    return re.sub("[^a-z0-9]+", "-", stem.lower()).strip("-")[:63].strip("-") or "python"


def _name_of(tag: str) -> str:
    """Make a tag a name: classic tags may be any text."""
    name = _NO_NAME.sub("_", tag) if isinstance(tag, str) else tag  # type: ignore[redundant-expr] # untyped programs
    if name != tag:
        warnings.warn(f"tag {tag!r} is no name: the variable is called {name!r}", UserWarning, stacklevel=3)
    return name


# -- ports --


def _dictionary_port(job: Job | None) -> int | None:
    """Ask the daemon for a job's dictionary port; None if there is none."""
    if job is None or not job.wait_connected(CONNECT_SECONDS):
        return None
    import grpc

    from livetune.endpoints import CHANNEL_OPTIONS, candidates, resolve
    from livetune.errors import LiveTuneError
    from livetune.v1 import control_pb2, control_pb2_grpc
    from livetune.wire import job_name

    try:
        target = resolve(candidates(os.environ))
        with grpc.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
            stub = control_pb2_grpc.ControlServiceStub(channel)
            answer = stub.GetJob(control_pb2.GetJobRequest(name=job_name(job.name)), timeout=CONNECT_SECONDS)
    except (LiveTuneError, grpc.RpcError) as error:
        log.warning("job %s: its dictionary port can't be asked for: %s", job.name, error)
        return None
    return answer.job.classic_port or None


def _classic_port(job: Job | None, name: str) -> int | None:
    """Ask for the port of a variable or trigger, as the classic client does; None if there is none."""
    dictionary = _dictionary_port(job)
    if dictionary is None:
        return None
    try:
        with socket.create_connection((_HOST, dictionary), timeout=CONNECT_SECONDS) as connection:
            connection.sendall(_DICTIONARY_ENTRY + name.encode())
            answer = b"".join(iter(lambda: connection.recv(1024), b""))
    except OSError as error:
        log.warning("the port of %r can't be asked for: %s", name, error)
        return None
    return int(answer) if answer.isdigit() else None


class _DictionaryPort:
    """``liveVar.dictionary_port[0]``, of the class and of an object."""

    def __get__(self, _: object, __: type) -> list[int | None]:
        return [_dictionary_port(_process.job())]


class _Classic:
    """What classic variables and triggers have in common."""

    __slots__ = ()

    _job: Job | None
    _tag: str
    _name: str

    dictionary_port = _DictionaryPort()
    """A list of one: the job's dictionary port. Asks the daemon; see `get_dictionary_port`."""

    @property
    def tag(self) -> str:
        """The tag, as it was given."""
        return self._tag

    @property
    def port(self) -> int | None:
        """The port of this tag in the classic protocol.

        Asks the daemon, for 5 s at most. None if there is none, or its ``[classic]`` protocol is off.
        """
        return _classic_port(self._job, self._name)

    @staticmethod
    def get_dictionary_port() -> int | None:
        """Return the port that ``tune --port`` wants to know: the job's dictionary port.

        Asks the daemon, for 5 s at most. None if there is none, or its ``[classic]`` protocol is off.
        """
        return _dictionary_port(_process.job())

    @classmethod
    def setPort(cls, port: int) -> None:  # noqa: N802 - the classic name
        """Do nothing but warn: ports are assigned by the daemon, so that two programs never want the same one.

        Args:
            port: The dictionary port that is not taken.
        """
        warnings.warn(
            f"port {port} is not taken: the daemon assigns the ports; get_dictionary_port() tells",
            UserWarning,
            stacklevel=2,
        )


def _in_place(operation: Callable[[Any, Any], Any]) -> Callable[[liveVar, Any], liveVar]:
    def method(self: liveVar, other: Any) -> liveVar:
        self.update(operation(self.value, other.value if isinstance(other, Arithmetic) else other))
        return self

    return method


class liveVar(Arithmetic, _Classic):  # noqa: N801 - the classic name
    """A variable that is changed from outside, under its classic name and with its classic manners.

    ``lr()`` reads it. In expressions it stands for its value, on either side, with numpy and torch too; it can be
    hashed, formatted, compared, and pickled (a worker process reads the value in use, as with `livetune.Variable`).
    `update`, and so ``lr *= 0.5``, sets it in this process: until the next change from outside, and without the
    daemon's knowledge.

    Args:
        initial: The value to begin with; float, int or bool. Its type is the variable's for good.
        tag: The name under which it is changed. Letters, digits, ``_`` and ``.``; others become ``_``, with a warning.
            A tag that is used twice belongs to the newer object, with a warning; the older keeps its value.

    Raises:
        DeclarationError: The initial value is of another type, not finite, or of another type than the tag has.
        InvalidNameError: The tag can't be made a name.
    """

    __slots__ = ("__weakref__", "_job", "_local", "_name", "_set", "_tag", "_variable")

    _variable: Variable[Any]
    _local: tuple[Scalar, tuple[int, int] | None] | None
    """What the program set itself, and which change from outside was in use then (None: no change counts any more)."""
    _set: bool
    """The program set it, and did not ask `changed` yet."""

    def __init__(self, initial: Scalar, tag: str) -> None:
        name = _name_of(tag)
        spec = VariableSpec.declare(name, initial)
        with _process.lock:
            job = _process.job()
            known = None if job is None else job.variables.get(name)
            if known is not None and type(known.value) is type(spec.initial):
                self._variable = known
            else:
                # A name that is another type's, or a trigger's, is refused here.
                self._variable = (
                    Variable(spec, spec.initial) if job is None else job.variable(name, cast("Any", initial))
                )
            self._job, self._tag, self._name = job, tag, name
            self._local, self._set = None, False
            if _process.replace(name, tag, self) and spec.initial != self._variable.value:
                self._local = spec.initial, self._mark()

    @property
    def value(self) -> Any:
        """The value in use. Reading it may be a safe point; see the module."""
        _process.about_to_read(self._job, self._name, "value")
        return self._in_use()

    def __call__(self) -> Any:
        """Read the value in use. It may be a safe point; see the module."""
        return self.value

    def _in_use(self) -> Any:
        local = self._local
        if local is not None:
            value, mark = local
            if mark is None or mark == self._mark():
                return value
            self._local = None
        return self._variable.value

    def _mark(self) -> tuple[int, int]:
        return self._variable.revision, self._variable.applied_step

    def _end(self) -> None:
        """Keep the value for good: another object has the tag."""
        self._local = self._in_use(), None

    def changed(self) -> bool:
        """Say whether the value was changed, from outside or by `update`, since the last call; asking clears it.

        It may be a safe point, as reading is.
        """
        _process.about_to_read(self._job, self._name, "changed")
        own, self._set = self._set, False
        return self._variable.changed() | own

    def update(self, value: Scalar) -> None:
        """Set the value in this process, until a change from outside sets it again.

        The daemon is not told: ``ltctl get`` goes on showing the last value that was asked for from outside.

        Args:
            value: The new value, of the variable's type.

        Raises:
            TypeError: It is of another type.
            ValueError: It is not finite, or outside of what the variable allows.
        """
        plain = self.dtype
        if not isinstance(value, plain) or (isinstance(value, bool) and plain is not bool):
            raise TypeError(
                f"variable {self._tag!r} is of type {plain.__name__}: {value!r} is of type {type(value).__name__}"
            )
        value = plain(value)
        refusal = self._variable._spec.refusal(value)  # noqa: SLF001 - ours
        if refusal is not None:
            raise ValueError(refusal)
        with _process.lock:
            self._set = self._set or value != self._in_use()
            frozen = self._local is not None and self._local[1] is None
            self._local = value, None if frozen else self._mark()

    @property
    def var_value(self) -> Any:
        """The value in use, as `value`; setting it is `update`."""
        return self.value

    @var_value.setter
    def var_value(self, value: Scalar) -> None:
        self.update(value)

    @property
    def dtype(self) -> type[Any]:
        """The type of the value: float, int, bool or str."""
        return type(self._variable.value)

    @property
    def lock(self) -> Any:
        """A lock, to be used by ``with``: while a thread holds it, no other thread's read or update changes a value."""
        return _process.lock

    def __getitem__(self, key: Literal["value", "dtype", "port"]) -> Any:
        """Return the value, type or port.

        Raises:
            KeyError: It is asked for something else.
        """
        if key not in ("value", "dtype", "port"):
            raise KeyError(f"{key!r}: a liveVar has 'value', 'dtype' and 'port'")
        return getattr(self, key)

    __iadd__, __isub__ = _in_place(operator.add), _in_place(operator.sub)
    __imul__, __itruediv__ = _in_place(operator.mul), _in_place(operator.truediv)

    def __repr__(self) -> str:
        return f"<liveVar {self._tag}={self._in_use()!r}>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._variable, self._tag, self._name, self._local)


def _restore(variable: Variable[Any], tag: str, name: str, local: Any) -> liveVar:
    """Make a liveVar from its pickle: it reads, and belongs to no job."""
    copy = object.__new__(liveVar)
    copy._variable, copy._tag, copy._name, copy._local = variable, tag, name, local
    copy._job, copy._set = None, False
    return copy


class liveTrigger(_Classic):  # noqa: N801 - the classic name
    """An event that is fired from outside, under its classic name: ``if save(): ...`` is True once per firing.

    Args:
        tag: The name under which it is fired; see `liveVar`.

    Raises:
        DeclarationError: The tag is a variable's.
        InvalidNameError: The tag can't be made a name.
    """

    __slots__ = ("__weakref__", "_ended", "_job", "_name", "_tag", "_trigger")

    _trigger: Trigger | None

    def __init__(self, tag: str) -> None:
        name = _name_of(tag)
        declare_trigger(name)
        with _process.lock:
            self._job = _process.job()
            self._trigger = None if self._job is None else self._job.trigger(name)
            self._tag, self._name = tag, name
            self._ended = False
            _process.replace(name, tag, self)

    def __call__(self) -> bool:
        """Consume one firing, if there is one. Asking may be a safe point, as reading a variable is."""
        _process.about_to_read(self._job, self._name, "fired")
        with _process.lock:
            return self._trigger is not None and not self._ended and self._trigger()

    def _end(self) -> None:
        """Never fire again: another object has the tag."""
        self._ended = True

    def __bool__(self) -> NoReturn:
        raise TypeError(f"trigger {self._tag!r} is asked by calling it")

    def __repr__(self) -> str:
        return f"<liveTrigger {self._tag}>"
