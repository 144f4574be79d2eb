"""The classic LiveTune protocol on a real daemon: by raw sockets, and by the unmodified client from the package index."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from livetune.v1 import control_pb2, types_pb2
from livetuned.domain import limits
from livetuned.domain.records import Changed
from livetuned.service.changes import Wish
from livetuned.transport import classic
from support.classic import ENTRY, TRIGGER, UPDATE, ask, receive, talk, tell
from support.daemon import Daemon, eventually
from support.domain import JobLog, spec
from support.process import Process, float_spec

TRAINING = Path(__file__).parent.parent / "support" / "training.py"
CLASSIC_VERSION = "0.0.8"
DICTIONARY = 23_140
"""Dictionary port of the first job: the first job port, and the default offset."""


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon]) -> Daemon:
    """A daemon that also speaks the classic protocol."""
    return make_daemon("--job-ports", "22140-22149", LIVETUNED_CLASSIC_ENABLED="true").start()


def typed(name: str, kind: types_pb2.VariableType, **initial: object) -> types_pb2.VariableSpec:
    return types_pb2.VariableSpec(variable_id=name, type=kind, initial=types_pb2.Value(**initial))


@pytest.fixture
def process(daemon: Daemon) -> Iterator[Process]:
    """Job vgg with a variable of each type and a trigger."""
    with daemon.channel() as channel:
        process = Process(channel, "vgg")
        process.join()
        process.declare(
            float_spec("lr", 0.1, 1e-6, 1.0),
            float_spec("lr_decay", 0.5),
            typed("epochs", types_pb2.VARIABLE_TYPE_INT, int_value=5),
            typed("amp", types_pb2.VARIABLE_TYPE_BOOL, bool_value=False),
            typed("mode", types_pb2.VARIABLE_TYPE_STRING, string_value="train"),
            triggers=("save",),
        )
        yield process
        process.close()


def history(daemon: Daemon) -> list[tuple[str, str]]:
    """Returns what was changed, and by whom, oldest first."""
    with daemon.control() as control:
        changes = control.ListChanges(control_pb2.ListChangesRequest(job="jobs/vgg", page_size=1_000)).changes
    return [
        (
            " ".join(
                [f"{item.variable_id}={_plain(item.new_value)}" for item in change.assignments]
                + [f"fire {item.trigger_id}" for item in change.firings]
            ),
            change.actor,
        )
        for change in changes
    ]


def _plain(value: types_pb2.Value) -> object:
    return getattr(value, value.WhichOneof("kind") or "")


def changes(daemon: Daemon) -> list[str]:
    return [what for what, _ in history(daemon)]


def classic_port(daemon: Daemon) -> int:
    with daemon.control() as control:
        return control.GetJob(control_pb2.GetJobRequest(name="jobs/vgg")).job.classic_port


def open_port(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_it_is_off_unless_it_is_switched_on(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("--job-ports", "22150-22159").start()
    with daemon.channel() as channel:
        Process(channel, "vgg").register()
    assert 0 == classic_port(daemon)
    assert not open_port(23_150)
    assert "classic" not in daemon.log


def test_the_file_switches_it_on_and_the_log_warns(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    file = tmp_path / "livetuned.toml"
    file.write_text('[daemon]\njob_ports = "22150-22159"\n[classic]\nenabled = true\nport_offset = 500\n')
    daemon = make_daemon("--config", str(file)).start()
    assert "it has no authentication" in daemon.log
    with daemon.channel() as channel:
        Process(channel, "vgg").register()
    assert 22_650 == classic_port(daemon)
    assert open_port(22_650)


def test_a_port_for_each_name_and_its_type(daemon: Daemon, process: Process) -> None:
    assert DICTIONARY == classic_port(daemon)
    kinds = {name: tell(ask(DICTIONARY, name), b"") for name in ("lr", "epochs", "amp", "mode", "save")}
    assert {"lr": b"float", "epochs": b"int", "amp": b"bool", "mode": b"string", "save": b"trigger"} == kinds
    ports = [ask(DICTIONARY, name) for name in ("lr", "lr_decay", "epochs", "lr")]
    assert 3 == len(set(ports))
    assert ports[0] == ports[3]
    assert [] == changes(daemon)  # who only looks at the type changes nothing


def test_values_take_the_way_of_every_change(daemon: Daemon, process: Process) -> None:
    for name, value in (("lr", b"0.01"), ("epochs", b"7"), ("amp", b"True"), ("mode", b"eval"), ("save", TRIGGER)):
        count = len(changes(daemon))
        tell(ask(DICTIONARY, name), value)
        eventually(lambda count=count: len(changes(daemon)) > count)
        process.apply(process.expect("change").change, step=9)
    assert ["lr=0.01", "epochs=7", "amp=True", "mode=eval", "fire save"] == changes(daemon)
    assert all(actor.startswith("classic@127.0.0.1:") for _, actor in history(daemon))
    with daemon.control() as control:
        job = control.GetJob(control_pb2.GetJobRequest(name="jobs/vgg")).job
    assert (0.01, 9) == (job.variables[0].applied[0].value.float_value, job.variables[0].applied[0].step)
    assert 1 == job.triggers[0].consumed


@pytest.mark.parametrize(
    ("pieces", "pause", "half_close"),
    [
        ([UPDATE, b"0.02"], 0.0, True),
        ([UPDATE, b"0.02"], 0.0, False),  # it never closes: quiet ends the value
        ([UPDATE + b"0.02"], 0.0, True),
        ([UPDATE + b"0.02"], 0.0, False),
        ([bytes([byte]) for byte in UPDATE + b"0.02"], 0.002, False),
        ([UPDATE[:7], UPDATE[7:] + b"0", b".0", b"2"], 0.1, True),
        ([UPDATE + b"\n", b"0.02\n"], 0.05, False),  # a person with netcat
    ],
)
def test_a_value_however_it_is_cut(
    daemon: Daemon, process: Process, pieces: list[bytes], pause: float, half_close: bool
) -> None:
    assert b"float" == talk(ask(DICTIONARY, "lr"), pieces, pause=pause, half_close=half_close)
    assert ["lr=0.02"] == changes(daemon)


def test_requests_that_were_joined(daemon: Daemon, process: Process) -> None:
    ports = talk(DICTIONARY, [ENTRY + b"lr" + ENTRY + b"epochs"]).split(b"\n")
    assert [ask(DICTIONARY, "lr"), ask(DICTIONARY, "epochs")] == list(map(int, ports))
    assert b"float\nfloat" == talk(int(ports[0]), [UPDATE + b"0.02" + UPDATE + b"0.03"], half_close=True)
    save = ask(DICTIONARY, "save")
    assert b"trigger\ntrigger" == talk(save, [UPDATE + TRIGGER + UPDATE + TRIGGER])
    assert ["lr=0.02", "lr=0.03", "fire save", "fire save"] == changes(daemon)


@pytest.mark.parametrize(
    ("pieces", "pause"),
    [
        ([ENTRY + b"lr_decay"], 0.0),
        ([bytes([byte]) for byte in ENTRY + b"lr_decay"], 0.002),
        ([ENTRY[:9], ENTRY[9:] + b"lr", b"_decay"], 0.1),  # `lr` is a variable too
        ([ENTRY + b"lr_decay\r\n"], 0.0),
    ],
)
def test_a_tag_however_it_is_cut(daemon: Daemon, process: Process, pieces: list[bytes], pause: float) -> None:
    assert ask(DICTIONARY, "lr_decay") == int(talk(DICTIONARY, pieces, pause=pause))


def test_a_bad_value_is_closed_on_and_logged_and_changes_nothing(daemon: Daemon, process: Process) -> None:
    cases = [
        ("lr", b"nan", "variable 'lr': nan is refused, it must be finite"),
        ("lr", b"inf", "variable 'lr': inf is refused, it must be finite"),
        ("lr", b"-1.0", "variable 'lr': -1.0 is refused, it must be >= 1e-06"),
        ("lr", b"5.0", "variable 'lr': 5.0 is refused, it must be <= 1.0"),
        ("lr", b"abc\x1b[2J", "variable 'lr': 'abc\\x1b[2J' is not a float"),
        ("lr", b"\xff", "the value is not UTF-8"),
        ("lr", b" ", "variable 'lr': ' ' is not a float"),
        ("lr", TRIGGER, "'lr' is a variable"),
        ("epochs", b"0.5", "variable 'epochs': '0.5' is not an int"),
        ("amp", b"2", "variable 'amp': '2' is not a bool"),
        ("save", b"True", "'save' is a trigger"),
        ("mode", b"x" * (limits.STRING_VALUE_BYTES + 1), "the value is longer than 65,536 bytes"),
    ]
    for name, value, words in cases:
        tell(ask(DICTIONARY, name), value)
        eventually(lambda words=words: words in daemon.log)
    assert [] == changes(daemon)
    assert 0 == daemon.log.count("Traceback")


def test_what_is_refused_does_not_undo_what_came_before_it(daemon: Daemon, process: Process) -> None:
    port = ask(DICTIONARY, "lr")
    assert b"float\nfloat" == talk(port, [UPDATE + b"0.02" + UPDATE + b"nan" + UPDATE + b"0.5"], half_close=True)
    assert ["lr=0.02"] == changes(daemon)


def test_an_unknown_tag_is_answered_with_the_nearest(daemon: Daemon, process: Process) -> None:
    answer = b"error: job 'vgg' has no variable or trigger 'lrr'; did you mean 'lr'?\n"
    assert answer == talk(DICTIONARY, [ENTRY + b"lrr"])
    answer = talk(DICTIONARY, [ENTRY + b"zzzzz\x1b[2J"])
    assert b"has no variable or trigger 'zzzzz\\x1b[2J'; it has amp, epochs, lr, lr_decay, mode, save\n" in answer
    assert talk(DICTIONARY, [ENTRY], half_close=True).startswith(b"error: ")
    assert b"error: the tag is longer than 200 bytes\n" == talk(DICTIONARY, [ENTRY + b"x" * 300])


def test_strangers_are_answered_or_closed_and_disturb_nobody(daemon: Daemon, process: Process) -> None:
    lr = ask(DICTIONARY, "lr")
    strangers = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1 HTTP/1.1\r\nContent-Length: 24\r\n\r\n" + UPDATE,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"x" * 1_000_000 + b"\n",
        bytes(range(256)) * 100,
        UPDATE + b"9" * 1_000_000,
        ENTRY + b"9" * 1_000_000,
        TRIGGER,
    ]
    # These three say nothing, or too little.
    silent = [b"", UPDATE[:10], ENTRY[:10]]
    both = [(port, data) for port in (DICTIONARY, lr) for data in (*strangers, *silent)] + [(lr, UPDATE)]
    with ThreadPoolExecutor(len(both)) as pool:
        answers = list(pool.map(lambda item: talk(item[0], [item[1]]), both))
    for (port, data), answer in zip(both, answers, strict=True):
        if data[:1] not in (b"r", b"", b"x"):
            assert answer.startswith(b"error: not a request that is answered here"), (port, data[:20], answer)
    assert b"float" == answers[-1]
    assert [] == changes(daemon)
    assert "Traceback" not in daemon.log
    assert b"float" == tell(ask(DICTIONARY, "lr"), b"0.02")
    eventually(lambda: ["lr=0.02"] == changes(daemon))


def test_too_many_connections_are_answered_with_the_limits_name(daemon: Daemon, process: Process) -> None:
    idle = [
        socket.create_connection(("127.0.0.1", DICTIONARY), timeout=10)
        for _ in range(limits.CLASSIC_CONNECTIONS_PER_JOB)
    ]
    try:
        answer = talk(DICTIONARY, [])
        assert b"error: too many connections to this job: limit classic_connections_per_job is 64\n" == answer
        with daemon.channel() as channel:  # another job has its own
            other = Process(channel, "other")
            other.join()
            other.declare(float_spec("lr", 0.1))
            assert ask(DICTIONARY + 1, "lr")
            other.close()
        idle.pop().close()
        eventually(lambda: talk(DICTIONARY, [ENTRY + b"lr"]).isdigit())
    finally:
        for connection in idle:
            connection.close()


def test_a_port_that_another_program_holds_is_done_without(make_daemon: Callable[..., Daemon]) -> None:
    with socket.create_server(("127.0.0.1", 23_150)):
        daemon = make_daemon("--job-ports", "22150-22159", LIVETUNED_CLASSIC_ENABLED="1").start()
        with daemon.channel() as channel:
            assert 22_150 == Process(channel, "vgg").register().port
        assert 0 == classic_port(daemon)
        assert "job vgg works without the classic protocol: its port 23150 can't be had" in daemon.log


def test_ports_are_served_again_after_a_restart_and_end_with_the_job(daemon: Daemon, process: Process) -> None:
    lr = ask(DICTIONARY, "lr")
    process.close()
    assert 0 == daemon.stop()
    assert not open_port(DICTIONARY)
    assert not open_port(lr)
    daemon.start()
    assert DICTIONARY == classic_port(daemon)
    with daemon.channel() as channel:
        again = Process(channel, "vgg", instance_id=process.instance_id)
        again.join()
        lr = ask(DICTIONARY, "lr")
        tell(lr, b"0.02")
        eventually(lambda: ["lr=0.02"] == changes(daemon))
        with socket.create_connection(("127.0.0.1", lr)) as cut:
            cut.sendall(UPDATE)
            assert b"float" == receive(cut, 5)
            cut.sendall(b"0.0")
            again.send(end={"step": 5})
            eventually(lambda: 0 == classic_port(daemon))
            assert b"" == receive(cut)
        again.close()
    assert not open_port(DICTIONARY)
    assert not open_port(lr)
    assert ["lr=0.02"] == changes(daemon)


def test_ltctl_shows_the_port(daemon: Daemon, process: Process) -> None:
    def describe(*words: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "ltctl", "--endpoint", daemon.target, "describe", "vgg", *words],
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip

    assert "run 1, port 22140, classic port 23140" in describe()
    assert 23_140 == json.loads(describe("-o", "json"))["classic_port"]


# What needs another engine or other limits than the daemon's: the protocol in this process, with an engine of straw.


class StrawEngine:
    """Engine and maker of changes: decides on a job that a test made, and commits nothing."""

    def __init__(self) -> None:
        self.log = JobLog()
        self.log.register()
        self.log.declare(spec("lr", 0.1, 0.0, 1.0), spec("wd", 0.0), spec("mode", "train"))
        self.changed: list[Changed] = []
        self.callers: set[str] = set()
        self.error: Exception | None = None

    def job(self, name: str) -> object:
        return self.log.job

    async def make(self, caller: str, name: str, wish: Wish) -> None:
        if self.error is not None:
            raise self.error
        assert self.log.job is not None
        changed = wish.decide(self.log.job)
        assert changed is not None
        self.callers.add(caller)
        self.changed.append(changed)


async def serve(engine: StrawEngine) -> tuple[classic.ClassicProtocol, int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    protocol = classic.ClassicProtocol(engine, 0)  # type: ignore[arg-type]
    await protocol.listen(port, "vgg")
    return protocol, port


def test_ports_of_variables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLASSIC_VARIABLE_PORTS", 2)

    async def scenario() -> None:
        protocol, port = await serve(StrawEngine())
        answers = [await asyncio.to_thread(talk, port, [ENTRY + tag]) for tag in (b"lr", b"wd", b"mode", b"lr")]
        assert [True, True, False, True] == [answer.isdigit() for answer in answers]
        assert b"error: no port for 'mode' is left: limit classic_variable_ports is 2\n" == answers[2]
        await protocol.stop()
        assert 0 == protocol.port("vgg")
        stop = await protocol.listen(port, "vgg")  # what a job has given back is there for the next
        assert (await asyncio.to_thread(talk, port, [ENTRY + b"mode"])).isdigit()
        await stop()
        await stop()

    asyncio.run(scenario())


def test_connections_of_all_jobs_and_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLASSIC_CONNECTIONS", 1)
    monkeypatch.setattr(limits, "CLASSIC_CONNECTION_BYTES", 100)

    async def scenario() -> None:
        protocol, port = await serve(StrawEngine())
        mode = int(await asyncio.to_thread(talk, port, [ENTRY + b"mode"]))
        await asyncio.sleep(0)
        answer = await asyncio.to_thread(talk, mode, [UPDATE + b"x" * 200])
        assert b"error: too much for one connection: limit classic_connection_bytes is 100\n" == answer
        _, idle = await asyncio.open_connection("127.0.0.1", port)
        answer = await asyncio.to_thread(talk, port, [])
        assert b"error: too many connections: limit classic_connections is 1\n" == answer
        idle.close()
        await idle.wait_closed()
        await protocol.stop()

    asyncio.run(scenario())


def test_what_trickles_in_too_slowly_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classic, "CONVERSATION_SECONDS", 0.3)

    async def scenario() -> None:
        engine = StrawEngine()
        protocol, port = await serve(engine)
        lr = int(await asyncio.to_thread(talk, port, [ENTRY + b"lr"]))
        answer = await asyncio.to_thread(talk, lr, [UPDATE, *[b"0"] * 20], pause=0.1)
        assert b"float\nerror: not finished within 0.3 s\n" == answer
        assert [] == engine.changed
        await protocol.stop()

    asyncio.run(scenario())


def test_a_client_that_does_not_receive_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classic, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(limits, "CLASSIC_CONNECTION_BYTES", 1 << 30)
    answers = "x" * 100_000

    async def scenario() -> None:
        engine = StrawEngine()
        protocol, port = await serve(engine)

        async def long_answer(*_: object) -> str:
            return answers

        monkeypatch.setattr(classic.ClassicProtocol, "_variable", long_answer)
        lr = int(await asyncio.to_thread(talk, port, [ENTRY + b"lr"]))
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            deaf.connect(("127.0.0.1", lr))
            deaf.sendall(UPDATE * 200)
            await asyncio.to_thread(eventually, lambda: protocol._connections)
            await asyncio.to_thread(eventually, lambda: not protocol._connections)
            received = await asyncio.to_thread(receive, deaf)
        assert len(received) < 200 * len(answers)
        await protocol.stop()

    asyncio.run(scenario())


def test_all_clients_share_one_rate() -> None:
    async def scenario() -> None:
        engine = StrawEngine()
        protocol, port = await serve(engine)
        lr = int(await asyncio.to_thread(talk, port, [ENTRY + b"lr"]))
        for _ in range(3):
            await asyncio.to_thread(talk, lr, [UPDATE + b"0.5"], half_close=True)
        assert {"classic"} == engine.callers
        assert 3 == len({changed.actor for changed in engine.changed})
        await protocol.stop()

    asyncio.run(scenario())


def test_an_error_of_ours_ends_one_connection_and_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        engine = StrawEngine()
        protocol, port = await serve(engine)
        lr = int(await asyncio.to_thread(talk, port, [ENTRY + b"lr"]))
        engine.error = RuntimeError("planted")
        assert b"float" == await asyncio.to_thread(talk, lr, [UPDATE + b"0.5"], half_close=True)
        engine.error = None
        assert b"float" == await asyncio.to_thread(talk, lr, [UPDATE + b"0.5"], half_close=True)
        assert 1 == len(engine.changed)
        await protocol.stop()

    asyncio.run(scenario())
    assert 1 == caplog.text.count("RuntimeError: planted")


def test_strangers_cannot_fill_the_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(classic.clock, "monotonic", lambda: now)
    lines = classic._Lines(limit=3)
    for number in range(10):
        lines.warning("line %d", number)
    now += 60
    lines.warning("the next minute")
    assert ["line 0", "line 1", "line 2", "classic: 7 lines more were left out", "the next minute"] == caplog.messages


# The unmodified client.


@pytest.fixture(scope="session")
def tune(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original `tune`, in an environment of its own, from whatever package index is configured."""
    folder = tmp_path_factory.mktemp("livetune")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=100, capture_output=True)
    try:
        pip = subprocess.run(
            [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
             "--retries", "1", "--timeout", "15", f"LiveTune=={CLASSIC_VERSION}"],
            capture_output=True, text=True, timeout=90,
        )  # fmt: skip
        problem = pip.stderr.strip().splitlines()[-1:] if pip.returncode else []
    except subprocess.TimeoutExpired:
        problem = ["the package index does not answer"]
    if problem:
        pytest.skip(f"LEFT OUT: the original client, LiveTune {CLASSIC_VERSION}, can't be installed: {problem[0]}")
    return folder / "bin" / "tune"


