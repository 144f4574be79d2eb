"""Owns what a program logs: the newest value of each series, until the driver sends it. Never waits, takes no lock."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Mapping
from itertools import count
from typing import Any

from livetune.errors import InvalidNameError
from livetune.messages import Sample
from livetune.specs import shown

__all__ = ["Logged"]

log = logging.getLogger("livetune")

SERIES = 200
"""Most names under which one process may log; the daemon keeps no more of one rank."""
MAX_NAME_BYTES = 200
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*([./][A-Za-z0-9_]+)*", re.ASCII)

_NOT_YET = -7.034562e-297
"""What stands in the host's memory until a copy from a GPU has arrived: no number of a training run."""
_POLL_SECONDS = 0.001


class _FromGpu:
    """One series of tensors in a GPU's memory: a copy to the host under way, and what was logged since it began.

    The copy is queued on the training thread's stream, behind what computes the value, and into pinned memory: nothing
    waits for the GPU, and what the program does to the tensor afterwards is not seen. The driver only ever looks at the
    host's memory, so that no call of CUDA is made behind the training thread's back (one would break the capture of a
    CUDA graph). A copy is begun only once the driver has taken the one before: about once a second.

    Args:
        host: Room for one float64 in pinned memory.
    """

    __slots__ = ("_host", "_step", "free", "waiting")

    def __init__(self, host: Any) -> None:
        self._host = host
        self._step = 0
        self.free = True
        self.waiting: tuple[int, Any] | None = None

    def put(self, step: int, tensor: Any) -> None:
        """Begin a copy, or keep the tensor until one can begin; on the training thread."""
        if self.free and not sys.modules["torch"].cuda.is_current_stream_capturing():
            self.waiting = None
            self._host.fill_(_NOT_YET)
            self._host.copy_(tensor.detach().reshape(()), non_blocking=True)
            self._step = step
            self.free = False
        else:
            self.waiting = step, tensor.detach()

    def take(self) -> tuple[int, float] | None:
        """Return step and value once they are here; on the driver's thread."""
        if self.free:
            return None
        value = float(self._host.item())
        if value == _NOT_YET:
            return None
        taken = self._step, value
        self.free = True
        return taken


