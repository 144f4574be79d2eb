"""The classic protocol under bytes of every kind, from a seed: nothing hangs, nothing falls, no bad value gets through."""

from __future__ import annotations

import math
import random
import socket
import struct
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from livetune.v1 import control_pb2
from support.classic import ANSWER_SECONDS, ENTRY, TRIGGER, UPDATE, NeverClosedError, ask, receive, talk
from support.daemon import Daemon, eventually
from support.process import Process, float_spec

BUGS = Path(__file__).parent.parent / "support" / "classic_bugs.py"
WORKERS = 32
"""Conversations at once: fewer than one job may have, so that none is sent away."""

VERBS = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"HELO x\r\n",
    b"\x16\x03\x01",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"*1\r\n$4\r\nPING\r\n",
]
NUMBERS = [
    b"nan",
    b"inf",
    b"-inf",
    b"-1",
    b"1e400",
    b"1e-400",
    b"0x1p3",
    b"1_000",
    b"5",
    b"",
    b" ",
    b"\xd9\xa1",
    b"9" * 400,
]


@dataclass
class Case:
    """One conversation."""

    to_dictionary: bool
    pieces: list[bytes]
    pause: float
    ending: str
    """``half`` closes the client's side, ``wait`` waits for the daemon, ``close`` and ``reset`` run away."""
    good: float | None = None
    """The value that this conversation must set."""


@dataclass
class Report:
    """What came of a run."""

    cases: int = 0
    changes: int = 0
    never_closed: list[str] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    """Values of good conversations that were not set."""
    illegal: list[str] = field(default_factory=list)
    """What the history must not hold."""
    falls: list[str] = field(default_factory=list)
    """Tracebacks, a daemon that ended, descriptors that were not given back."""

    @property
    def clean(self) -> bool:
        return not (self.never_closed or self.lost or self.illegal or self.falls)


def cut(chance: random.Random, data: bytes, most: int) -> list[bytes]:
    places = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(most)))
    return [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True) if begin < end]


def mutate(chance: random.Random, data: bytes) -> bytes:
    mutant = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(mutant) + 1)
        how = chance.randrange(5)
        if how == 0:
            mutant[place : place + 1] = bytes([chance.randrange(256)])
        elif how == 1:
            del mutant[place : place + chance.randint(1, 8)]
        elif how == 2:
            mutant[place:place] = chance.randbytes(chance.randint(1, 8))
        elif how == 3:
            mutant[place:place] = chance.choice([ENTRY, UPDATE, TRIGGER, b"request_type: ", b"\n", b"\0"])
        else:
            mutant += mutant[place:]
    return bytes(mutant)


def make(chance: random.Random, number: int, *, silent: bool) -> Case:
    """Makes the case of a number. A fifth of all are good; two in a hundred say too little, if `silent`."""
    kind = chance.random()
    if kind < 0.2:
        value = f"{number / 1_000_000:.6f}"
        if chance.random() < 0.5:
            return Case(False, [UPDATE, value.encode()], 0.0, chance.choice(["half", "wait"]), float(value))
        pieces = cut(chance, UPDATE + value.encode(), 5)
        return Case(False, pieces, chance.choice([0.0, 0.002]), "half", float(value))
    ending = chance.choice(["half", "wait", "close", "reset"])
    if kind < 0.22 and silent:
        return Case(chance.random() < 0.5, [chance.choice([b"", ENTRY[:20], UPDATE[:20], UPDATE])], 0.0, ending)
    to_dictionary = chance.random() < 0.4
    if to_dictionary:
        data = ENTRY + chance.choice([b"lr", b"save", b"l", b"", b"lr" * 200, chance.randbytes(30)])
    else:
        data = UPDATE + chance.choice([*NUMBERS, TRIGGER, TRIGGER[:-1], str(chance.uniform(-1, 2)).encode()])
    if kind < 0.5:
        data *= chance.randint(1, 5)
    elif kind < 0.8:
        data = mutate(chance, data)
    elif kind < 0.9:
        data = chance.choice(VERBS)
    elif kind < 0.99:
        data = chance.randbytes(chance.choice([1, 10, 100, 4_096]))
    else:
        data = chance.choice([ENTRY, UPDATE, b""]) + chance.choice([b"1", b"\0", b"\xc3\xa9"]) * 500_000
    return Case(to_dictionary, cut(chance, data, 8), chance.choice([0.0, 0.0, 0.001, 0.01]), ending)


