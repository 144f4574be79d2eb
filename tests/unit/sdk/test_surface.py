"""The package's surface: what it exports, and what importing it loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

import livetune


def loaded_by(code: str) -> set[str]:
    listing = "; import sys; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code + listing], capture_output=True, text=True, check=True)
    return set(answer.stdout.split())


def test_importing_and_using_it_without_a_daemon_loads_neither_torch_nor_grpc_nor_protobuf() -> None:
    heavy = {"torch", "grpc", "google.protobuf", "numpy", "asyncio", "multiprocessing", "livetune.notebook", "html"}
    assert set() == loaded_by("import livetune") & heavy
    declared = (
        "import livetune; from livetune.job import Job; from livetune.conversation import Identity; job = Job(Identity('x', 'i', 0, 1), endpoint='unix:/nowhere'); "
        "job.variable('lr', 0.1); job.trigger('t'); job.step()"
    )
    assert set() == loaded_by(declared) & heavy
    assert {"asyncio"} == loaded_by("import livetune.aio") & heavy


def test_the_exports_are_these() -> None:
    expected = [
        "AppliedChange",
        "CheckpointError",
        "DaemonUnreachableError",
        "DeclarationError",
        "EndpointError",
        "InvalidNameError",
        "Job",
        "JobExistsError",
        "JobFinishedError",
        "LiveTuneError",
        "ReplayError",
        "RunControl",
        "Trigger",
        "Variable",
        "Veto",
        "WireError",
        "__version__",
        "init",
    ]
    assert expected == livetune.__all__
    for name in expected:
        assert getattr(livetune, name) is not None
    assert set(expected) <= set(dir(livetune))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        livetune.nothing  # type: ignore[attr-defined] # noqa: B018


def test_every_error_is_a_livetune_error() -> None:
    errors = [getattr(livetune, name) for name in livetune.__all__ if name.endswith("Error")]
    assert all(issubclass(error, livetune.LiveTuneError) for error in errors)