class Logged:
    """The newest value of each series of one job.

    `put` is for the program's threads, `take` and `repeat` for the driver's. Each series is one entry of a dictionary,
    set in one go: no thread ever waits for another.

    Args:
        job: The job's name, for what is told.
    """

    def __init__(self, job: str = "") -> None:
        self._job = job
        self._newest: dict[str, tuple[int, Any]] = {}
        """By name: step and value; None for a value that is on its way from a GPU, and a thing that the driver is to
        convert."""
        self._sent: dict[str, tuple[int, Any]] = {}
        self._from_gpu: dict[str, _FromGpu] = {}
        self._pinned: Any = None
        """Room for one float64 of every series; pinning memory holds the GPU up, so that it is done once."""
        self._rooms = count()
        self._kept_waiting = False
        """A copy from a GPU can begin."""
        self._refused = 0
        self._told: set[str] = set()

    def put(self, values: Mapping[str, Any], step: int) -> None:
        """Take values. Raises what `Job.log` says."""
        newest = self._newest
        for name, value in values.items():
            if type(value) is float and name in newest:
                newest[name] = (step, value)
            else:
                self._put_other(name, value, step)
        if self._kept_waiting:
            self._begin_waiting()

    def _put_other(self, name: str, value: Any, step: int) -> None:
        """Take a value that is no float, or the first one of its series."""
        if name not in self._newest:
            _check_name(name)
            if len(self._newest) >= SERIES:
                self._refused += 1
                self._tell_once(f"{SERIES} series are logged, {name!r} and any further one is not kept")
                return
        if isinstance(value, (float, int)):
            self._newest[name] = step, _number(name, value)
        elif hasattr(value, "detach"):
            self._put_tensor(name, value, step)
        elif getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
            # Of other libraries than NumPy a value may still be computed somewhere: the driver waits for it.
            of_numpy = type(value).__module__.partition(".")[0] == "numpy"
            self._newest[name] = step, _number(name, value.item()) if of_numpy else value
        else:
            raise _no_number(name, value)

    def _put_tensor(self, name: str, tensor: Any, step: int) -> None:
        if tensor.numel() != 1:
            raise TypeError(
                f"what is logged as {name!r} must be one number, got a tensor of shape {tuple(tensor.shape)}: log its "
                "mean() or another number of it"
            )
        where = tensor.device.type
        if where == "cpu":
            self._newest[name] = step, _number(name, tensor.item())
        elif where != "cuda":
            self._newest[name] = step, tensor.detach()
        else:
            self._newest.setdefault(name, (-1, None))
            try:
                copy = self._from_gpu.get(name)
                if copy is None:
                    copy = self._from_gpu[name] = _FromGpu(self._room())
                copy.put(step, tensor)
            except Exception as error:  # noqa: BLE001 - no pinned memory, a tensor of an odd kind: training goes on
                self._lose(name, error)

    def _room(self) -> Any:
        if self._pinned is None:
            torch: Any = sys.modules["torch"]  # it made the tensor
            self._pinned = torch.empty(SERIES, dtype=torch.float64, pin_memory=True)
        return self._pinned[next(self._rooms)]

    def _begin_waiting(self) -> None:
        self._kept_waiting = False
        for name, copy in list(self._from_gpu.items()):
            if copy.free and copy.waiting is not None:
                try:
                    copy.put(*copy.waiting)
                except Exception as error:  # noqa: BLE001 - as above
                    copy.waiting = None
                    self._lose(name, error)

    def _lose(self, name: str, error: Exception) -> None:
        self._refused += 1
        self._tell_once(f"a value logged as {name!r} can't be read: {type(error).__name__}: {error}")

    def _tell_once(self, text: str) -> None:
        sort = text.partition("'")[0]
        if sort not in self._told:
            self._told.add(sort)
            log.warning("job %s: %s", self._job, text)

    def settle(self, seconds: float) -> None:
        """Wait until what is on its way from a GPU has arrived, at most so long; for the end of the program."""
        deadline = time.monotonic() + seconds
        while any(not copy.free or copy.waiting for copy in list(self._from_gpu.values())):
            self._take_from_gpu()
            self._begin_waiting()
            if time.monotonic() >= deadline:
                return
            time.sleep(_POLL_SECONDS)

    def repeat(self) -> None:
        """Begin anew: the newest value of every series is to be sent, whatever was sent before."""
        self._sent = {}

    def take(self) -> tuple[tuple[Sample, ...], int]:
        """Return what is new since the last call, and how many values were refused since then."""
        self._take_from_gpu()
        samples = []
        for name, entry in list(self._newest.items()):
            step, value = entry
            if value is None or self._sent.get(name) is entry:
                continue
            self._sent[name] = entry
            if type(value) is not float:
                try:
                    value = float(value.item())
                except Exception as error:  # noqa: BLE001 - whatever a library raises here, the session goes on
                    self._lose(name, error)
                    continue
            samples.append(Sample(name, step, value))
        refused, self._refused = self._refused, 0
        return tuple(samples), refused

    def _take_from_gpu(self) -> None:
        for name, copy in list(self._from_gpu.items()):
            taken = copy.take()
            if taken is not None and taken[0] >= self._newest[name][0]:
                self._newest[name] = taken
            self._kept_waiting = self._kept_waiting or (copy.free and copy.waiting is not None)


def _check_name(name: object) -> None:
    if not isinstance(name, str) or len(name) > MAX_NAME_BYTES or _NAME.fullmatch(name) is None:
        raise InvalidNameError(
            f"series name {shown(name)}: use ASCII letters, digits and _ in parts joined by dots or slashes, as in "
            f"'loss' or 'val/loss', not beginning with a digit, of 1 to {MAX_NAME_BYTES} bytes"
        )


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        bits = value.bit_length()
        raise ValueError(f"what is logged as {name!r} must fit a 64-bit float, got an int of {bits} bits") from None
    except (TypeError, ValueError):
        raise _no_number(name, value) from None


def _no_number(name: str, value: object) -> TypeError:
    return TypeError(
        f"what is logged as {name!r} must be a number (float, int, bool, a NumPy scalar, a tensor of one element), got "
        f"{shown(value)} of type {type(value).__name__}"
    )
