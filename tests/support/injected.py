"""A daemon under strace, which makes the nth system call of a kind fail, or kills the daemon at it."""

from __future__ import annotations

from pathlib import Path

from support.plants import PlantedDaemon


class InjectedDaemon(PlantedDaemon):
    """Starts with a fault that is to come; the next start is without it.

    Args:
        folder: As of any daemon.
        arguments: As of any daemon.
        plants: As of a planted daemon.

    Attributes:
        fault: What strace injects, for example ``fdatasync:error=EIO:when=7``; ``""`` for nothing. Each thread's calls are
            counted by themselves, and two write to the store: the event loop when it is at rest, and the store's own.
    """

    def __init__(self, folder: Path, *arguments: str, plants: list[str] | None = None) -> None:
        super().__init__(folder, plants or [], *arguments)
        self.fault = ""

    def command(self) -> list[str]:
        command = super().command()
        if not self.fault:
            return command
        calls = self.fault.partition(":")[0]
        # -D: strace is the grandchild, so that the daemon is our own child, with its own exit code. Without --seccomp-bpf:
        # with it strace injects no signals.
        strace = ["strace", "-D", "-f", "-qq", "-o", str(self.folder / "strace.log")]
        return [*strace, "-e", f"trace={calls}", "-e", f"inject={self.fault}", *command]

    def ended(self, seconds: float = 30.0) -> int:
        """Waits until it has ended by itself, and returns its exit code."""
        assert self.process is not None
        self.process.wait(seconds)
        return self._reap()
