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

from livetune._version import __version__
from livetune.errors import (
    DaemonUnreachableError,
    DeclarationError,
    EndpointError,
    InvalidNameError,
    JobExistsError,
    JobFinishedError,
    LiveTuneError,
    WireError,
)
from livetune.job import Job, init
from livetune.messages import AppliedChange
from livetune.trigger import Trigger
from livetune.variable import Variable

__all__ = [
    "AppliedChange",
    "DaemonUnreachableError",
    "DeclarationError",
    "EndpointError",
    "InvalidNameError",
    "Job",
    "JobExistsError",
    "JobFinishedError",
    "LiveTuneError",
    "Trigger",
    "Variable",
    "WireError",
    "__version__",
    "init",
]
