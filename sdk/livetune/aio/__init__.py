"""LiveTune for programs whose loop is an asyncio event loop: rollout servers, reinforcement-learning actors.

    import asyncio

    import livetune.aio


    async def main():
        async with livetune.aio.init("rl-agent") as job:
            temperature = job.variable("temperature", 1.0, min=0.0, max=2.0)
            async for request in requests:
                await answer(request, temperature.value)
                job.step()  # the safe point: changes take effect here


    asyncio.run(main())

The conversation with the daemon is a task on the program's own event loop. `Job` is a `livetune.Job`: the same
variables, triggers, callbacks, log, record and replay; what waits is awaited. Importing this loads neither torch nor
gRPC; `init` loads gRPC.
"""

from livetune.aio.control import RunControl
from livetune.aio.job import Job, init

__all__ = ["Job", "RunControl", "init"]
