"""The energy counters of the benchmarks, on a made-up /sys: this machine may have none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def zone(powercap: Path, name: str, microjoules: int, label: str = "package-0") -> Path:
    folder = powercap / name
    folder.mkdir()
    for file, value in (("energy_uj", microjoules), ("max_energy_range_uj", 9_999_999), ("name", label)):
        (folder / file).write_text(f"{value}\n")
    return folder


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARKS)])


def test_a_package_is_read_in_joules_over_a_wrap_around(tmp_path: Path) -> None:
    from counters import rapl

    package = zone(tmp_path, "intel-rapl:0", 9_000_000)
    zone(tmp_path, "intel-rapl:0:0", 4_000_000, "core")
    found = rapl(tmp_path)
    assert ["RAPL intel-rapl:0 package-0"] == list(found)
    read = found["RAPL intel-rapl:0 package-0"]
    assert 9.0 == read()
    (package / "energy_uj").write_text("500000\n")
    assert 10.5 == read()
    (package / "energy_uj").write_text("700000\n")
    assert 10.7 == pytest.approx(read())


def test_what_is_not_there_or_not_a_number_is_left_out(tmp_path: Path) -> None:
    from counters import nvml, rapl

    (zone(tmp_path, "intel-rapl:1", 1) / "energy_uj").unlink()
    (zone(tmp_path, "intel-rapl:2", 1) / "energy_uj").write_text("none\n")
    assert {} == rapl(tmp_path)
    assert {} == rapl(tmp_path / "nowhere")
    assert {} == nvml("libnothing-of-the-kind.so")


@pytest.mark.parametrize("fails", ["", "nvmlInit_v2", "nvmlDeviceGetTotalEnergyConsumption"])
def test_a_gpu_is_read_in_joules_where_its_driver_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    import counters

    class Driver:
        """As NVML answers: 0 is success, results through pointers."""

        def __getattr__(self, name: str) -> object:
            def call(*arguments: object) -> int:
                if name == fails:
                    return 3  # NVML_ERROR_NOT_SUPPORTED
                if name == "nvmlDeviceGetCount_v2":
                    arguments[0]._obj.value = 1  # type: ignore[attr-defined]
                if name == "nvmlDeviceGetTotalEnergyConsumption":
                    arguments[1]._obj.value = 2_500  # type: ignore[attr-defined]
                return 0

            return call

    monkeypatch.setattr("ctypes.CDLL", lambda _: Driver())
    found = counters.nvml()
    assert ([] if fails else [2.5]) == [read() for read in found.values()]
