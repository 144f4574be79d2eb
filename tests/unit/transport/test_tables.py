"""Tables that must be complete, and messages that must survive the way to the wire and back."""

from __future__ import annotations

import subprocess
import sys

import pytest
from google.rpc import error_details_pb2, status_pb2

from livetuned.domain.errors import DomainError, Reason
from livetuned.transport.addresses import AddressError, TcpAddress, UnixAddress, parse_address, prepare_socket
from livetuned.transport.errors import STATUS, details


def test_every_reason_has_a_status() -> None:
    assert set(Reason) == set(STATUS)


def test_details_are_googles_own_messages() -> None:
    error = DomainError(Reason.ABOVE_MAXIMUM, "too high", variable="lr", rule="<= 1", value="2")
    status = status_pb2.Status.FromString(details(error))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (11, "too high") == (status.code, status.message)
    assert ("ABOVE_MAXIMUM", "livetune", {"variable": "lr", "rule": "<= 1", "value": "2"}) == (
        info.reason,
        info.domain,
        dict(info.metadata),
    )


@pytest.mark.parametrize(
    ("text", "port"), [("127.0.0.1:7470", 7470), ("[::1]:0", 0), ("localhost:1", 1), ("127.9.9.9:5", 5)]
)
def test_loopback_is_allowed(text: str, port: int) -> None:
    address = parse_address(text)
    assert isinstance(address, TcpAddress)
    assert port == address.port


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.0.0.0:7470", "loopback"),
        ("[::]:7470", "loopback"),
        ("192.168.1.2:7470", "loopback"),
        ("example.org:7470", "loopback"),
        ("127.0.0.1", "neither"),
        (":7470", "neither"),
        ("127.0.0.1:x", "'x'"),
        ("127.0.0.1:70000", "'70000'"),
        ("127.0.0.1:-1", "'-1'"),
        ("unix:run/d.sock", "absolute"),
        ("unix:/" + "x" * 107, "107"),
        ("", "neither"),
    ],
)
def test_other_addresses_are_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(text)
    assert repr(text) in str(caught.value)
    assert words in str(caught.value)


def test_a_sockets_folder_must_be_private(tmp_path) -> None:  # type: ignore[no-untyped-def]
    address = parse_address(f"unix:{tmp_path}/run/d.sock")
    assert isinstance(address, UnixAddress)
    prepare_socket(address.path)
    assert 0o700 == address.path.parent.stat().st_mode & 0o777
    address.path.parent.chmod(0o755)
    with pytest.raises(AddressError, match=r"mode 0700, not uid \d+ and mode 0755"):
        prepare_socket(address.path)
    address.path.parent.chmod(0o700)
    address.path.write_text("not a socket")
    with pytest.raises(AddressError, match="is not a socket"):
        prepare_socket(address.path)
    assert "not a socket" == address.path.read_text()


def test_the_daemon_imports_neither_torch_nor_the_sdk_beyond_the_contract() -> None:
    code = (
        "import sys, livetuned.daemon.app; "
        "print(sorted(m for m in sys.modules if m == 'torch' or m.startswith('livetune.') and not m.startswith(('livetune.v1', 'livetune._version'))))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]" == answer.stdout.strip()
