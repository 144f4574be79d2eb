"""Owns the error of everything in `livetune.torch` that ties a variable to something of torch."""

from livetune.errors import LiveTuneError


class BindError(LiveTuneError, ValueError):
    """Variables cannot be bound as asked; optimizer, schedulers and binding are unchanged."""
