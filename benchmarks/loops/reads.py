"""Cost of reads, of what is logged, of an idle safe point, in nanoseconds, as JSON. Run with `ours` or `classic`."""

from __future__ import annotations

import json
import statistics
import sys
import timeit
from collections.abc import Callable

NUMBER, UNROLLED, REPEATS = 10_000, 20, 15


class Plain:
    """What a program has without us: an attribute."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.1


def nanoseconds(statement: str, **names: object) -> dict[str, float]:
    # Written out many times in a row, so that the loop around it hardly counts.
    timer = timeit.Timer(";".join([statement] * UNROLLED), globals=names)
    timer.timeit(NUMBER)
    runs = [timer.timeit(NUMBER) / NUMBER / UNROLLED * 1e9 for _ in range(REPEATS)]
    return {"median": statistics.median(runs), "min": min(runs), "max": max(runs), "runs": REPEATS}


def ours(results: dict[str, dict[str, float]], timed: Callable[..., dict[str, float]]) -> None:
    import livetune

    for count in (1, 100):
        job = livetune.init(f"bench-reads-{count}")
        variables = [job.variable(f"x{number}", 0.1) for number in range(count)]
        job.wait_connected(20)
        if count == 1:
            results["var.value"] = timed("v.value", v=variables[0])
            results["var()"] = timed("v()", v=variables[0])
            results["float(var)"] = timed("float(v)", v=variables[0])
            results["job.log(), 2 floats"] = timed("log(loss=0.5, accuracy=0.9)", log=job.log)
        results[f"job.step(), {count} variable{'s' * (count > 1)}"] = timed("step()", step=job.step)
        job.finish()


def classic(results: dict[str, dict[str, float]], timed: Callable[..., dict[str, float]]) -> None:
    from LiveTune.liveVar import liveVar

    results["LiveTune var()"] = timed("v()", v=liveVar(0.1, "x"))


results: dict[str, dict[str, float]] = {"plain attribute": nanoseconds("p.value", p=Plain())}
{"ours": ours, "classic": classic}[sys.argv[1]](results, nanoseconds)
sys.stdout.write("\n" + json.dumps(results) + "\n")
sys.stdout.flush()
