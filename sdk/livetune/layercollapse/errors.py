"""The errors of LayerCollapse.

LiveTuneError
└── LayerCollapseError
    ├── ArgumentError   an argument is outside what the function accepts (also a ValueError)
    ├── PrepareError    the model cannot be prepared as asked
    └── CollapseError   the collapse was refused; model and optimizer are as they were
"""

from livetune.errors import LiveTuneError


class LayerCollapseError(LiveTuneError):
    """Base class of every error raised by `livetune.layercollapse`."""


class ArgumentError(LayerCollapseError, ValueError):
    """An argument breaks a rule; the message names the argument, the rule and the value."""


class PrepareError(LayerCollapseError):
    """The model cannot be prepared as asked; it is unchanged."""


class CollapseError(LayerCollapseError):
    """The collapse was refused; model and optimizer are exactly as they were."""
