"""A daemon with something planted in it: a bug, for the control of a fault test, or a limit that makes a test short."""

from __future__ import annotations

import sys
from pathlib import Path

from support.daemon import Daemon

_SCRIPT = Path(__file__).parent / "planted.py"


class PlantedDaemon(Daemon):
    """Starts `planted.py` in the daemon's place.

    Args:
        folder: As of any daemon.
        plants: What is planted, ``NAME`` or ``NAME=VALUE``, by the names in `planted.py`; may be nothing.
        arguments: As of any daemon.
    """

    def __init__(self, folder: Path, plants: list[str], *arguments: str, **environment: str) -> None:
        super().__init__(folder, *arguments, environment=environment)
        self._plants = plants

    def command(self) -> list[str]:
        command = super().command()
        return [sys.executable, str(_SCRIPT), ",".join(self._plants), *command[3:]] if self._plants else command
