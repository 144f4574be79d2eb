"""Live variables in torch's optimizers. Needs torch; reads nothing of a variable but its `.value`."""

from livetune.torch.binding import BindError, Binding, HasValue, bind
from livetune.torch.ranks import Ranks, RanksError

__all__ = ["BindError", "Binding", "HasValue", "Ranks", "RanksError", "bind"]
