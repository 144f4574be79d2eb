"""Owns `RunControl` for programs on an event loop: a pause that holds the loop that asks, and nothing else."""

from __future__ import annotations

import asyncio

from livetune import control

__all__ = ["RunControl"]


class RunControl(control.RunControl):
    """Triggers and variables that control a run as such: `livetune.RunControl`, but ``proceed`` is awaited.

    control = livetune.aio.RunControl(job)
    async for batch in rollouts:
        train(batch)
        job.step()
        if not await control.proceed():
            break
    """

    async def proceed(self) -> bool:  # type: ignore[override] # the daemon is listened to while it holds
        """Hold while the run is paused, and say whether the loop goes on. Await it once per step, after ``job.step()``.

        Other tasks run on while it holds, and changes go on taking effect.

        Returns:
            False once the run was stopped, or has reached `max_steps`; and ever after.
        """
        for seconds in self._pauses():
            await asyncio.sleep(seconds)
        return not self._stopped
