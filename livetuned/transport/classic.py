"""The classic LiveTune protocol: a dictionary port for each job, a port for each variable that somebody asks for.

What a client sends goes the same way as `SetVariables` and `FireTriggers`: decided, committed, told to the job.
Loopback only, since the protocol knows no authentication.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from livetuned.domain import decide, limits
from livetuned.domain.errors import DomainError, Reason, limit_exceeded
from livetuned.domain.job import Job
from livetuned.domain.names import nearest
from livetuned.domain.records import Changed
from livetuned.service import clock
from livetuned.service.changes import Changes, Wish
from livetuned.transport.classic_parser import (
    DICTIONARY_ENTRY,
    UPDATE,
    Asked,
    Began,
    Event,
    Fired,
    Garbage,
    Parser,
    Told,
)

log = logging.getLogger(__name__)

_CALLER = "classic"
"""Whoever speaks this protocol shares one budget of changes: a connection of its own proves nothing."""

HOST = "127.0.0.1"
"""The only address that is served."""

SILENCE_SECONDS = 5.0
"""How long a client may be silent in the middle of a conversation, in seconds."""

CONVERSATION_SECONDS = 15.0
"""How long a whole conversation may take, in seconds."""

ONE_PIECE_SECONDS = 0.02
"""Quiet after which a tag is complete that came in one piece with its request, as the original client sends it."""

QUIET_SECONDS = 0.2
"""Quiet after which a tag is complete that came in several pieces, and a conversation is over, in seconds."""

VALUE_QUIET_SECONDS = 1.0
"""Quiet after which a value is complete, in seconds. Long, since a value cut short is another value; the original
client closes its side at once and never needs it."""

CLOSE_SECONDS = 1.0
"""How long a client may take to receive what was answered, in seconds."""

_READ_BYTES = 16 * 1024

Stop: TypeAlias = Callable[[], Awaitable[None]]
_Act: TypeAlias = Callable[[Event, str], Awaitable[str]]
"""Does what an event asks, for an actor, and returns what to answer, ``""`` for nothing."""


class _Lines:
    """Log lines that strangers cause: at most so many a minute, then their number."""

    def __init__(self, limit: int = limits.CLASSIC_LOG_LINES) -> None:
        self._limit = limit
        self._minute = -1.0
        self._count = 0

    def warning(self, message: str, *arguments: object) -> None:
        minute = clock.monotonic() // 60
        if minute != self._minute:
            if self._count > self._limit:
                log.warning("classic: %d lines more were left out", self._count - self._limit)
            self._minute, self._count = minute, 0
        self._count += 1
        if self._count <= self._limit:
            log.warning(message, *arguments)


@dataclass(slots=True)
class _Ports:
    """The classic ports of one job."""

    job: str
    dictionary: int
    variables: dict[str, int] = field(default_factory=dict)
    """Ports of variables and triggers, by name."""
    servers: list[asyncio.Server] = field(default_factory=list)
    connections: set[asyncio.StreamWriter] = field(default_factory=set)
    closed: bool = False


class _RefusedError(Exception):
    """A value or a firing that was refused. The message is the reason."""


@dataclass(slots=True)
class _Talk:
    """One connection."""

    parser: Parser
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    actor: str
    """Who the history says it was."""
    answered: bool = False

    def answer(self, text: str) -> None:
        # The protocol has one answer to a connection; a client that joins requests gets its answers by lines.
        if text:
            self.writer.write(f"{chr(10) * self.answered}{text}".encode())
            self.answered = True


class ClassicProtocol:
    """Serves the classic protocol for all jobs.

    Args:
        changes: Who makes changes.
        offset: Distance from a job's port to its dictionary port.
    """

    def __init__(self, changes: Changes, offset: int) -> None:
        self._changes = changes
        self._offset = offset
        self._ports: dict[str, _Ports] = {}
        self._connections = 0
        self._variable_ports = 0
        # Two budgets: garbage must not keep the refusal of somebody's value out of the log.
        self._refusals, self._noise = _Lines(), _Lines()

    def port(self, job: str) -> int:
        """Returns a job's dictionary port, 0 if it has none."""
        ports = self._ports.get(job)
        return 0 if ports is None else ports.dictionary

    async def listen(self, port: int, job: str) -> Stop:
        """Serves a job's dictionary port and returns what stops it and the ports of its variables.

        A job whose classic port can't be had works without: that is logged, and nothing is raised.

        Args:
            port: The job's own port, which the dictionary port is counted from.
            job: The job's name.
        """
        ports = _Ports(job, port + self._offset)
        accept = functools.partial(self._accept, ports, DICTIONARY_ENTRY, functools.partial(self._dictionary, ports))
        try:
            ports.servers.append(await asyncio.start_server(accept, HOST, ports.dictionary))
        except OSError as error:
            log.warning(
                "job %s works without the classic protocol: its port %d can't be had: %s",
                job, ports.dictionary, error.strerror,
            )  # fmt: skip
            ports.closed = True
            return functools.partial(self._stop, ports)
        self._ports[job] = ports
        return functools.partial(self._stop, ports)

    async def stop(self) -> None:
        """Stops serving all jobs."""
        for ports in list(self._ports.values()):
            await self._stop(ports)

    async def _stop(self, ports: _Ports) -> None:
        if ports.closed:
            return
        ports.closed = True
        self._variable_ports -= len(ports.variables)
        if self._ports.get(ports.job) is ports:
            del self._ports[ports.job]
        for server in ports.servers:
            server.close()
        for writer in ports.connections:
            writer.transport.abort()

    async def _accept(
        self, ports: _Ports, opening: bytes, act: _Act, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._connections += 1
        ports.connections.add(writer)
        host, port = (writer.get_extra_info("peername") or ("unknown", 0))[:2]
        talk = _Talk(Parser(opening, _longest(opening)), reader, writer, f"classic@{host}:{port}")
        try:
            if ports.closed:
                return  # it was waiting to be accepted when the job gave its port back
            self._check_room(ports)
            await _converse(ports, talk, act)
        except DomainError as error:
            self._noise.warning("classic: job %s, %s: %s", ports.job, talk.actor, error.message)
            talk.answer(f"error: {error.message}\n")
        except _RefusedError as refusal:
            # The protocol has no answer to a value: the connection is closed, and that is all the client sees.
            self._refusals.warning("classic: job %s, %s: refused: %s", ports.job, talk.actor, refusal)
        except (ConnectionError, asyncio.TimeoutError, TimeoutError):
            pass  # the client went away, or does not receive: nothing is owed to it
        except Exception:
            # The boundary: nothing that a client sends may end a listener.
            log.exception("classic: job %s, %s: the conversation failed", ports.job, talk.actor)
        finally:
            try:
                await _close(writer)
            finally:
                self._connections -= 1
                ports.connections.discard(writer)

    def _check_room(self, ports: _Ports) -> None:
        if len(ports.connections) > limits.CLASSIC_CONNECTIONS_PER_JOB:
            raise limit_exceeded(
                "classic_connections_per_job", limits.CLASSIC_CONNECTIONS_PER_JOB, "too many connections to this job"
            )
        if self._connections > limits.CLASSIC_CONNECTIONS:
            raise limit_exceeded("classic_connections", limits.CLASSIC_CONNECTIONS, "too many connections")

    async def _dictionary(self, ports: _Ports, event: Event, actor: str) -> str:
        if not isinstance(event, Asked):
            raise TypeError(f"{event} on a dictionary port")
        name = event.tag.strip()
        self._check_known(ports.job, name)
        return str(await self._variable_port(ports, name))

    def _check_known(self, name: str, tag: str) -> Job:
        job = self._changes.job(name)
        if tag not in job.variables and tag not in job.triggers:
            known = sorted((*job.variables, *job.triggers))
            close = nearest(tag, known)
            listed = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
            hint = f"did you mean '{close}'?" if close else f"it has {listed or 'none'}"
            raise DomainError(
                Reason.VARIABLE_NOT_FOUND, f"job '{name}' has no variable or trigger {tag!r}; {hint}", variable=tag
            )
        return job

    async def _variable_port(self, ports: _Ports, name: str) -> int:
        if name in ports.variables:
            return ports.variables[name]
        if self._variable_ports >= limits.CLASSIC_VARIABLE_PORTS:
            raise limit_exceeded(
                "classic_variable_ports", limits.CLASSIC_VARIABLE_PORTS, f"no port for '{name}' is left"
            )
        accept = functools.partial(self._accept, ports, UPDATE, functools.partial(self._variable, ports, name))
        try:
            listener = socket.create_server((HOST, 0))
            # Known before anything is awaited: whoever asks meanwhile gets the same port.
            ports.variables[name] = listener.getsockname()[1]
            self._variable_ports += 1
            ports.servers.append(server := await asyncio.start_server(accept, sock=listener))
        except OSError as error:
            if ports.variables.pop(name, 0):
                self._variable_ports -= 1
            raise DomainError(Reason.PORTS_EXHAUSTED, f"no port for '{name}' can be had: {error.strerror}") from error
        if ports.closed:
            server.close()
        return ports.variables[name]

    async def _variable(self, ports: _Ports, name: str, event: Event, actor: str) -> str:
        if isinstance(event, Began):
            job = self._check_known(ports.job, name)
            return job.variables[name].spec.type.value if name in job.variables else "trigger"
        if isinstance(event, Told):
            updates = [decide.Update(name, text=event.text)]
            await self._change(ports.job, lambda job: decide.set_variables(job, updates, actor=actor))
        elif isinstance(event, Fired):
            await self._change(ports.job, lambda job: decide.fire_triggers(job, [name], actor=actor))
        else:
            raise TypeError(f"{event} on a variable's port")
        return ""

    async def _change(self, name: str, decision: Callable[[Job], Changed | None]) -> None:
        try:
            await self._changes.make(_CALLER, name, Wish(decision, _no_request_id))
        except DomainError as error:
            raise _RefusedError(error.message) from error


def _no_request_id(_: Changed) -> None:
    """The protocol has no request ids: nothing is ever repeated under one."""


async def _converse(ports: _Ports, talk: _Talk, act: _Act) -> None:
    parser = talk.parser
    deadline = clock.monotonic() + CONVERSATION_SECONDS
    left = limits.CLASSIC_CONNECTION_BYTES
    while True:
        patience, remaining = _patience(talk), deadline - clock.monotonic()
        data = await _read(talk.reader, min(patience, remaining))
        if ports.closed:
            return  # what we cut off ourselves is not complete
        if data is None and remaining <= patience:
            # What still trickles in is not complete either: it must not be taken for a value.
            raise DomainError(Reason.INVALID_REQUEST, f"not finished within {CONVERSATION_SECONDS:g} s")
        left -= len(data or b"")
        if left < 0:
            raise limit_exceeded(
                "classic_connection_bytes", limits.CLASSIC_CONNECTION_BYTES, "too much for one connection"
            )
        for event in parser.feed(data) if data else parser.end():
            if isinstance(event, Garbage):
                raise DomainError(Reason.MALFORMED_MESSAGE, event.why)
            talk.answer(await act(event, talk.actor))
            await asyncio.wait_for(talk.writer.drain(), CLOSE_SECONDS)
        if not data:
            return


def _longest(opening: bytes) -> int:
    return limits.STRING_VALUE_BYTES if opening == UPDATE else limits.NAME_BYTES


def _patience(talk: _Talk) -> float:
    """Returns how long to wait for more, in seconds, before what has arrived is all there is."""
    parser = talk.parser
    if not parser.reading_text:
        return QUIET_SECONDS if talk.answered and not parser.buffered else SILENCE_SECONDS
    if parser.opening == DICTIONARY_ENTRY:
        return ONE_PIECE_SECONDS if parser.pieces == 1 else QUIET_SECONDS
    return VALUE_QUIET_SECONDS if parser.buffered else SILENCE_SECONDS


async def _read(reader: asyncio.StreamReader, seconds: float) -> bytes | None:
    """Returns what arrives, ``b""`` at the end, None after that many seconds of quiet."""
    try:
        return await asyncio.wait_for(reader.read(_READ_BYTES), max(0.0, seconds))
    except (asyncio.TimeoutError, TimeoutError):
        return None


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        try:
            await asyncio.wait_for(writer.wait_closed(), CLOSE_SECONDS)
        except (asyncio.TimeoutError, TimeoutError):
            writer.transport.abort()  # it does not receive what was answered
