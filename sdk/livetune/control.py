"""Owns `RunControl`: what people ask of any training run, ready made: checkpoint, evaluate, stop, pause, an end."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from inspect import iscoroutinefunction
from typing import Literal

from livetune.job import Job
from livetune.trigger import Trigger
from livetune.variable import Variable

__all__ = ["RunControl"]

log = logging.getLogger("livetune")

PAUSE_SECONDS = 0.2
"""How often a paused run looks whether it may go on."""


class RunControl:
    """Triggers and variables that control a run as such. One line declares them, one line in the loop obeys them.

        control = livetune.RunControl(job)
        for batch in loader:
            train(batch)
            job.step()
            if control.checkpoint():
                save()
            if not control.proceed():
                break
        test()  # the rest of the program still runs

    ``ltctl trigger JOB run.stop`` ends the loop, ``ltctl set JOB run.paused=true`` holds it, ``run.max_steps=20000``
    moves its end. With ``livetune.init(..., ranks=...)`` all ranks obey at the same step.

    Args:
        job: The job to declare them in.
        max_steps: The step at which the loop ends by itself, 0 for none.
        on_restart: What `run.max_steps` begins with after its run was lost, as for `Job.variable`.

    Attributes:
        checkpoint: Trigger ``run.checkpoint``: asked once per firing, as any trigger.
        evaluate: Trigger ``run.evaluate``.
        paused: Variable ``run.paused``.
        max_steps: Variable ``run.max_steps``.

    Raises:
        DeclarationError: One of the names is declared otherwise, or `max_steps` is negative.
        JobFinishedError: The job has ended.
        TypeError: The job is one of `livetune.aio`, which has a `RunControl` of its own.
    """

    checkpoint: Trigger
    evaluate: Trigger
    paused: Variable[bool]
    max_steps: Variable[int]

    def __init__(self, job: Job, *, max_steps: int = 0, on_restart: Literal["keep", "reset"] = "keep") -> None:
        if iscoroutinefunction(job.finish) and not iscoroutinefunction(self.proceed):
            # A pause would hold the very loop over which its end has to come.
            raise TypeError(
                f"job {job.name!r} lives on an event loop: use livetune.aio.RunControl, and await proceed()"
            )
        self._job = job
        self.checkpoint = job.trigger("run.checkpoint", doc="Save a checkpoint now.")
        self.evaluate = job.trigger("run.evaluate", doc="Evaluate now.")
        self._stop = job.trigger("run.stop", doc="End the training loop; the rest of the program still runs.")
        self.paused = job.variable("run.paused", False, doc="Hold the training loop. Memory stays in use.")
        self.max_steps = job.variable(
            "run.max_steps",
            max_steps,
            min=0,
            unit="steps",
            doc="The step at which the loop ends; 0 for none.",
            on_restart=on_restart,
        )
        self._stopped = False

    def proceed(self) -> bool:
        """Hold while the run is paused, and say whether the loop goes on. Ask once per step, after ``job.step()``.

        While it holds, changes go on taking effect. A pause frees nothing: what is held is logged. If the daemon goes
        away meanwhile, the run stays paused until it is back.

        Returns:
            False once the run was stopped, or has reached `max_steps`; and ever after.
        """
        for seconds in self._pauses():
            time.sleep(seconds)
        return not self._stopped

    def _pauses(self) -> Iterator[float]:
        """Decide whether the loop goes on; while it is held, yield how long to wait until the next look, in seconds."""
        if self._stopped or self._stop() or 0 < self.max_steps.value <= self._job.current_step:
            self._stopped = True
        elif self.paused.value:
            yield from self._hold()

    def _hold(self) -> Iterator[float]:
        step, since = self._job.current_step, time.monotonic()
        log.warning("job %s: paused at step %d, holding %s", self._job.name, step, held())
        while self.paused.value and not self._stopped:
            yield PAUSE_SECONDS
            self._job._still(step)  # noqa: SLF001 - this is what it is for
            self._stopped = self._stop()
        log.warning(
            "job %s: %s after %.1f s of pause", self._job.name, "stopped" if self._stopped else "goes on",
            time.monotonic() - since,
        )  # fmt: skip


def held() -> str:
    """Say how much memory this process holds, on the host and on its GPUs."""
    parts = []
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 - no Path, no import of pathlib
            pages = int(statm.read().split()[1])
        parts.append(f"{pages * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB of memory")
    except (OSError, ValueError, IndexError):
        pass
    torch = sys.modules.get("torch")  # whoever has a GPU in use has loaded it
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        reserved = [(torch.cuda.memory_reserved(device), device) for device in range(torch.cuda.device_count())]
        parts += [f"{size / 2**30:.1f} GiB of GPU {device}" for size, device in reserved if size]
    return " and ".join(parts) or "what it has"
