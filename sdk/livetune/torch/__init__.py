"""Live variables in torch: bound to an optimizer's hyperparameters, or shown in a tensor. Needs torch.

Nothing here knows jobs: of a variable it reads what `HasValue` and `Subscribable` name.
"""

from livetune.torch.binding import Binding, bind
from livetune.torch.errors import BindError
from livetune.torch.news import HasValue
from livetune.torch.schedules import Mode
from livetune.torch.tensors import Subscribable, tensor

__all__ = ["BindError", "Binding", "HasValue", "Mode", "Subscribable", "bind", "tensor"]
