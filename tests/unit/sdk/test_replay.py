"""A record is replayed: same values, same steps, same callbacks; what can't be replayed is told, where and why."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import livetune
from livetune import DeclarationError, ReplayError

HEAD: dict[str, Any] = {"livetune_record": 1, "job": "vgg", "rank": 0, "world_size": 1, "store_id": "s", "declared": []}
END: dict[str, Any] = {"kind": "end", "step": 99, "failed": False}


def change(revision: int, step: int, /, **values: tuple[Any, Any]) -> dict[str, Any]:
    pairs = {name: {"old": old, "new": new} for name, (old, new) in values.items()}
    told = {"reason": f"r{revision}", "actor": "ann@a"}
    return {"kind": "change", "revision": revision, "step": step, "values": pairs, **told}


def firing(revision: int, step: int, trigger: str) -> dict[str, Any]:
    told = {"reason": f"r{revision}", "actor": "ann@a"}
    return {"kind": "firing", "revision": revision, "step": step, "trigger": trigger, **told}


def history(revision: int, *applies: dict[str, Any], job: str = "vgg", **values: tuple[Any, Any]) -> dict[str, Any]:
    """A change as `ltctl history JOB -o jsonl` prints it."""
    return {
        "revision": revision,
        "job": job,
        "time": "2026-11-24T12:00:00+00:00",
        "actor": "ann@a",
        "reason": f"r{revision}",
        "assignments": [{"variable": name, "old": old, "new": new} for name, (old, new) in values.items()],
        "firings": [],
        "applies": list(applies),
        "lapsed": [],
        "undone_revision": None,
    }


def apply(step: int, *outcomes: dict[str, Any], rank: int = 0, time: str = "12:00:01", **values: Any) -> dict[str, Any]:
    assigned = [{"variable": name, "status": "applied", "effective": value} for name, value in values.items()]
    return {"rank": rank, "step": step, "time": f"2026-11-24T{time}+00:00", "outcomes": [*assigned, *outcomes]}


def consumed(trigger: str) -> dict[str, Any]:
    return {"trigger": trigger, "status": "applied", "effective": None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


def write(path: Path, *lines: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def replay(path: Path) -> Iterator[Callable[..., livetune.Job]]:
    made: list[livetune.Job] = []

    def start(*lines: dict[str, Any], **options: Any) -> livetune.Job:
        if lines:
            write(path, *lines)
        made.append(livetune.init("vgg", replay=path, **options))
        return made[-1]

    yield start
    for job in made:
        job.finish()


# -- what it does --


def test_values_come_at_their_steps_and_everything_looks_as_it_did(replay: Callable[..., livetune.Job]) -> None:
    job = replay(HEAD, change(5, 2, lr=(0.1, 0.5), n=(1, 2)), change(6, 4, lr=(0.5, 0.5)), END)
    lr, n = job.variable("lr", 0.1), job.variable("n", 1)
    reactions: list[Any] = []
    lr.post_set(lambda new, old: reactions.append((job.current_step, new, old, n.value)))
    seen = []
    for _ in range(5):
        job.step()
        seen.append((lr.value, n.value, lr.changed(), lr.revision, lr.applied_step))
    assert [
        (0.1, 1, False, 0, 0),
        (0.5, 2, True, 5, 2),
        (0.5, 2, False, 5, 2),
        (0.5, 2, False, 6, 4),
        (0.5, 2, False, 6, 4),
    ] == seen
    assert [(2, 0.5, 0.1, 2), (4, 0.5, 0.5, 2)] == reactions
    assert [
        livetune.AppliedChange(5, 2, {"lr": (0.1, 0.5), "n": (1, 2)}, "r5", "ann@a"),
        livetune.AppliedChange(6, 4, {"lr": (0.5, 0.5)}, "r6", "ann@a"),
    ] == job.changes
    assert not job._pending


def test_the_program_is_not_asked_again(replay: Callable[..., livetune.Job]) -> None:
    job = replay(HEAD, change(5, 1, n=(8, 12)), END)
    n = job.variable("n", 8)
    n.pre_set(lambda value: pytest.fail("it is the effective value already"))
    n.on_set(lambda new, old: pytest.fail("it was accepted already"))
    job.step()
    assert 12 == n.value


def test_firings_are_consumed_where_they_were(replay: Callable[..., livetune.Job]) -> None:
    job = replay(HEAD, firing(5, 2, "save"), firing(6, 2, "save"), firing(7, 6, "save"), END)
    save = job.trigger("save")
    found = []
    for step in range(1, 9):
        job.step()
        if step % 2 == 0:  # it asks at every second step only
            while save():
                found.append(step)
    assert [2, 2, 6] == found


def test_there_is_no_daemon(replay: Callable[..., livetune.Job], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVETUNE_ENDPOINT", "nonsense")
    threads = threading.active_count()
    job = replay(HEAD, END)
    job.variable("lr", 0.1)
    job.step()
    assert (False, False, None, threads) == (job.connected, job.wait_connected(60), job.port, threading.active_count())
    assert f"<Job vgg, step 1, replay of {path}: lr=0.1>" == repr(job)
    job.finish()
    job.finish()
    assert "<Job vgg, step 1, ended: lr=0.1>" == repr(job)
    livetune.init("vgg", replay=path).finish()


def test_it_loads_no_grpc_and_the_environment_can_ask_for_it(path: Path) -> None:
    write(path, HEAD, change(5, 1, lr=(0.1, 0.5)), END)
    code = (
        "import livetune, sys; job = livetune.init('vgg'); lr = job.variable('lr', 0.1); job.step(); job.finish(); "
        "print(lr.value, 'grpc' in sys.modules, 'google.protobuf' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"LIVETUNE_REPLAY": str(path), "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert ("0.5 False False\n", "") == (answer.stdout, answer.stderr)


def test_steps_that_jump_bring_what_they_passed(replay: Callable[..., livetune.Job]) -> None:
    job = replay(HEAD, change(5, 2, lr=(0.1, 0.5), n=(1, 2)), change(6, 4, lr=(0.5, 0.25)), firing(7, 5, "save"), END)
    lr, n, save = job.variable("lr", 0.1), job.variable("n", 1), job.trigger("save")
    reactions: list[Any] = []
    lr.post_set(lambda new, old: reactions.append((new, old)))
    job.step(100)
    assert (0.25, 2, True, False) == (lr.value, n.value, save(), save())
    assert [(0.25, 0.1)] == reactions
    assert [(5, 100, {"n": (1, 2)}), (6, 100, {"lr": (0.1, 0.25)})] == [
        (item.revision, item.step, item.values) for item in job.changes
    ]


def test_what_is_declared_late_takes_up_its_part_then(
    replay: Callable[..., livetune.Job], caplog: pytest.LogCaptureFixture
) -> None:
    job = replay(
        HEAD, change(5, 1, lr=(0.1, 0.5), wd=(0.0, 0.1)), change(6, 2, wd=(0.1, 0.2)), firing(7, 2, "save"), END
    )
    lr = job.variable("lr", 0.1)
    for _ in range(4):
        job.step()
    assert 0.5 == lr.value
    assert not job._pending
    said = [text for text in caplog.messages if "not declared" in text]
    assert ["'wd', recorded at step 1", "'save', recorded at step 2"] == [
        text.split(": ")[2].partition(", is not")[0] for text in said
    ]
    wd, save = job.variable("wd", 0.0), job.trigger("save")
    assert 0.0 == wd.value
    job.step()
    assert (0.2, True) == (wd.value, save())


@pytest.mark.parametrize("jump", [1, 3])
def test_the_record_of_a_replay_is_the_record(
    replay: Callable[..., livetune.Job], path: Path, tmp_path: Path, jump: int
) -> None:
    def program(job: livetune.Job) -> None:
        job.variable("lr", 0.1)
        save = job.trigger("save")
        for step in range(jump, 20, jump):
            job.step(step)
            if step > 6:
                job.variable("wd", 0.0)
            save()
        job.finish()

    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    program(replay(HEAD, change(5, 2, lr=(0.1, 0.5)), firing(6, 6, "save"), {"kind": "store", "store_id": "t"},
                   change(2, 12, wd=(0.0, 0.25)), change(3, 12, lr=(0.5, 0.1)), END, record=first))  # fmt: skip
    path.write_bytes(first.read_bytes())
    program(replay(record=second))
    assert first.read_bytes() == second.read_bytes()
    kinds = [json.loads(line).get("kind") for line in first.read_text().splitlines()]
    assert [None, "change", "firing", "declared", "store", "change", "change", "end"] == kinds


def test_a_replay_cannot_record_over_itself(path: Path, tmp_path: Path) -> None:
    write(path, HEAD, END)
    (tmp_path / "link.jsonl").symlink_to(path)
    with pytest.raises(ReplayError, match="record and replay must be two files"):
        livetune.init("vgg", replay=path, record=tmp_path / "link.jsonl")


def test_the_last_process_of_a_file_counts(
    replay: Callable[..., livetune.Job], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, HEAD, change(5, 1, lr=(0.1, 0.5)))
    with path.open("a") as file:
        file.write(
            '{"kind": "chan\n' + "".join(json.dumps(line) + "\n" for line in (HEAD, change(9, 1, lr=(0.1, 0.75)), END))
        )
    job = replay()
    lr = job.variable("lr", 0.1)
    job.step()
    assert (0.75, []) == (lr.value, caplog.messages)


def test_a_pause_takes_no_time(replay: Callable[..., livetune.Job]) -> None:
    def paused(revision: int, new: bool) -> dict[str, Any]:
        return change(revision, 2, **{"run.paused": (not new, new)})

    job = replay(HEAD, paused(5, True), change(6, 2, lr=(0.1, 0.5)), paused(7, False), firing(8, 3, "run.stop"), END)
    lr, control = job.variable("lr", 0.1), livetune.RunControl(job)
    seen = []
    while True:
        job.step()
        seen.append(lr.value)
        if not control.proceed():
            break
    assert [0.1, 0.5, 0.5] == seen


# -- a departure is told --


def test_another_initial_value_is_told_once(
    replay: Callable[..., livetune.Job], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = {**HEAD, "declared": [{"name": "lr", "type": "float", "initial": 0.1}]}
    job = replay(head, change(5, 1, lr=(0.1, 0.5)), END)
    job.variable("lr", 0.2)
    job.step()
    said = f"job vgg: the replay departs from {path}:1: variable 'lr' began with 0.1 there, now it begins with 0.2"
    assert [said] == caplog.messages


def test_a_gap_before_what_was_overtaken_changes_nothing_and_is_not_told(
    replay: Callable[..., livetune.Job], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = replay(history(7, apply(4, lr=0.5), lr=(0.3, 0.5)), history(8, apply(5, lr=0.6), lr=(0.5, 0.6)))
    lr = job.variable("lr", 0.1)
    job.step(9)
    assert 0.6 == lr.value
    assert [] == caplog.messages


def test_a_gap_that_shows_is_told(
    replay: Callable[..., livetune.Job], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = replay(history(7, apply(4, lr=0.5), lr=(0.3, 0.5)))
    job.variable("lr", 0.1)
    job.step(4)
    (said,) = caplog.messages
    assert f"departs from {path}:1: variable 'lr' was 0.3 there before step 4, here it is 0.1; is a part of the" in said


def test_a_torn_last_line_is_left_out_with_a_warning(
    replay: Callable[..., livetune.Job], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, HEAD, change(5, 1, lr=(0.1, 0.5)))
    whole = path.read_bytes()
    line = json.dumps(change(6, 1, lr=(0.5, 0.75))).encode()
    for cut in range(1, len(line)):
        path.write_bytes(whole + line[:cut])
        caplog.clear()
        job = replay()
        lr = job.variable("lr", 0.1)
        job.step()
        job.finish()
        assert 0.5 == lr.value, cut
        assert [
            f"job vgg: {path}:3: the last line breaks off and is left out",
            f"job vgg: {path}: the record has no end",
        ] == [text.partition(", its")[0] for text in caplog.messages]
    path.write_bytes(whole + line)  # whole, but for its end of line
    job = replay()
    lr = job.variable("lr", 0.1)
    job.step()
    assert 0.75 == lr.value


# -- declarations that can't take what was recorded --


@pytest.mark.parametrize(
    ("declare", "words"),
    [
        (lambda job: job.variable("lr", 1), "run.jsonl:2: the value recorded is not allowed: variable 'lr' is of type int: 0.5 is of type float"),
        (lambda job: job.variable("lr", 0.1, max=0.2), "variable 'lr' must be at most 0.2, got 0.5"),
        (lambda job: job.trigger("lr"), "run.jsonl:2: 'lr' was recorded as a variable, now it is a trigger"),
        (lambda job: job.variable("save", 0.1), "run.jsonl:3: 'save' was recorded as a trigger, now it is a variable of type float"),
        (lambda job: job.variable("n", 1.0), "run.jsonl:1: 'n' was recorded as a variable of type int, now it is a variable of type float"),
        (lambda job: job.variable("n", True), "now it is a variable of type bool"),
        (lambda job: job.trigger("n"), "run.jsonl:1: 'n' was recorded as a variable of type int, now it is a trigger"),
        (lambda job: job.variable("stop", 1), "run.jsonl:1: 'stop' was recorded as a trigger, now it is a variable of type int"),
    ],
)  # fmt: skip
def test_declarations_that_cannot_take_what_was_recorded(
    replay: Callable[..., livetune.Job], declare: Callable[[livetune.Job], object], words: str
) -> None:
    declared = [{"name": "n", "type": "int", "initial": 1}, {"name": "stop", "type": "trigger"}]
    job = replay({**HEAD, "declared": declared}, change(5, 3, lr=(0.1, 0.5)), firing(6, 4, "save"), END)
    with pytest.raises(DeclarationError) as caught:
        declare(job)
    assert words in str(caught.value)
    assert {} == dict(job.variables)
    # It can be declared rightly after that.
    job.variable("lr", 0.1)


# -- files that can't be replayed --


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no line"),
        ("\n \n", "has no line"),
        ('{"livetune_rec', "has no line"),
        ("[]\n", "run.jsonl:1: the first line must be the header of a record"),
        ('{"revision": 3}\n', "or a change as `ltctl history JOB -o jsonl` prints it"),
        ("# lr\n", "run.jsonl:1: a line must be one JSON object, got b'# lr'"),
        ('{"livetune_record": 2}\n', "run.jsonl:1: the record's format must be of version 1 or older: use a newer livetune, got 2"),
        ('{"livetune_record": "1"}\n', "'livetune_record' must be the version of the format"),
        ('{"livetune_record": true}\n', "'livetune_record' must be the version of the format"),
        ('{"livetune_record": 1}\n', "run.jsonl:1: 'declared' must be a list, got None"),
        ("HEAD\n{}\n", "run.jsonl:2: 'kind' must be 'change', 'firing', 'declared', 'store' or 'end', got None"),
        ("HEAD\n7\n", "run.jsonl:2: a line must be a JSON object, got 7"),
        ("HEAD\n\n{\n", "run.jsonl:3: a line must be one JSON object"),
        ("HEAD\n" + "[" * 100_000 + "\n", "run.jsonl:2: a line must be one JSON object"),
        ("HEAD\n" + "9" * 10_000 + "\n", "run.jsonl:2: a line must be"),
        ('HEAD\n{"kind": "end"}\nx\n', "run.jsonl:3: a line must be one JSON object"),
        ('HEAD\n{"kind": "change", "revision": 1, "step": 1, "values": {"lr": {"old": 0.1, "new": NaN}}}\n', "NaN is no number of JSON"),
        ('HEAD\n{"kind": "change", "revision": 1, "step": 1, "values": {"lr": {"old": 0.1, "new": 1e999}}}\n', "'new' of 'lr' must be a finite float, an int of 64 bits, a bool or text, got inf"),
        ('HEAD\n{"kind": "change", "revision": 1, "step": 1, "values": {"lr": {"old": 0.1, "new": 9223372036854775808}}}\n', "'new' of 'lr' must be"),
        ('HEAD\n{"kind": "change", "revision": 1, "step": 1, "values": {"lr": {"old": 0.1, "new": null}}}\n', "got None"),
        ('HEAD\n{"kind": "change", "revision": 1, "step": 1, "values": {"l-r": {"old": 0.1, "new": 1}}}\n', "'l-r': use identifiers"),
        ('HEAD\n{"kind": "change", "revision": 1, "step": 1, "values": {"lr": 5}}\n', "the values of 'lr' must be a JSON object, got 5"),
        ('HEAD\n{"kind": "change", "revision": 1, "step": 1, "values": {}}\n', "'values' must be an object with one variable or more"),
        ('HEAD\n{"kind": "change", "revision": 1, "step": 1.5, "values": {"lr": {"old": 0.1, "new": 1}}}\n', "'step' must be a whole number from 0 to 2**63 - 1, got 1.5"),
        ('HEAD\n{"kind": "change", "revision": -1, "step": 1, "values": {"lr": {"old": 0.1, "new": 1}}}\n', "'revision' must be"),
        ('HEAD\n{"kind": "firing", "revision": 1, "step": 1, "trigger": 5}\n', "variable or trigger name 5"),
        ('HEAD\n{"kind": "firing", "revision": 1, "step": 1, "trigger": "a", "reason": 5}\n', "'reason' must be text, got 5"),
        ('HEAD\n{"kind": "firing", "revision": 1, "step": 8, "trigger": "a"}\n{"kind": "firing", "revision": 2, "step": 7, "trigger": "a"}\n', "run.jsonl:3: steps must not fall, got 7 after 8"),
        ('HEAD\n{"kind": "declared", "declared": [{"name": "a", "type": "double"}]}\n', "'type' of 'a' must be 'float'"),
        ('HEAD\n{"kind": "declared", "declared": [5]}\n', "a declaration must be a JSON object, got 5"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_replayed(path: Path, text: str, words: str) -> None:
    path.write_text(text.replace("HEAD", json.dumps(HEAD)))
    with pytest.raises(ReplayError) as caught:
        livetune.init("vgg", replay=path)
    assert words in str(caught.value)
    # Nothing of the job is left behind.
    livetune.init("vgg", endpoint="unix:/nowhere/d.sock").finish()


@pytest.mark.parametrize(("name", "words"), [("none.jsonl", "No such file"), (".", "Is a directory"), ("\0", "null")])
def test_files_that_cannot_be_read(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(ReplayError, match=words):
        livetune.init("vgg", replay=tmp_path / name)


def test_what_is_not_known_is_left_alone(replay: Callable[..., livetune.Job]) -> None:
    job = replay({**HEAD, "more": 1}, {**change(5, 1, lr=(0.1, 0.5)), "more": [2]}, {**END, "more": None})
    lr = job.variable("lr", 0.1)
    job.step()
    assert 0.5 == lr.value


# -- what ltctl history prints --


def test_a_history_gives_what_this_rank_applied(
    replay: Callable[..., livetune.Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = {"variable": "wd", "status": "refused", "effective": 0.0, "reason": "no"}
    fire = {
        **history(9, apply(8, consumed("save"), rank=1, time="12:00:09")),
        "firings": [{"trigger": "save", "number": 1}],
    }
    job = replay(
        history(5, apply(2, rank=0, lr=0.9), apply(3, refused, rank=1, lr=0.5), lr=(0.1, 0.5), wd=(0.0, 7.0)),
        history(6, apply(4, rank=0, lr=0.8), lr=(0.5, 0.8)),
        fire,
        # Declared late: it took up its part after what came later.
        history(10, apply(6, rank=1, time="12:00:05", lr=0.25), apply(9, rank=1, time="12:00:10", late=4), lr=(0.8, 0.25), late=(3, 4)),
    )  # fmt: skip
    lr, wd, late, save = job.variable("lr", 0.1), job.variable("wd", 0.0), job.variable("late", 3), job.trigger("save")
    seen = []
    for _ in range(10):
        job.step()
        seen.append((lr.value, wd.value, late.value, save()))
    assert [
        (0.1, 0.0, 3, False), (0.1, 0.0, 3, False), (0.5, 0.0, 3, False), (0.5, 0.0, 3, False), (0.5, 0.0, 3, False),
        (0.25, 0.0, 3, False), (0.25, 0.0, 3, False), (0.25, 0.0, 3, True), (0.25, 0.0, 4, False), (0.25, 0.0, 4, False),
    ] == seen  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([history(5, apply(1, lr=0.5), lr=(0.1, 0.5)), history(6, apply(1, lr=0.5), job="b", lr=(0.5, 0.6))], "run.jsonl:2: 'job' must be that of the lines before, 'vgg'"),
        ([history(5, apply(1, lr=0.5), lr=(0.1, 0.5)), history(5, apply(1, lr=0.5), lr=(0.5, 0.6))], "run.jsonl:2: 'revision' must be above the 5 of the line before, got 5"),
        ([history(5, apply(1, lr=0.5), lr=(0.1, 0.5)), history(7, apply(9, lr=0.6), lr=(0.1, 0.6))], "'old' of 'lr' must be 0.5, which revision 5 made it, got 0.1: changes between are missing, or another run began"),
        ([history(5, apply(8, lr=0.5), lr=(0.1, 0.5)), history(7, apply(3, time="12:00:05", lr=0.6), lr=(0.5, 0.6))], "run.jsonl:2: steps must not fall, got 3 after 8: the history holds more than one process"),
        ([history(5, apply(8, rank=3, lr=0.5), lr=(0.1, 0.5))], "no change was applied by rank 0, only by rank 3"),
        ([history(5, {**apply(8, lr=0.5), "time": "noon"}, lr=(0.1, 0.5))], "'time' must be ISO 8601 with an offset, got 'noon'"),
        ([history(5, apply(8, lr=None), lr=(0.1, 0.5))], "'effective' of 'lr' must be a finite float"),
        ([{**history(5), "applies": 5}], "'applies' must be a list, got 5"),
        ([{**history(n), "firings": [{"trigger": "a", "number": 1}]} for n in (5, 6)], "run.jsonl:2: 'number' of 'a' must be above the 1 before it, or another run began"),
    ],
)  # fmt: skip
def test_histories_that_cannot_be_replayed(path: Path, lines: list[dict[str, Any]], words: str) -> None:
    write(path, *lines)
    with pytest.raises(ReplayError) as caught:
        livetune.init("vgg", replay=path)
    assert words in str(caught.value)
