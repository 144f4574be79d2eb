"""Where the daemon keeps its state and its socket by default. SDK and ltctl look in the same places."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

DATABASE = "livetuned.db"
"""Name of the store's file in the state folder."""

SYSTEM_SOCKET = Path("/run/livetuned/livetuned.sock")
"""Where the daemon of the whole machine listens."""


def state_directory(environ: Mapping[str, str]) -> Path:
    """Returns ``$STATE_DIRECTORY`` (systemd), else ``$XDG_STATE_HOME/livetune``, else ``~/.local/state/livetune``."""
    if given := environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    home = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME", "/")) / ".local" / "state")
    return Path(home) / "livetune"


def socket_path(environ: Mapping[str, str]) -> Path:
    """Returns the socket in ``$RUNTIME_DIRECTORY`` (systemd), ``$XDG_RUNTIME_DIR/livetune``, ``/tmp/livetune-UID``."""
    if given := environ.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":")[0]) / "livetuned.sock"
    if given := environ.get("XDG_RUNTIME_DIR"):
        return Path(given) / "livetune" / "livetuned.sock"
    # Safe in a folder that everybody writes: the daemon and its clients refuse a folder that is not theirs alone.
    return Path(f"/tmp/livetune-{os.getuid()}/livetuned.sock")  # noqa: S108
