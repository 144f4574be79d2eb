"""Backing up a running daemon: finding it, and writing what it sends."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc

from livetune.v1 import admin_pb2, admin_pb2_grpc
from livetuned.daemon import config, paths
from livetuned.daemon.files import partial_file
from livetuned.daemon.keeping import KeepingError, Written, check_target, put, told, write
from livetuned.daemon.lifecycle import ExitCode
from livetuned.domain.job import Job
from livetuned.service import clock
from livetuned.store import codec
from livetuned.store.copy import CopyError, Raw, copy_note
from livetuned.transport.addresses import Address, AddressError, TcpAddress, UnixAddress, parse_address

_PROBE_SECONDS = 0.5
"""How long one place may take to accept a connection, in seconds."""

_CONNECT_SECONDS = 5.0
"""How long a daemon may take to answer at all, in seconds."""

_OPTIONS: list[tuple[str, int]] = [
    # A daemon that is frozen or cut off is noticed within seconds; the ping has a time-out of its own.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    # A proxy that the environment names for the web leads nowhere near a daemon.
    ("grpc.enable_http_proxy", 0),
    # A job is one message.
    ("grpc.max_receive_message_length", -1),
]

_CODES = {
    grpc.StatusCode.UNAVAILABLE: ExitCode.UNREACHABLE,
    grpc.StatusCode.DATA_LOSS: ExitCode.STORE_UNUSABLE,
}


def backup_running(target: Path, endpoint: str | None, *, force: bool) -> tuple[str, Written]:
    """Backs up the store of a running daemon, as of the moment of the call, while it goes on.

    Args:
        target: The file to be.
        endpoint: Where the daemon listens; None to look where it does by default.
        force: A file may be there; it is replaced.

    Returns:
        Where the daemon was found, and what was written.

    Raises:
        KeepingError: It was not done.
    """
    with told():
        check_target(target, force=force, way_out="; --force replaces it")
        address = _found(_places(os.environ, endpoint))
        with partial_file(target) as path, grpc.insecure_channel(str(address), options=_OPTIONS) as channel:
            written = _received(channel, path, str(address))
            return str(address), put(path, target, written, force=force)


def _places(environ: Mapping[str, str], endpoint: str | None) -> list[Address]:
    """Returns where to look: as told, or where this user's daemon would listen, then the machine's."""
    named = endpoint or environ.get("LIVETUNE_ENDPOINT")
    if named:
        try:
            return [parse_address(named)]
        except AddressError as error:
            what = "endpoint" if endpoint else "LIVETUNE_ENDPOINT: endpoint"
            raise KeepingError(ExitCode.USAGE, str(error).replace("listen address", what, 1)) from error
    try:
        places = list(config.load(environ).listen)
    except config.ConfigError as error:
        raise KeepingError(ExitCode.USAGE, str(error)) from error
    system = UnixAddress(paths.SYSTEM_SOCKET)
    if system not in places:
        sockets = [place for place in places if isinstance(place, UnixAddress)]
        places.insert(len(sockets), system)
    return [place for place in places if _trusted(place)]


def _trusted(place: Address) -> bool:
    if isinstance(place, TcpAddress):
        return place.port != 0
    if place.path != paths.socket_path({}):
        return True
    # Anybody may have made a folder in /tmp.
    try:
        about = place.path.parent.lstat()
    except OSError:
        return False
    return about.st_uid == os.getuid() and stat.S_IMODE(about.st_mode) == stat.S_IRWXU and stat.S_ISDIR(about.st_mode)


def _found(places: list[Address]) -> Address:
    """Returns the first place where somebody listens."""
    refusals = []
    for place in places:
        try:
            _probe(place)
        except OSError as error:
            refusals.append(f"{place} ({error.strerror or error})")
        else:
            return place
    raise KeepingError(
        ExitCode.UNREACHABLE,
        f"no livetuned runs at {', '.join(refusals)}: name its --endpoint, or back up its store with --state",
    )


def _probe(place: Address) -> None:
    if isinstance(place, UnixAddress):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_PROBE_SECONDS)
            probe.connect(str(place.path))
    else:
        socket.create_connection((place.host, place.port), _PROBE_SECONDS).close()


def _received(channel: grpc.Channel, path: Path, where: str) -> Written:
    """Writes what a daemon sends."""
    try:
        # A call by itself would wait for a frozen daemon four times as long.
        grpc.channel_ready_future(channel).result(_CONNECT_SECONDS)
    except grpc.FutureTimeoutError as error:
        raise KeepingError(ExitCode.UNREACHABLE, f"what listens at {where} does not answer as a livetuned") from error
    call = admin_pb2_grpc.AdminServiceStub(channel).Backup(admin_pb2.BackupRequest())
    try:
        first = next(iter(call), None)
        if first is None or first.WhichOneof("item") != "begin":
            raise CopyError(f"what {where} sent does not begin as a backup does")
        jobs: list[Job] = []
        notes = copy_note(first.begin.store_id, first.begin.revision, clock.wall_us())
        records = _records(call, first.begin, jobs)
        return write(path, first.begin.compacted_revision, records, lambda: jobs, notes)
    except grpc.RpcError as error:
        raise _refusal(error, where) from error
    finally:
        call.cancel()


def _records(
    responses: Iterator[admin_pb2.BackupResponse], begin: admin_pb2.BackupBegin, jobs: list[Job]
) -> Iterator[Raw]:
    """Yields the records, and notes the jobs."""
    last = begin.compacted_revision
    for response in responses:
        try:
            jobs += map(codec.decode_job, response.jobs.payloads)
        except ValueError as error:
            raise CopyError(f"what was sent can't be understood: {error}") from error
        for item in response.records.records:
            yield Raw(item.revision, item.time_us, item.job_id, item.kind, item.payload)
            last = item.revision
    if last != begin.revision:
        raise CopyError(f"revision {begin.revision} was announced, and {last} was the last one sent")


def _refusal(error: grpc.RpcError, where: str) -> KeepingError:
    code, details = error.code(), error.details()
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return KeepingError(ExitCode.ERROR, f"{where} makes no backups: it is a job's port, or an older livetuned")
    if code is grpc.StatusCode.DATA_LOSS:
        details = f"{details}; stop it and run `livetuned doctor`"
    elif code is grpc.StatusCode.UNAVAILABLE:
        details = f"it went away, or is no livetuned ({details})"
    return KeepingError(
        _CODES.get(code, ExitCode.ERROR), f"backup from {where} broke off, nothing was written: {details}"
    )