def play(port: int, case: Case, seconds: float) -> None:
    """Holds one conversation.

    Raises:
        NeverClosedError: The daemon has neither answered nor closed.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for piece in case.pieces:
                connection.sendall(piece)
                time.sleep(case.pause)
            if case.ending == "half":
                connection.shutdown(socket.SHUT_WR)
        except TimeoutError:
            raise NeverClosedError(f"neither read nor closed within {seconds} s") from None
        except OSError:
            pass  # it was closed on, before all was sent
        if case.ending in ("half", "wait"):
            receive(connection, seconds=seconds)
        elif case.ending == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def history(daemon: Daemon) -> list[tuple[str, float | None]]:
    """Returns actor and value (None for a firing) of every change."""
    found: list[tuple[str, float | None]] = []
    before = 0
    with daemon.control() as control:
        while True:
            page = control.ListChanges(
                control_pb2.ListChangesRequest(job="jobs/vgg", page_size=1_000, before_revision=before)
            )
            for change in page.changes:
                values = [item.new_value.float_value for item in change.assignments]
                found.append((change.actor, values[0] if values else None))
            before = page.previous_before_revision
            if not before:
                return found


def fuzz(daemon: Daemon, cases: int, seed: int, *, seconds: float = ANSWER_SECONDS, silent: bool = True) -> Report:
    """Plays so many cases against a daemon, and looks at what is left."""
    report = Report(cases)
    chance = random.Random(seed)
    daemon.start()
    assert daemon.process is not None
    descriptors = Path(f"/proc/{daemon.process.pid}/fd")
    with daemon.channel() as channel:
        process = Process(channel, "vgg")
        process.join()
        process.declare(float_spec("lr", 0.5, 0.0, 1.0), triggers=("save",))
        dictionary = process.registration.port + 1_000 if process.registration else 0
        lr = ask(dictionary, "lr")
        before = len(list(descriptors.iterdir()))

        def one(number: int, case: Case) -> None:
            try:
                play(dictionary if case.to_dictionary else lr, case, seconds)
            except NeverClosedError as error:
                report.never_closed.append(f"seed {seed} case {number}: {case}: {error}"[:1_000])
            except OSError as error:
                report.falls.append(f"seed {seed} case {number}: {error}")

        made = [make(chance, number, silent=silent) for number in range(1, cases + 1)]
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(one, range(1, cases + 1), made))
        if daemon.process.poll() is not None:
            report.falls.append(f"the daemon ended with {daemon.process.returncode}")
            return report
        if talk(dictionary, [ENTRY + b"lr"]) != str(lr).encode():
            report.falls.append("a good client is not answered any more")
        try:
            eventually(lambda: len(list(descriptors.iterdir())) <= before + 2, seconds)
        except AssertionError:
            report.falls.append(f"{len(list(descriptors.iterdir()))} descriptors, {before} before")
        found = history(daemon)
        process.close()
    report.changes = len(found)
    report.illegal = [
        f"{value} by {actor}"
        for actor, value in found
        if not actor.startswith("classic@127.0.0.1:")
        or not (value is None or (math.isfinite(value) and 0 <= value <= 1))
    ]
    kept = {value for _, value in found}
    report.lost = [case.good for case in made if case.good is not None and case.good not in kept]
    report.falls += [line for line in daemon.log.splitlines() if "Traceback" in line or "conversation failed" in line]
    return report


class PlantedDaemon(Daemon):
    """A daemon with a planted bug."""

    def command(self) -> list[str]:
        return [sys.executable, str(BUGS), *super().command()[3:]]


def test_nothing_a_classic_client_sends_hangs_or_breaks_the_daemon(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("--job-ports", "22160-22169", LIVETUNED_CLASSIC_ENABLED="true")
    report = fuzz(daemon, cases=400, seed=1)
    assert report.clean, report
    assert report.changes > 80


@pytest.mark.parametrize(
    ("planted", "found_as"),
    [
        pytest.param("hang", "never_closed", marks=pytest.mark.slow),
        ("raise", "falls"),
        ("framed", "lost"),
        ("leak", "falls"),
    ],
)
def test_control_a_planted_bug_is_found(tmp_path: Path, planted: str, found_as: str) -> None:
    environment = {"LIVETUNED_CLASSIC_ENABLED": "true", "PLANTED": planted}
    daemon = PlantedDaemon(tmp_path, "--job-ports", "22160-22169", environment=environment)
    try:
        report = fuzz(daemon, cases=200, seed=1, seconds=7.0 if planted == "hang" else 3.0, silent=planted == "hang")
    finally:
        daemon.close()
    assert getattr(report, found_as), report


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_nothing_a_classic_client_sends_breaks_the_daemon_in_many_cases(
    make_daemon: Callable[..., Daemon], seed: int
) -> None:
    daemon = make_daemon("--job-ports", "22160-22169", LIVETUNED_CLASSIC_ENABLED="true")
    report = fuzz(daemon, cases=3_000, seed=100 + seed)
    print(f"seed {100 + seed}: {report.cases} conversations, {report.changes} changes")  # noqa: T201 - the record of the run
    assert report.clean, report