class Training:
    """A job under the SDK, and what it says line by line."""

    def __init__(self, daemon: Daemon) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(TRAINING), "vgg"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "LIVETUNE_ENDPOINT": daemon.target},
        )

    def expect(self, fact: str) -> dict[str, float]:
        """Returns the next thing it says that has the fact."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said: dict[str, float] = json.loads(line)
            if said.get(fact):
                return said
        raise AssertionError(f"it ended without telling {fact}")

    def wait(self) -> int:
        return self._process.wait(30)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture
def training(daemon: Daemon) -> Iterator[Training]:
    training = Training(daemon)
    timer = threading.Timer(100, training.close)
    timer.start()
    try:
        training.expect("connected")
        eventually(lambda: open_port(DICTIONARY))
        yield training
    finally:
        timer.cancel()
        timer.join()
        training.close()


def test_the_original_client_tunes_a_running_job(daemon: Daemon, training: Training, tune: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(tune), *words, "--port", str(DICTIONARY)], capture_output=True, text=True, timeout=20
        )

    answer = run("--tag", "lr", "--value", "0.01")
    assert (0, "", "") == (answer.returncode, answer.stdout, answer.stderr)
    assert 0.01 == training.expect("lr")["lr"]
    ((what, actor),) = history(daemon)
    assert "lr=0.01" == what
    assert actor.startswith("classic@127.0.0.1:")
    # The original sees none of the refusals of a value, and exits with 0: the log and the history tell.
    for value, words in (("nan", "nan is refused"), ("-1", "-1.0 is refused"), ("5", "5.0 is refused")):
        assert 0 == run("--tag", "lr", f"--value={value}").returncode
        eventually(lambda words=words: words in daemon.log)
    assert "Expected float, got bool" in run("--tag", "lr", "--value", "True").stdout
    assert "Expected trigger, got int" in run("--tag", "save", "--value", "1").stdout
    unknown = run("--tag", "momentum", "--value", "1")
    assert 1 == unknown.returncode
    assert "has no variable or trigger" in unknown.stderr
    assert ["lr=0.01"] == changes(daemon)
    assert 0 == run("--tag", "save", "--trigger").returncode
    assert training.expect("saved")
    assert 0 == run("--tag", "stop", "--trigger").returncode
    assert 0 == training.wait()
    eventually(lambda: not open_port(DICTIONARY))
    assert "Failed to connect" in run("--tag", "lr", "--value", "0.02").stdout
    assert ["lr=0.01", "fire save", "fire stop"] == changes(daemon)
