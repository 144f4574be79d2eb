"""Energy counters of the machine, where it has some that may be read: RAPL of the processor, NVML of NVIDIA's GPUs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")

Counter = Callable[[], float]
"""Joules since some moment; rises."""


class Rapl:
    """One package's counter. It wraps around within minutes to hours, so it is to be read more often than that.

    Args:
        zone: Its folder, such as /sys/class/powercap/intel-rapl:0.

    Raises:
        OSError: It is not there, or may not be read: mostly root alone may.
    """

    def __init__(self, zone: Path) -> None:
        self._file = zone / "energy_uj"
        self._range = int((zone / "max_energy_range_uj").read_text()) + 1
        self._last = int(self._file.read_text())
        self._wrapped = 0

    def __call__(self) -> float:
        """Returns the joules."""
        now = int(self._file.read_text())
        if now < self._last:
            self._wrapped += self._range
        self._last = now
        return (self._wrapped + now) / 1e6


def rapl(powercap: Path = POWERCAP) -> dict[str, Counter]:
    """Returns a counter for each package that can be read, by its name."""
    found: dict[str, Counter] = {}
    # Zones within a package (core, uncore, dram) have two colons. What is in the package would count twice.
    for zone in sorted(powercap.glob("*-rapl:*")):
        if zone.name.count(":") == 1:
            with suppress(OSError, ValueError):
                found[f"RAPL {zone.name} {(zone / 'name').read_text().strip()}"] = Rapl(zone)
    return found


def nvml(library: str = "libnvidia-ml.so.1") -> dict[str, Counter]:
    """Returns a counter for each GPU that has one (Volta or newer)."""
    try:
        driver = ctypes.CDLL(library)
        count = ctypes.c_uint()
        if driver.nvmlInit_v2() or driver.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return {}
    except (OSError, AttributeError):  # no driver, or one that is older than these names
        return {}
    found: dict[str, Counter] = {}
    for number in range(count.value):
        device, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
        if driver.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(device)):
            continue

        def read(device: ctypes.c_void_p = device, millijoules: ctypes.c_ulonglong = millijoules) -> float:
            if code := driver.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)):
                raise OSError(f"NVML answers {code}")
            return millijoules.value / 1e3

        with suppress(OSError):  # a GPU without the counter
            read()
            found[f"NVML GPU {number}"] = read
    return found


def counters() -> dict[str, Counter]:
    """Returns all counters of this machine that can be read, by name."""
    return {**rapl(), **nvml()}
