"""Hugging Face: one line in the user's code, and ltctl on a real training of transformers' Trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra `huggingface`")

from livetune.v1 import types_pb2
from support.daemon import Daemon, eventually
from support.frameworks import JOB, close, cosine, meeting, tuned
from support.programs import program
from support.shell import Shell, state_of

pytestmark = pytest.mark.timeout(600)

SCRIPT = "huggingface_run.py"
STEPS = 100_000
"""Over which the Trainer's cosine goes to zero."""


def saved_state(checkpoint: Path) -> dict[str, Any]:
    """What the Trainer keeps of our callback."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return state["stateful_callbacks"]["LiveTune"]["attributes"]["saved"]


def test_lr_and_weight_decay_are_those_that_were_asked_for_from_the_next_step_on(
    daemon: Daemon, tmp_path: Path
) -> None:
    with tuned(daemon, SCRIPT, tmp_path / "run", "--accumulate", "2") as run:
        assert [0.1, 0.01] == [run.value("lr"), run.value("weight_decay")]
        assert close([cosine(20, STEPS), cosine(20, STEPS) / 10], run.at(20)["lr"]), "the schedule of the program"
        step = run.set("lr=0.02", "weight_decay=0.5")
        used = run.at(step + 1)
        assert [0.02, pytest.approx(0.002)] == used["lr"], "the second group keeps its tenth"
        assert [0.5, 0.0] == used["wd"], "the group without weight decay stays without"
        later = run.at(step + 50)["lr"]
        scheduled = 0.02 * cosine(step + 50, STEPS) / cosine(step + 1, STEPS)
        assert close([scheduled, scheduled / 10], later), "the schedule goes on, from there"
        eventually(lambda: {"lr", "loss", "grad_norm"} <= set(run.logged()), 90)
        eventually(lambda: 0.019 < run.logged()["lr"] <= 0.02, 90)
        assert "learning_rate" not in run.logged(), "which is what the schedule says"
        assert 0.09 < run.stop()["logged_rate"]


def test_checkpoint_evaluate_and_stop(daemon: Daemon, tmp_path: Path) -> None:
    with tuned(daemon, SCRIPT, tmp_path / "run", "--eval-strategy", "steps") as run:
        run.trigger("run.checkpoint", "run.evaluate")
        step = run.fact("evaluating")
        assert run.at(step + 1)["training"], "the model trains on in training mode"
        checkpoint = tmp_path / "run" / f"checkpoint-{step}"
        assert 0.1 == saved_state(checkpoint)["job"]["variables"]["lr"]["value"]
        eventually(lambda: "eval_loss" in run.logged(), 90)
        told = run.stop()
        assert "test_loss" in told["tested"]
    assert types_pb2.JOB_STATE_FINISHED == state_of(daemon, JOB)


@pytest.mark.slow
def test_a_checkpoint_is_saved_although_evaluation_found_nothing_better(daemon: Daemon, tmp_path: Path) -> None:
    """With save_strategy="best" the Trainer overwrites the wish for a checkpoint with what an evaluation found."""
    with tuned(daemon, SCRIPT, tmp_path / "run", "--save-strategy", "best", "--eval-strategy", "steps") as run:
        run.trigger("run.evaluate")
        run.fact("evaluating")
        run.set("lr=0")
        run.trigger("run.checkpoint", "run.evaluate")
        step = run.fact("evaluating")
        run.at(step + 3)
        found = [int(path.name.partition("-")[2]) for path in (tmp_path / "run").glob("checkpoint-*")]
        assert {step, step + 1} & set(found)
        run.stop()


@pytest.mark.slow
def test_a_trainer_that_never_evaluates_says_so_and_trains_on(daemon: Daemon, tmp_path: Path) -> None:
    with tuned(daemon, SCRIPT, tmp_path / "run", "--eval-strategy", "no") as run:
        run.trigger("run.evaluate")
        eventually(lambda: "run.evaluate is not possible" in run.process.log.read_text(), 90)
        run.stop()


@pytest.mark.slow
def test_the_end_can_be_moved_but_not_beyond_the_epochs(daemon: Daemon, tmp_path: Path) -> None:
    with tuned(daemon, SCRIPT, tmp_path / "run", "--max-steps", "7001", "--accumulate", "3") as run:
        # Of 8 batches 3 steps are made, the last one of 2 batches; 2,334 epochs for 7,001 steps.
        refused = run.shell("set", JOB, "run.max_steps=7003")
        assert 9 == refused.code
        assert "epochs end at step 7002" in refused.err
        end = run.set("run.max_steps=7002") + 300
        run.set(f"run.max_steps={end}")
        assert end == run.tested()["step"]


@pytest.mark.slow
def test_an_exception_fails_the_job_when_the_program_ends(daemon: Daemon, tmp_path: Path) -> None:
    with tuned(daemon, SCRIPT, tmp_path / "run") as run:
        run.set("run.max_steps=13000")
        assert 1 == run.process.wait()
    assert types_pb2.JOB_STATE_FAILED == state_of(daemon, JOB)
    assert "RuntimeError: the disk is on fire" in Shell(daemon)("describe", JOB).out


@pytest.mark.slow
def test_a_training_after_one_that_failed_is_a_new_run(daemon: Daemon, tmp_path: Path) -> None:
    with tuned(daemon, SCRIPT, tmp_path / "run", "--catch") as run:
        run.set("lr=0.02", "run.max_steps=13000")
        assert "the disk is on fire" == run.fact("caught")
        run.process.facts(lambda fact: "count" in fact)
        eventually(lambda: ("lr", 0.1) in [(item["name"], item["desired"]) for item in run.variables()], 90)
        run.set("lr=0.03")
        run.process.facts(lambda fact: fact.get("lr", [0])[0] == 0.03)
        run.stop()
    assert types_pb2.JOB_STATE_FINISHED == state_of(daemon, JOB)


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_what_was_set_or_with_what_was_edited_since(daemon: Daemon, tmp_path: Path) -> None:
    with tuned(daemon, SCRIPT, tmp_path / "run") as run:
        said = run.set("lr=0.02", "weight_decay=0")
        run.trigger("run.checkpoint", "run.stop")
        run.tested()
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    end = int(checkpoint.name.partition("-")[2])
    resume = ("--resume", str(checkpoint))
    with tuned(daemon, SCRIPT, tmp_path / "again", *resume, "--restore-callbacks") as run:
        found = run.at(2)
        scheduled = 0.02 * cosine(end + 2, STEPS) / cosine(said + 1, STEPS)
        assert close([scheduled, scheduled / 10], found["lr"])
        assert [0.0, 0.0] == found["wd"]
        assert [0.02, 0.0] == [run.value("lr"), run.value("weight_decay")]
        step = run.set("weight_decay=0.3") - end
        assert [0.3, 0.0] == run.at(step + 1)["wd"], "zero is not the end of the ratio"
        run.trigger("run.stop")
        run.fact("trained")
    with tuned(daemon, SCRIPT, tmp_path / "edited", "--lr", "0.4", "--weight-decay", "0.7", *resume) as run:
        found = run.at(2)
        assert close([cosine(end + 2, STEPS, 0.4), cosine(end + 2, STEPS, 0.04)], found["lr"])
        assert [0.7, 0.0] == found["wd"]
        assert "the program says lr=0.4 now" in run.process.log.read_text()
        run.stop()


def test_a_resumed_run_takes_the_lr_that_was_set_while_it_was_down(daemon: Daemon, tmp_path: Path) -> None:
    with tuned(daemon, SCRIPT, tmp_path / "run") as run:
        run.set("lr=0.02")
        run.trigger("run.checkpoint")
        (checkpoint,) = eventually(lambda: list((tmp_path / "run").glob("checkpoint-*/trainer_state.json")), 90)
        run.process.process.kill()
        run.process.wait()
    eventually(lambda: types_pb2.JOB_STATE_LOST == state_of(daemon, JOB), 90)
    assert 0 == Shell(daemon)("set", JOB, "lr=0.05", "--wait", "accepted").code
    with tuned(daemon, SCRIPT, tmp_path / "again", "--resume", str(checkpoint.parent)) as run:
        taken = run.process.facts(lambda fact: fact.get("lr", [0])[0] > 0.03)
        assert 0.05 == taken["lr"][0]
        assert 0.05 == run.value("lr")
        run.stop()


@pytest.mark.slow
def test_a_job_of_the_users_own_is_used_and_not_ended(daemon: Daemon, tmp_path: Path) -> None:
    with tuned(daemon, SCRIPT, tmp_path / "run", "--own-job", "--epochs", "1000", "--schedule", "linear") as run:
        step = run.set("lr=0.02", "bonus=2")
        assert 0.02 == run.at(step + 1)["lr"][0]
        run.stop()
    assert types_pb2.JOB_STATE_FINISHED == state_of(daemon, JOB)


@pytest.mark.slow
def test_a_replay_takes_the_same_values_at_the_same_steps(daemon: Daemon, tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    with tuned(daemon, SCRIPT, tmp_path / "run", LIVETUNE_RECORD=str(record)) as run:
        step = run.set("lr=0.02")
        end = run.stop()["step"]
    (tmp_path / "again").mkdir()
    log = tmp_path / "again" / "log"
    with program(SCRIPT, JOB, str(tmp_path / "again"), log=log, LIVETUNE_REPLAY=str(record)) as again:
        assert 0.1 >= again.facts(lambda fact: fact.get("count") == step)["lr"][0] > 0.09
        assert 0.02 == again.facts(lambda fact: fact.get("count") == step + 1)["lr"][0]
        assert end == again.facts(lambda fact: "tested" in fact)["step"]
        assert 0 == again.wait()


def test_two_ranks_take_everything_at_the_same_step(daemon: Daemon, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    first, second = meeting(2)
    second["LIVETUNE_ENDPOINT"] = daemon.target
    words = ("--eval-strategy", "steps")
    with (
        program(SCRIPT, JOB, str(folder), *words, log=folder / "log1", **second) as other,
        tuned(daemon, SCRIPT, folder, *words, **first) as run,
    ):
        assert "2/2" in run.shell("jobs").out
        step = run.set("lr=0.02")
        assert 0.02 == run.at(step + 1)["lr"][0]
        assert 0.02 == other.facts(lambda fact: fact.get("count") == step + 1)["lr"][0]
        run.trigger("run.checkpoint", "run.evaluate")
        step = run.fact("evaluating")
        assert step == other.facts(lambda fact: "evaluating" in fact)["evaluating"]
        eventually((folder / f"checkpoint-{step}" / "trainer_state.json").exists, 90)
        run.trigger("run.stop")
        told = [process.facts(lambda fact: "tested" in fact) for process in (run.process, other)]
        assert [0, 0] == [process.wait() for process in (run.process, other)]
    assert told[0]["step"] == told[1]["step"]
