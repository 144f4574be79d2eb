"""LiveTune: change the variables of a training job while it runs.

    import livetune

    job = livetune.init("vgg")
    lr = job.variable("lr", 1e-3, min=1e-6, max=1.0, scale="log", doc="Learning rate.")
    save = job.trigger("save")

    for batch in loader:
        ...
        job.step()  # the safe point: changes take effect here
        if save():
            ...

Importing this loads neither torch nor gRPC.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from livetune._version import __version__

if TYPE_CHECKING:
    from livetune.control import RunControl
    from livetune.errors import (
        CheckpointError,
        DaemonUnreachableError,
        DeclarationError,
        EndpointError,
        InvalidNameError,
        JobExistsError,
        JobFinishedError,
        LiveTuneError,
        ReplayError,
        Veto,
        WireError,
    )
    from livetune.job import Job, init
    from livetune.messages import AppliedChange
    from livetune.trigger import Trigger
    from livetune.variable import Variable

__all__ = [
    "AppliedChange",
    "CheckpointError",
    "DaemonUnreachableError",
    "DeclarationError",
    "EndpointError",
    "InvalidNameError",
    "Job",
    "JobExistsError",
    "JobFinishedError",
    "LiveTuneError",
    "ReplayError",
    "RunControl",
    "Trigger",
    "Variable",
    "Veto",
    "WireError",
    "__version__",
    "init",
]

_HOMES = {
    "AppliedChange": "livetune.messages",
    "Job": "livetune.job",
    "RunControl": "livetune.control",
    "Trigger": "livetune.trigger",
    "Variable": "livetune.variable",
    "init": "livetune.job",
}


def __getattr__(name: str) -> object:
    # Loaded when asked for: the daemon and ltctl use `livetune.v1` and must not carry the SDK along.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(_HOMES.get(name, "livetune.errors")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
