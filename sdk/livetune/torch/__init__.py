"""Live variables in torch's optimizers. Needs torch; reads nothing of a variable but its `.value`."""

from livetune.torch.binding import BindError, Binding, HasValue, bind

__all__ = ["BindError", "Binding", "HasValue", "bind"]
