"""Version of the distribution: SDK, ltctl and daemon are released together."""

__version__ = "0.1.0"
