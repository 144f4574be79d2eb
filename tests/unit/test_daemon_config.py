"""What the daemon is told: precedence, and all errors at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from livetuned.daemon.config import ConfigError, load
from livetuned.daemon.paths import socket_path, state_directory


def test_defaults_are_private() -> None:
    config = load({"HOME": "/home/ann", "XDG_RUNTIME_DIR": "/run/user/7"})
    assert Path("/home/ann/.local/state/livetune") == config.state
    assert ["unix:/run/user/7/livetune/livetuned.sock", "127.0.0.1:7470"] == list(map(str, config.listen))
    assert "127.0.0.1:9747" == str(config.metrics)
    assert (21_000, 21_999) == config.job_ports
    assert config.fsync


def test_flags_go_over_environment_over_defaults() -> None:
    environ = {
        "LIVETUNED_STATE": "/var/env",
        "LIVETUNED_LISTEN": "127.0.0.1:1, unix:/run/x/d.sock",
        "LIVETUNED_METRICS": "127.0.0.1:2",
        "LIVETUNED_JOB_PORTS": "3000-3001",
    }
    from_environment = load(environ)
    assert Path("/var/env") == from_environment.state
    assert ["127.0.0.1:1", "unix:/run/x/d.sock"] == list(map(str, from_environment.listen))
    assert (3_000, 3_001) == from_environment.job_ports
    from_flags = load(environ, state=Path("/f"), listen=("[::1]:5",), metrics="127.0.0.1:6", job_ports="4000-4000")
    assert (Path("/f"), ["[::1]:5"], "127.0.0.1:6", (4_000, 4_000)) == (
        from_flags.state,
        list(map(str, from_flags.listen)),
        str(from_flags.metrics),
        from_flags.job_ports,
    )


def test_all_errors_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load({"LIVETUNED_STAET": "x"}, listen=("0.0.0.0:1", "nonsense"), metrics="unix:/x", job_ports="5-1")
    starts = [
        "environment variable LIVETUNED_STAET is unknown",
        "listen address '0.0.0.0:1'",
        "listen address 'nonsense'",
        "metrics address 'unix:/x'",
        "job ports '5-1'",
    ]
    lines = str(caught.value).splitlines()
    assert starts == [line[: len(start)] for line, start in zip(lines, starts, strict=True)]


def test_systemds_folders_come_first() -> None:
    environ = {"STATE_DIRECTORY": "/var/lib/livetuned", "RUNTIME_DIRECTORY": "/run/livetuned:/run/other"}
    assert Path("/var/lib/livetuned") == state_directory(environ)
    assert Path("/run/livetuned/livetuned.sock") == socket_path(environ)
