"""Live variables in torch: bound to an optimizer's hyperparameters, or shown in a tensor; and the ranks of a job.

Needs torch. Nothing here knows jobs: of a variable it reads what `HasValue` and `Settable` name.
"""

from livetune.torch.binding import Binding, bind
from livetune.torch.errors import BindError
from livetune.torch.news import HasValue
from livetune.torch.ranks import Ranks, RanksError
from livetune.torch.schedules import Mode
from livetune.torch.tensors import Settable, tensor

__all__ = ["BindError", "Binding", "HasValue", "Mode", "Ranks", "RanksError", "Settable", "bind", "tensor"]
