"""ltctl as a person types it, against a real daemon and a process of the contract."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import yaml

from livetune.v1 import control_pb2, control_pb2_grpc, types_pb2
from support.daemon import Daemon, eventually
from support.process import Process, float_spec
from support.shell import Shell


class Trainer(threading.Thread):
    """Applies every change it is told of, one step later each, until the stream ends."""

    def __init__(self, process: Process) -> None:
        super().__init__(daemon=True)
        self._process = process
        self.step = 100
        self.refuse = ""
        assert process.registration is not None
        self.port = str(process.registration.port)

    def run(self) -> None:
        process = self._process
        assert process._down is not None
        try:
            for response in process._down:
                if response.WhichOneof("message") == "change":
                    self.step += 1
                    if self.refuse:
                        self._refuse(response.change)
                    else:
                        process.apply(response.change, self.step)
        except Exception:  # noqa: BLE001 - the stream ended, as the test wanted
            return

    def _refuse(self, change: types_pb2.Change) -> None:
        outcomes = [
            types_pb2.Outcome(
                variable_id=item.variable_id,
                status=types_pb2.APPLY_STATUS_REFUSED,
                effective=item.old_value,
                reason=self.refuse,
            )
            for item in change.assignments
        ]
        self._process.send(apply={"change_revision": change.revision, "step": self.step, "outcomes": outcomes})


@pytest.fixture
def shell(daemon: Daemon) -> Shell:
    return Shell(daemon)


@pytest.fixture
def trainer(daemon: Daemon) -> Iterator[Trainer]:
    with daemon.channel() as channel:
        process = Process(channel, "vgg")
        process.join()
        mode = types_pb2.VariableSpec(
            variable_id="mode", type=types_pb2.VARIABLE_TYPE_STRING, choices=["train", "eval"]
        )
        mode.initial.string_value = "train"
        process.declare(
            float_spec("lr", 0.1, 1e-6, 1.0), float_spec("lc.strength", 0.0, 0.0), mode, triggers=("save", "stop")
        )
        process.send(progress={"step": 100})
        trainer = Trainer(process)
        trainer.start()
        yield trainer
        process.close()
        trainer.join(10)


def test_set_prints_old_new_and_the_step_and_history_keeps_it(shell: Shell, trainer: Trainer) -> None:
    answer = shell("set", "vgg", "lr=0.01", "lc.strength=0.2", "--reason", "x")
    assert (0, "") == (answer.code, answer.err)
    assert [
        "lr 0.1 → 0.01   applied at step 101",
        "lc.strength 0 → 0.2   applied at step 101",
    ] == answer.out.splitlines()
    (change,) = json.loads(shell("history", "vgg", "-o", "json").out)
    assert ("x", 101, [("lr", 0.1, 0.01), ("lc.strength", 0.0, 0.2)]) == (
        change["reason"],
        change["applies"][0]["step"],
        [(item["variable"], item["old"], item["new"]) for item in change["assignments"]],
    )
    assert "@" in change["actor"]
    assert "lr 0.1 → 0.01, lc.strength 0 → 0.2   step 101   x" in shell("history", "vgg").out


def test_every_mistake_has_its_exit_code_and_changes_nothing(shell: Shell, trainer: Trainer) -> None:
    cases = [
        (("set", "vgg", "lr=nan"), 5, "'lr': nan is refused, it must be finite"),
        (("set", "vgg", "lr=-1"), 5, "it must be >= 1e-06"),
        (("set", "vgg", "mode=evall"), 5, "one of 'train', 'eval'"),
        (("set", "vgg", "lr=abc"), 2, "'abc' is not a float"),
        (("set", "vgg", "lr=0.1", "momentun=1"), 3, "no variable 'momentun'"),
        (("set", "vgg", "lc.strenght=1"), 3, "did you mean 'lc.strength'?"),
        (("set", "vg", "lr=1"), 3, "did you mean 'vgg'?"),
        (("set", "v g", "lr=1"), 2, "job name 'v g' is not allowed"),
        (("set", "vgg", "l r=1"), 2, "variable name 'l r' is not allowed"),
        (("set", "vgg", f"{'x' * 300}=1"), 2, "at most 200 bytes"),
        (("set", "vgg", "lr=0.2", "--if-revision", "1"), 4, "after revision 1"),
        (("set", "vgg"), 2, "Write: ltctl set JOB lr=0.01"),
        (("set", "lr=1"), 2, "which job?"),
        (("set", "vgg", "lr"), 2, "not of the form NAME=VALUE"),
        (("trigger", "vgg", "sav"), 3, "did you mean 'save'?"),
        (("trigger", "vgg", "lr"), 3, "'lr' is a variable"),
        (("trigger", "vgg"), 2, "fire what?"),
        (("get", "vgg", "nothing"), 3, "no variable or trigger 'nothing'"),
        (("describe", "vgh"), 3, "did you mean 'vgg'?"),
        (("history", "vgh"), 3, "did you mean 'vgg'?"),
        (("watch", "vgh"), 3, "did you mean 'vgg'?"),
        (("watch", "vgg", "--after", "1000"), 2, "revision 1000 is not one of this store"),
        (("stt", "vgg", "lr=1"), 2, "did you mean 'set'?"),
        (("get", "vgg", "-o", "xml"), 2, "'xml' is not one of"),
        (("--port", "1", "get"), 7, "127.0.0.1:1"),
        (("--endpoint", "nonsense", "jobs"), 2, "host:port"),
        (("--endpoint", "127.0.0.1:1", "jobs"), 7, "livetuned serve"),
    ]
    for words, code, text in cases:
        answer = shell.inside(*words)
        assert code == answer.code, (words, answer)
        assert "" == answer.out
        assert answer.err.startswith("ltctl: error: ")
        assert text in answer.err
        assert "Traceback" not in answer.err
    assert [] == json.loads(shell("history", "vgg", "-o", "json").out)


def test_the_jobs_own_port_needs_no_name(shell: Shell, trainer: Trainer) -> None:
    assert "applied at step" in shell("--port", trainer.port, "set", "lr=0.02").out
    assert "lr     0.02" in shell("--port", trainer.port, "get", "lr").out
    assert "job vgg: running" in shell("--port", trainer.port, "describe").out
    assert 0 == shell("--port", trainer.port, "trigger", "save").code
    assert "fire save" in shell("--port", trainer.port, "history").out


def test_the_job_may_be_named_on_its_own_port_too(shell: Shell, trainer: Trainer) -> None:
    own = ("--port", trainer.port)
    assert "applied at step" in shell(*own, "set", "vgg", "lr=0.02").out
    assert "lr\n" == shell(*own, "get", "vgg", "lr", "-o", "name").out
    assert "lr\n" == shell(*own, "describe", "vgg", "lr", "-o", "name").out
    assert 0 == shell(*own, "trigger", "vgg", "save").code
    assert 3 == shell(*own, "set", "other", "lr=0.02").code


def test_a_proxy_for_the_web_is_not_asked(shell: Shell, trainer: Trainer) -> None:
    shell.environment |= {"http_proxy": "http://127.0.0.1:1", "no_proxy": ""}
    answer = shell("--port", trainer.port, "jobs", "-o", "name")
    assert (0, "vgg\n") == (answer.code, answer.out)


def test_what_no_message_can_carry_is_a_usage_error(shell: Shell, trainer: Trainer) -> None:
    for words in [
        ("set", "vgg", "mode=\udcff"),
        ("get", "\udcff"),
        ("set", "vgg", "lr=0.5", "--reason", "\udcff"),
        ("set", "vgg", "lr=0.5", "--timeout", "nan"),
        ("set", "vgg", "lr=0.5", "--timeout", "inf"),
        ("set", "vgg", "lr=0.5", "--if-revision", str(2**63)),
        ("watch", "vgg", "--after", str(2**63)),
        ("history", "vgg", "--before", str(2**63)),
        ("jobs", "--port", trainer.port),
    ]:
        answer = shell.inside(*words)
        assert (2, "", 1) == (answer.code, answer.out, answer.err.count("\n")), answer
    assert [] == json.loads(shell("history", "vgg", "-o", "json").out)


def test_a_server_of_another_kind_is_named(shell: Shell, daemon: Daemon) -> None:
    answer = shell("--endpoint", f"127.0.0.1:{daemon.metrics_port}", "jobs")
    assert (7, "") == (answer.code, answer.out)
    assert f"no answer from a livetuned daemon at 127.0.0.1:{daemon.metrics_port}" in answer.err


def test_ctrl_c_while_waiting_says_what_was_accepted(daemon: Daemon, shell: Shell) -> None:
    with daemon.channel() as channel:
        process = Process(channel, "vgg")
        process.join()
        process.declare(float_spec("lr", 0.1))
        with shell.start("set", "vgg", "lr=0.5") as waiting:
            eventually(lambda: "lr 0.1 → 0.5" in shell("history", "vgg").out)
            waiting.send_signal(signal.SIGINT)
            _, err = waiting.communicate(timeout=20)
        assert 130 == waiting.returncode
        assert "ltctl: interrupted: accepted as revision 3, its apply was not waited for" == err.strip()
        process.close()


def test_a_history_of_large_values_is_read_in_one_answer(daemon: Daemon, shell: Shell) -> None:
    with daemon.channel() as channel:
        process = Process(channel, "vgg")
        process.join()
        note = types_pb2.VariableSpec(variable_id="note", type=types_pb2.VARIABLE_TYPE_STRING)
        note.initial.string_value = ""
        process.declare(note)
        stub = control_pb2_grpc.ControlServiceStub(channel)
        for number in range(40):  # 40 times 60 kB, old and new: above the 4 MiB that gRPC takes unasked
            update = control_pb2.VariableUpdate(variable_id="note", text=f"{number:060000}")
            stub.SetVariables(control_pb2.SetVariablesRequest(job="jobs/vgg", updates=[update]), timeout=10)
        answer = shell("history", "vgg", "-o", "name")
        assert (0, 40) == (answer.code, len(answer.out.splitlines())), answer.err
        process.close()


def test_every_command_in_every_format(shell: Shell, trainer: Trainer) -> None:
    shell.inside("set", "vgg", "lr=0.5", "--reason", "r")
    for words, name in [
        (("jobs",), "vgg"),
        (("get", "vgg"), "lr\nlc.strength\nmode\nsave\nstop"),
        (("describe", "vgg", "lr"), "lr"),
        (("history", "vgg"), "3"),
    ]:
        data = json.loads(shell.inside(*words, "-o", "json").out)
        assert data == yaml.safe_load(shell.inside(*words, "-o", "yaml").out)
        lines = [json.loads(line) for line in shell.inside(*words, "-o", "jsonl").out.splitlines()]
        assert lines == (data if isinstance(data, list) else [data])
        assert f"{name}\n" == shell.inside(*words, "-o", "name").out
        wide = shell.inside(*words, "-o", "wide").out
        assert len(wide) >= len(shell.inside(*words).out) > 0
    data = json.loads(shell.inside("set", "vgg", "mode=eval", "-o", "json").out)
    assert [{"rank": 0, "status": "applied", "step": 102, "effective": "eval", "reason": "", "used": []}] == data[
        "applied"
    ]["mode"]


def test_a_refusal_of_the_job_reaches_the_person(shell: Shell, trainer: Trainer) -> None:
    trainer.refuse = "warm-up is not over"
    answer = shell("set", "vgg", "lr=0.5")
    assert 9 == answer.code
    assert "refused (warm-up is not over)" in answer.out
    assert "the job refused it: lr: warm-up is not over" in answer.err
    assert "refused at step 101 (warm-up is not over)" in shell("history", "vgg").out


def test_a_change_that_is_not_applied_in_time(daemon: Daemon, shell: Shell) -> None:
    with daemon.channel() as channel:
        process = Process(channel, "slow")
        process.join()
        process.declare(float_spec("lr", 0.1))
        answer = shell("set", "slow", "lr=0.5", "--timeout", "0.3")
        assert 8 == answer.code
        assert "accepted as revision 3, not applied within 0.3 s" in answer.err
        assert 0 == shell("set", "slow", "lr=0.5", "--wait", "accepted").code
        process.close()
    eventually(lambda: "lost" in shell("jobs").out)
    answer = shell("set", "slow", "lr=0.25", "--timeout", "0.3")
    assert 8 == answer.code
    assert "job slow is not connected: accepted as revision 5, it applies when the job is back" in answer.err


def test_waiting_for_a_job_that_ends(daemon: Daemon, shell: Shell) -> None:
    with daemon.channel() as channel:
        process = Process(channel, "ends")
        process.join()
        process.declare(float_spec("lr", 0.1))
        waiting = shell.start("set", "ends", "lr=0.5")
        process.expect("change")
        process.send(end={"step": 5})
        _, err = waiting.communicate(timeout=30)
    assert 8 == waiting.returncode
    assert "the job ended before it applied it" in err
    assert "finished at step 5" in shell("set", "ends", "lr=0.5").err


def test_watch_goes_on_over_a_restart_and_ends_with_130(daemon: Daemon, shell: Shell, tmp_path: Path) -> None:
    with daemon.channel() as channel:
        Process(channel, "one").register()
    watch = shell.start("watch", "--after", "0", "-o", "jsonl")
    assert watch.stdout is not None
    assert watch.stderr is not None
    try:
        assert ("one", "registered", 1) == read_event(watch)
        daemon.kill()
        assert "going on when it is back" in watch.stderr.readline()
        daemon.start()
        with daemon.channel() as channel:
            Process(channel, "two").register()
        assert ("two", "registered", 2) == read_event(watch)
        watch.send_signal(signal.SIGINT)
        assert 130 == watch.wait(20)
    finally:
        watch.kill()
        watch.wait()
        watch.stdout.close()
        watch.stderr.close()


def read_event(watch: subprocess.Popen[str]) -> tuple[str, str, int]:
    assert watch.stdout is not None
    event = json.loads(watch.stdout.readline())
    return event["job"], event["kind"], event["revision"]


def test_waiting_survives_a_restart_of_the_daemon(daemon: Daemon, shell: Shell) -> None:
    with daemon.channel() as channel:
        process = Process(channel, "vgg")
        process.join()
        process.declare(float_spec("lr", 0.1))
        waiting = shell.start("set", "vgg", "lr=0.5", "--timeout", "30")
        change = process.expect("change").change
        daemon.kill()
    daemon.start()
    with daemon.channel() as channel:
        back = Process(channel, "vgg", instance_id=process.instance_id)
        back.register()
        back.open(after_revision=change.revision)
        back.declare(float_spec("lr", 0.1))
        back.apply(change, step=77)
        out, _ = waiting.communicate(timeout=40)
    assert (0, "lr 0.1 → 0.5   applied at step 77\n") == (waiting.returncode, out)


def test_a_terminal_without_arrows_and_a_reader_that_leaves(shell: Shell, trainer: Trainer) -> None:
    answer = shell("set", "vgg", "lr=0.5", "--reason", "größer", encoding="ascii")
    assert (0, "lr 0.1 -> 0.5   applied at step 101\n") == (answer.code, answer.out)
    assert r"gr\xf6\xdfer" in shell("history", "vgg", encoding="ascii").out
    watch = shell.start("watch", "--after", "0")
    assert watch.stdout is not None
    assert watch.stderr is not None
    with watch.stdout, watch.stderr:
        watch.stdout.readline()
        watch.stdout.close()  # as `| head -n 1` does
        shell("set", "vgg", "lr=0.6")
        assert 0 == watch.wait(20)
        assert "" == watch.stderr.read()


def test_reasons_with_control_characters_are_escaped(shell: Shell, trainer: Trainer) -> None:
    shell("set", "vgg", "lr=0.5", "--reason", "\x1b[2Jgone\nnext")
    for words in (("history", "vgg"), ("watch", "vgg", "--after", "0", "-n", "3")):
        out = shell(*words).out
        assert r"\x1b[2Jgone\nnext" in out
        assert "\x1b" not in out


def test_no_daemon_says_how_to_start_one(make_daemon: Callable[..., Daemon]) -> None:
    answer = Shell(make_daemon())("jobs")
    assert 7 == answer.code
    assert "No such file or directory" in answer.err
    assert "start one with: livetuned serve" in answer.err


def test_a_change_that_a_later_one_overtook_is_a_conflict(daemon: Daemon, shell: Shell) -> None:
    with daemon.channel() as channel:
        process = Process(channel, "vgg")
        process.join()
        process.declare(float_spec("lr", 0.1))
        waiting = shell.start("set", "vgg", "lr=0.5")
        first = process.expect("change").change
        assert 0 == shell("set", "vgg", "lr=0.6", "--wait", "accepted").code
        second = process.expect("change").change
        outcome = types_pb2.Outcome(variable_id="lr", status=types_pb2.APPLY_STATUS_SUPERSEDED)
        process.send(apply={"change_revision": first.revision, "step": 9, "outcomes": [outcome]})
        process.expect("apply_recorded")
        process.apply(second, step=9)
        out, err = waiting.communicate(timeout=30)
    assert (4, "lr 0.1 → 0.5   superseded at step 9\n") == (waiting.returncode, out)
    assert "lr was changed again before the job took it" in err


def test_set_waits_for_every_rank_that_is_connected(daemon: Daemon, shell: Shell) -> None:
    with daemon.channel() as channel:
        ranks = [Process(channel, "ddp", rank=rank, world_size=2) for rank in range(2)]
        for process in ranks:
            process.join()
            process.declare(float_spec("lr", 0.1))
        waiting = shell.start("set", "ddp", "lr=0.5", "--timeout", "30")
        changes = [process.expect("change").change for process in ranks]
        ranks[0].apply(changes[0], step=7)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1)
        ranks[1].apply(changes[1], step=7)
        out, _ = waiting.communicate(timeout=30)
        assert (0, "lr 0.1 → 0.5   applied at step 7 on 2 of 2 ranks\n") == (waiting.returncode, out)
        assert "2/2" in shell("jobs").out
        # The same rank twice is two live jobs of one name.
        with pytest.raises(grpc.RpcError) as caught:
            Process(channel, "ddp", rank=1, world_size=2).register()
        assert grpc.StatusCode.ALREADY_EXISTS is caught.value.code()


def test_history_tells_what_waits_from_what_will_never_be(daemon: Daemon, shell: Shell) -> None:
    with daemon.channel() as channel:
        process = Process(channel, "vgg")
        process.join()
        process.declare(float_spec("lr", 0.1), triggers=("save",))
        process.close()
        eventually(lambda: "lost" in shell("jobs").out)
        for value in ("0.5", "0.6"):
            shell("set", "vgg", f"lr={value}", "--wait", "accepted")
        assert 2 == shell("history", "vgg").out.count("pending")
        back = Process(channel, "vgg")
        back.join()
        taken = back.declare(float_spec("lr", 0.1), triggers=("save",)).variables[0]
        outcome = types_pb2.Outcome(variable_id="lr", status=types_pb2.APPLY_STATUS_APPLIED, effective=taken.desired)
        back.send(apply={"change_revision": taken.revision, "step": 3, "outcomes": [outcome]})
        back.expect("apply_recorded")
        shell("trigger", "vgg", "save", "--wait", "accepted")
        first, second, third = shell("history", "vgg").out.splitlines()[1:]
        assert ("0.1 → 0.5   never", "0.5 → 0.6   step 3", "fire save      pending") == (
            first[first.index("0.1") :].rstrip(),
            second[second.index("0.5 →") :].rstrip(),
            third[third.index("fire") :].rstrip(),
        )
        back.expect("change")
        back.send(end={"step": 5})
        back.expect("end_recorded")
        assert ["lr", None, "save"] == [
            next(iter(change["lapsed"]), None) for change in json.loads(shell("history", "vgg", "-o", "json").out)
        ]
