"""A program on an event loop for tests: asyncio in place of the threads of training.py, and the same habits otherwise.

Arguments: the job's name, and how it ends. It steps until "stop" is fired and tells what it sees, line by line; before it ends it
says so and waits for a line, so that a test can do something to its daemon.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import sys
from typing import Any

import livetune.aio

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
log = logging.getLogger("looping")
name, how = sys.argv[1:3]


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def odd(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    log.error("in the loop's exception handler: %s", context)


async def step(job: livetune.aio.Job) -> None:
    """What the program is for: its steps count how often the loop came round."""
    while True:
        job.step()
        await asyncio.sleep(0)


async def watch(job: livetune.aio.Job) -> None:
    while True:
        say(connected=False, steps=job.current_step)
        await job.wait_connected()
        say(connected=True, port=job.port, steps=job.current_step)
        await job.wait_for(lambda: not job.connected)


async def tell(job: livetune.aio.Job) -> None:
    async for change in job.applied_changes():
        say(step=change.step, **{name: new for name, (_, new) in change.values.items()})


async def tune(job: livetune.aio.Job) -> None:
    """Runs the job until it is told to stop, or cancelled."""
    job.variable("lr", 0.1, min=1e-6, max=1.0)
    job.variable("wd", 0.0)
    stop = job.trigger("stop")
    beside = [asyncio.create_task(coroutine(job)) for coroutine in (step, watch, tell)]
    try:
        await job.wait_for(stop)
        say(stopped=job.current_step)
        await asyncio.to_thread(sys.stdin.readline)
    finally:
        for task in beside:
            task.cancel()
        await asyncio.wait(beside)


def look(lr: livetune.Variable[float]) -> None:
    sys.exit(0 if lr.value == 0.1 else 1)


async def fork(job: livetune.aio.Job) -> None:
    """Forks as worker pools do, while the conversation is under way."""
    lr = job.variable("lr", 0.1, min=1e-6, max=1.0)
    assert await job.wait_connected(30)
    codes = []
    for _ in range(20):
        child = multiprocessing.get_context("fork").Process(target=look, args=(lr,))
        child.start()
        await asyncio.to_thread(child.join)
        codes.append(child.exitcode)
    say(codes=codes, connected=job.connected, support=os.environ.get("GRPC_ENABLE_FORK_SUPPORT"))


async def main() -> None:
    asyncio.get_running_loop().set_exception_handler(odd)
    job = livetune.aio.init(name)
    if how in ("block", "raise-in-block"):
        async with job:
            await tune(job)
            if how == "raise-in-block":
                raise RuntimeError("boom")
        return
    await (fork if how == "fork" else tune)(job)
    if how == "raise":
        raise RuntimeError("boom")
    if how.startswith("exit"):
        sys.exit(int(how.removeprefix("exit")))
    if how == "cancel":
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.wait({job._task})
    if how == "finish":
        await job.finish()
    if how == "late":  # everything is cancelled in the middle of it
        asyncio.create_task(job.finish())  # noqa: RUF006 - nobody waits for it, that is the point
        await asyncio.sleep(0)


if how == "left":  # a loop that is neither closed nor run any more
    asyncio.new_event_loop().run_until_complete(main())
elif how == "closed":
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
elif how == "twice":
    asyncio.run(main())
    asyncio.run(main())
else:
    asyncio.run(main())
