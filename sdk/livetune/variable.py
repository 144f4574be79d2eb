"""Owns `Variable`: the value that training code reads, and what is known about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from livetune.arithmetic import Arithmetic
from livetune.callbacks import Callbacks
from livetune.messages import Used, Witnessed
from livetune.specs import Scalar, VariableSpec, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Self

    from livetune.shared import Page, Reader

__all__ = ["Variable"]

T_co = TypeVar("T_co", bound=Scalar, covariant=True)


class Variable(Arithmetic, Generic[T_co]):
    """A value of a running job that can be changed from outside. Made by `Job.variable`.

    It changes at the job's safe point, ``job.step()``, and at no other time: between two safe points every read gives
    the same value. ``var.value`` and ``var()`` read it; in expressions the variable stands for its value.

    Reading is safe from any thread, and in worker processes: in a forked child, and in a child of this machine that was
    given the variable by a pickle (spawn, forkserver), it reads the value that the job's process has in use. Once that
    process has ended, they keep the last value. A pickle that is loaded anywhere else, a checkpoint say, gives an inert
    copy that keeps the value it had; ``copy.copy`` and ``copy.deepcopy`` give the variable itself.

    Attributes:
        value: the value in use, of the type of the initial value. Read-only.
    """

    __slots__ = (
        "__weakref__", "_applied_step", "_callbacks", "_changed", "_inherited", "_revision", "_shared", "_spec",
        "_witness", "value",
    )  # fmt: skip

    value: T_co
    _spec: VariableSpec
    _revision: int
    _applied_step: int
    _changed: bool
    _inherited: bool
    _callbacks: Callbacks
    _shared: Page | Reader | None
    """What makes it current in worker processes."""
    _witness: Callable[[Witnessed | Used], None] | None
    """Takes what the program tells of how it uses the value; None in a copy."""

    def __init__(
        self,
        spec: VariableSpec,
        value: Scalar,
        revision: int = 0,
        applied_step: int = 0,
        shared: Page | None = None,
        witness: Callable[[Witnessed | Used], None] | None = None,
    ) -> None:
        object.__setattr__(self, "_spec", spec)
        object.__setattr__(self, "_callbacks", Callbacks(spec))
        object.__setattr__(self, "_shared", shared)
        object.__setattr__(self, "_witness", witness)
        self._put(value, revision, applied_step, changed=False)

    def _put(self, value: Scalar, revision: int, step: int, *, changed: bool, inherited: bool = False) -> None:
        """Take over a value; for the job at its safe point only."""
        put = object.__setattr__
        put(self, "value", value)
        put(self, "_revision", revision)
        put(self, "_applied_step", step)
        put(self, "_changed", changed)
        put(self, "_inherited", inherited)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        if name == "value":
            raise AttributeError(
                f"variable {self.name!r} is not assigned to in the program: it is changed from outside, with "
                f"`ltctl set JOB {self.name}={value}`, and takes effect at job.step()"
            )
        raise AttributeError(f"variable {self.name!r}: attribute {name!r} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"variable {self.name!r}: attribute {name!r} cannot be deleted")

    def __call__(self) -> T_co:
        """Read the value in use."""
        return self.value

    def changed(self) -> bool:
        """Say whether the value was changed from outside since the last call; asking clears it.

        A change that sets the value it already has does not count.
        """
        if not self._changed:
            return False
        object.__setattr__(self, "_changed", False)
        return True

    def pre_set(self, callback: Callable[[T_co], T_co]) -> Callable[[], None]:
        """Let a function rewrite new values before they are checked and used.

        Called as ``callback(value)`` at the safe point, on the training thread, for each new value; what it returns is
        used instead, and is what `ltctl set` shows as applied. If it raises `Veto`, or anything else, or returns what
        the declaration does not allow, the whole change is refused and the old value stays.

        Args:
            callback: Should be quick, and change nothing: of several changes at one safe point each is asked for, and
                a later one may win.

        Returns:
            A function that takes the callback out again.

        Raises:
            TypeError: `callback` can't be called.
        """
        return self._callbacks.add("pre", callback)

    def on_set(self, callback: Callable[[T_co, T_co], object]) -> Callable[[], None]:
        """Let a function refuse new values, by raising `Veto` with the reason.

        Called as ``callback(new, old)`` at the safe point, on the training thread, after all `pre_set` callbacks.
        Anything else that it raises refuses the change as well. A change of several variables is refused as a whole;
        the reason is recorded and reaches the person who typed ``ltctl set``, which then exits with 9.

        Args:
            callback: Should be quick, and change nothing, as for `pre_set`.

        Returns:
            A function that takes the callback out again.

        Raises:
            TypeError: `callback` can't be called.
        """
        return self._callbacks.add("on", callback)

    def post_set(self, callback: Callable[[T_co, T_co], object]) -> Callable[[], None]:
        """Let a function react to a value that has taken effect.

        Called as ``callback(new, old)`` inside ``job.step()``, on the training thread, after all variables of the
        safe point have their values. What it raises is logged and undoes nothing.

        Args:
            callback: May take its time: it is training that waits.

        Returns:
            A function that takes the callback out again.

        Raises:
            TypeError: `callback` can't be called.
        """
        return self._callbacks.add("post", callback)

    def expect_used(self, *, more: bool = True) -> None:
        """Promise to tell with `used` what the first step after each change really uses; for integrations.

        Acknowledgements of this variable's changes wait for it, a few seconds at most.

        Args:
            more: False takes one such promise back.
        """
        if self._witness is not None:
            self._witness(Witnessed(self._spec.name, more))

    def used(self, values: Iterable[float]) -> None:
        """Tell what the first step after a change really used: ``ltctl set`` shows it. For integrations.

        Args:
            values: One for each parameter group, or only one.
        """
        if self._witness is not None:
            self._witness(Used(self._spec.name, tuple(map(float, values))))

    @property
    def spec(self) -> VariableSpec:
        """What was declared."""
        return self._spec

    @property
    def name(self) -> str:
        """Name within the job."""
        return self._spec.name

    @property
    def unit(self) -> str:
        """Unit of the value as a person reads it, or ''."""
        return self._spec.unit

    @property
    def doc(self) -> str:
        """One sentence for whoever is about to change it, or ''."""
        return self._spec.doc

    @property
    def min(self) -> float | int | None:
        """Smallest value allowed, or None."""
        return self._spec.minimum

    @property
    def max(self) -> float | int | None:
        """Largest value allowed, or None."""
        return self._spec.maximum

    @property
    def choices(self) -> tuple[str, ...] | None:
        """The values allowed, or None for any."""
        return self._spec.choices

    @property
    def revision(self) -> int:
        """Revision of the change that the value comes from; 0 while no change has set it."""
        return self._revision

    @property
    def applied_step(self) -> int:
        """The job's step at whose safe point the value took effect; 0 for the initial value."""
        return self._applied_step

    @property
    def inherited(self) -> bool:
        """Whether the value was taken over when the process came to the job: nobody said it for that step."""
        return self._inherited

    def __repr__(self) -> str:
        spec = self._spec
        parts = [f"{spec.name}={shown(self.value)}{f' {spec.unit}' if spec.unit else ''}"]
        parts += [
            f"{word}={shown(bound)}"
            for word, bound in (("min", spec.minimum), ("max", spec.maximum), ("choices", spec.choices))
            if bound is not None
        ]
        if self._revision:
            parts.append(f"revision {self._revision} since step {self._applied_step}")
        return f"<Variable {', '.join(parts)}>"

    def _repr_html_(self) -> str:
        from livetune.notebook import variable_html

        return variable_html(self)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A model that holds its variable stays tuned when it is copied; a frozen copy would look alive and be dead.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        from livetune.shared import restore

        place = None if self._shared is None else self._shared.place_of(self)
        return restore, (self._spec, self.value, self._revision, self._applied_step, place)
