"""The daemon as a process: its exit codes, what it refuses to start on, and where it and its clients look for each other."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from livetune.endpoints import candidates
from livetuned.daemon.paths import socket_path
from support.daemon import Daemon


def serve(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a daemon that is expected to end by itself."""
    return subprocess.run([*daemon.command(), *arguments], capture_output=True, text=True, timeout=30)


def test_a_clean_stop_leaves_neither_socket_nor_wal(daemon: Daemon) -> None:
    assert stat.S_IMODE(daemon.socket.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600
    assert 0 == daemon.stop()
    assert [] == list(daemon.socket.parent.iterdir())
    assert ["livetuned.db", "livetuned.db-head"] == sorted(path.name for path in daemon.state.iterdir())
    assert "Traceback" not in daemon.log


def test_it_refuses_addresses_that_others_could_reach(make_daemon: Callable[..., Daemon]) -> None:
    answer = serve(make_daemon(), "--listen", "0.0.0.0:7470", "--job-ports", "10-5")
    assert 2 == answer.returncode
    assert "listen address '0.0.0.0:7470': only loopback" in answer.stderr
    assert "daemon.job_ports = '10-5'" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_second_daemon_on_the_same_state_or_socket_is_refused(
    daemon: Daemon, make_daemon: Callable[..., Daemon]
) -> None:
    same_state = serve(daemon)
    assert 4 == same_state.returncode
    assert "in use by another livetuned" in same_state.stderr
    other = make_daemon(name="other")
    same_socket = subprocess.run(
        [*other.command(), "--listen", daemon.target], capture_output=True, text=True, timeout=30
    )
    assert 3 == same_socket.returncode
    assert "is in use by another program" in same_socket.stderr


def test_a_taken_port_is_named(daemon: Daemon, make_daemon: Callable[..., Daemon]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = make_daemon(name="other")
        for flag in ("--listen", "--metrics"):
            answer = serve(other, flag, f"127.0.0.1:{port}")
            assert 3 == answer.returncode
            assert f"127.0.0.1:{port}" in answer.stderr


@pytest.mark.parametrize("content", [b"no database " * 200, b""])
def test_a_store_that_is_not_one(make_daemon: Callable[..., Daemon], content: bytes) -> None:
    daemon = make_daemon()
    daemon.state.mkdir(parents=True)
    (daemon.state / "livetuned.db").write_bytes(content)
    if not content:
        daemon.start()  # an empty file is an empty store: the daemon was killed before it wrote its first page
        return
    answer = serve(daemon)
    assert 5 == answer.returncode
    assert "can't be opened as a store" in answer.stderr
    assert content == (daemon.state / "livetuned.db").read_bytes()


def test_a_state_folder_that_cannot_be_made(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = serve(make_daemon(), "--state", str(tmp_path / "file" / "state"))
    assert 5 == answer.returncode
    assert "can't be made" in answer.stderr


def test_job_ports_run_out(make_daemon: Callable[..., Daemon]) -> None:
    import grpc

    from support.process import Process

    daemon = make_daemon("--job-ports", "22030-22031").start()
    with daemon.channel() as channel:
        for name in ("one", "two"):
            Process(channel, name).register()
        with pytest.raises(grpc.RpcError) as caught:
            Process(channel, "three").register()
    assert grpc.StatusCode.RESOURCE_EXHAUSTED is caught.value.code()
    assert "all of 22030-22031 are taken" in caught.value.details()


@pytest.mark.parametrize("environ", [{"XDG_RUNTIME_DIR": "/run/user/7"}, {}])
def test_daemon_and_clients_agree_on_the_users_socket(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livetune.endpoints._is_private", lambda _: True)
    assert f"unix:{socket_path(environ)}" == candidates(environ)[0]


def test_versions_of_both_sides() -> None:
    for module in ("livetuned", "ltctl"):
        answer = subprocess.run(
            [sys.executable, "-m", module, "--version"], capture_output=True, text=True, env=dict(os.environ)
        )
        assert 0 == answer.returncode
        assert "0.1.0" in answer.stdout
