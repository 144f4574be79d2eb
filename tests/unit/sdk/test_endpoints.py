"""Where a daemon is looked for, in which order, and what is not trusted."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from livetune import endpoints
from livetune.errors import DaemonUnreachableError, EndpointError


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("unix:/run/d.sock", "unix:/run/d.sock"),
        ("unix:///run/d.sock", "unix:/run/d.sock"),
        ("127.0.0.1:7470", "127.0.0.1:7470"),
        ("localhost:1", "localhost:1"),
        ("[::1]:7470", "[::1]:7470"),
    ],
)
def test_endpoints_that_can_be_read(text: str, target: str) -> None:
    assert target == endpoints.parse_endpoint(text)


@pytest.mark.parametrize(
    "text", ["", "unix:", "unix:d.sock", "host", "host:", ":7470", "host:0", "host:65536", "a b:1"]
)
def test_endpoints_that_cannot_be_read(text: str) -> None:
    with pytest.raises(EndpointError, match="endpoint"):
        endpoints.parse_endpoint(text)


def test_the_environment_names_the_only_place() -> None:
    assert ["unix:/x"] == endpoints.candidates({"LIVETUNE_ENDPOINT": "unix:/x", "XDG_RUNTIME_DIR": "/run/user/1"})
    with pytest.raises(EndpointError, match="LIVETUNE_ENDPOINT: endpoint 'x'"):
        endpoints.candidates({"LIVETUNE_ENDPOINT": "x"})


def test_the_order_of_the_places() -> None:
    assert [
        "unix:/run/user/1/livetune/livetuned.sock",
        "unix:/run/livetuned/livetuned.sock",
        "127.0.0.1:7470",
    ] == endpoints.candidates({"XDG_RUNTIME_DIR": "/run/user/1"})


@pytest.mark.parametrize(("mode", "trusted"), [(0o700, True), (0o755, False), (0o770, False)])
def test_the_folder_in_tmp_counts_only_if_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, trusted: bool
) -> None:
    own = tmp_path / "livetune" / "livetuned.sock"
    own.parent.mkdir()
    own.parent.chmod(mode)
    monkeypatch.setattr(endpoints, "user_socket", lambda _: own)
    assert trusted == (f"unix:{own}" in endpoints.candidates({}))


def test_a_folder_of_another_user_or_a_link_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir(mode=0o700)
    link.symlink_to(folder)
    monkeypatch.setattr(endpoints, "user_socket", lambda _: link / "d.sock")
    assert 2 == len(endpoints.candidates({}))
    monkeypatch.setattr(endpoints, "user_socket", lambda _: folder / "d.sock")
    monkeypatch.setattr(os, "getuid", lambda: 12_345)
    assert 2 == len(endpoints.candidates({}))


def test_the_first_that_accepts_connections_is_taken(tmp_path: Path) -> None:
    dead, live = tmp_path / "dead", tmp_path / "live"
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        one.bind(str(dead))  # exists, but nobody listens
        two.bind(str(live))
        two.listen()
        targets = [f"unix:{tmp_path}/none", f"unix:{dead}", f"unix:{live}"]
        assert f"unix:{live}" == endpoints.resolve(targets)
        with pytest.raises(DaemonUnreachableError, match=r"none .No such file.*dead .Connection refused"):
            endpoints.resolve(targets[:2])


def test_tcp_is_probed_as_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = f"127.0.0.1:{server.getsockname()[1]}"
        assert target == endpoints.resolve([target])
