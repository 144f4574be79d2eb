"""Lightning: one line in the user's code, and ltctl on a real training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="needs the extra `lightning`")

from livetune.v1 import types_pb2
from support.daemon import Daemon, eventually
from support.frameworks import JOB, close, cosine, meeting, tuned
from support.programs import program
from support.shell import Shell, state_of

pytestmark = pytest.mark.timeout(600)

SCRIPT = "lightning_run.py"
STEPS = 20_000
"""Over which the program's cosine goes to zero."""


def test_lr_and_weight_decay_are_those_that_were_asked_for_from_the_next_step_on(
    daemon: Daemon, tmp_path: Path
) -> None:
    with tuned(daemon, SCRIPT, tmp_path / "run") as run:
        assert [0.1, 0.01] == [run.value("lr"), run.value("weight_decay")]
        undisturbed = run.at(20)["lr"]
        assert close([cosine(20, STEPS), cosine(20, STEPS) / 10], undisturbed), "the schedule of the program"
        step = run.set("lr=0.02", "weight_decay=0.5")
        used = run.at(step + 1)
        assert [0.02, pytest.approx(0.002)] == used["lr"], "the second group keeps its tenth"
        assert [0.5, 0.0] == used["wd"], "the group without weight decay stays without"
        later = run.at(step + 50)["lr"]
        scheduled = 0.02 * cosine(step + 50, STEPS) / cosine(step + 1, STEPS)
        assert close([scheduled, scheduled / 10], later), "the schedule goes on, from there"
        eventually(lambda: {"lr", "train/loss_mse_"} <= set(run.logged()), 90)
        eventually(lambda: 0.019 < run.logged()["lr"] <= 0.02, 90)
        assert 0.5 == run.logged()["weight_decay"]
        run.stop()


def test_checkpoint_evaluate_and_stop(daemon: Daemon, tmp_path: Path) -> None:
    with tuned(daemon, SCRIPT, tmp_path / "run", "--by-epoch") as run:
        run.trigger("run.checkpoint", "run.evaluate")
        step = run.fact("validated")
        (saved,) = (tmp_path / "run" / "checkpoints").glob("livetune-*.ckpt")
        assert f"step={step}.ckpt" in saved.name
        after = run.at(step + 1)
        assert after["training"], "the model trains on in training mode"
        eventually(lambda: "val_loss" in run.logged(), 90)
        # Once: afterwards the trainer's own schedule holds again.
        run.trigger("run.evaluate")
        assert run.fact("validated") > step + 1
        told = run.stop()
        assert "test_loss" in told["tested"]
    assert types_pb2.JOB_STATE_FINISHED == state_of(daemon, JOB)


@pytest.mark.slow
def test_steps_are_those_of_the_optimizer_while_gradients_are_accumulated(daemon: Daemon, tmp_path: Path) -> None:
    with tuned(daemon, SCRIPT, tmp_path / "run", "--accumulate", "4", "--no-validation") as run:
        step = run.set("lr=0.02")
        assert 0.02 == run.at(step + 1)["lr"][0]
        run.trigger("run.evaluate")
        eventually(lambda: "run.evaluate is not possible" in run.process.log.read_text(), 90)
        run.trigger("run.stop")
        assert 0 == run.fact("fitted")


@pytest.mark.slow
def test_optimizers_that_the_module_steps_itself_and_the_older_name_of_the_package(
    daemon: Daemon, tmp_path: Path
) -> None:
    with tuned(daemon, SCRIPT, tmp_path / "run", "--manual", "--package", "pytorch_lightning") as run:
        assert [0.1, 0.05] == [run.value("generator.lr"), run.value("critic.lr")]
        step = run.set("generator.lr=0.02", "critic.weight_decay=0.3")
        assert 0.02 == run.at(step // 2 + 1)["lr"][0], "Lightning counts the steps of both"
        run.trigger("run.evaluate")
        assert run.fact("validated") > step
        assert 0.02 == run.stop()["lr"]


@pytest.mark.slow
def test_the_end_can_be_moved_but_not_beyond_the_epochs(daemon: Daemon, tmp_path: Path) -> None:
    # 8 batches in each of 1,000 epochs.
    with tuned(daemon, SCRIPT, tmp_path / "run", "--max-steps", "7000", "--max-epochs", "1000") as run:
        refused = run.shell("set", JOB, "run.max_steps=8001")
        assert 9 == refused.code
        assert "epochs end at step 8000" in refused.err
        end = run.set("run.max_steps=8000") + 300
        run.set(f"run.max_steps={end}")
        assert end == run.tested()["step"]


@pytest.mark.slow
def test_an_exception_fails_the_job_with_its_message(daemon: Daemon, tmp_path: Path) -> None:
    with tuned(daemon, SCRIPT, tmp_path / "run") as run:
        run.set("bonus=13")
        assert 1 == run.process.wait()
    assert types_pb2.JOB_STATE_FAILED == state_of(daemon, JOB)
    assert "RuntimeError: the disk is on fire" in Shell(daemon)("describe", JOB).out


@pytest.mark.slow
def test_two_fits_are_two_runs_of_the_job(daemon: Daemon, tmp_path: Path) -> None:
    with tuned(daemon, SCRIPT, tmp_path / "run", "--fits", "2") as run:
        run.set("lr=0.02", "bonus=3")
        run.trigger("run.stop")
        assert 3.0 == run.fact("bonus")
        assert 0.1 == run.at(1)["lr"][0], "the second begins with what the program says"
        eventually(lambda: types_pb2.JOB_STATE_RUNNING == state_of(daemon, JOB), 90)
        run.set("lr=0.03")
        assert 0.03 == run.stop()["lr"]


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_what_was_set_or_with_what_was_edited_since(daemon: Daemon, tmp_path: Path) -> None:
    with tuned(daemon, SCRIPT, tmp_path / "run") as run:
        said = run.set("lr=0.02", "weight_decay=0", "bonus=3")
        waits = run.shell.data("set", JOB, "lr=0.5", "--in", "1000000")["at_step"]
        end = run.stop()["step"]
    resume = ("--resume", str(tmp_path / "run" / "end0.ckpt"))
    with tuned(daemon, SCRIPT, tmp_path / "again", *resume) as run:
        found = run.at(2)
        scheduled = 0.02 * cosine(end + 2, STEPS) / cosine(said + 1, STEPS)
        assert close([scheduled, scheduled / 10], found["lr"])
        assert [0.0, 0.0] == found["wd"]
        assert [0.02, 0.0, 3.0] == [run.value("lr"), run.value("weight_decay"), run.value("bonus")]
        eventually(lambda: [waits] == [change["at_step"] for change in run.shell.data("get", JOB)["scheduled"]], 30)
        step = run.set("weight_decay=0.3") - end
        assert [0.3, 0.0] == run.at(step + 1)["wd"], "zero is not the end of the ratio"
        run.stop()
    with tuned(daemon, SCRIPT, tmp_path / "edited", "--lr", "0.4", "--weight-decay", "0.7", *resume) as run:
        found = run.at(2)
        assert close([cosine(end + 2, STEPS, 0.4), cosine(end + 2, STEPS, 0.04)], found["lr"])
        assert [0.7, 0.0] == found["wd"]
        assert "the program says lr=0.4 now" in run.process.log.read_text()
        run.stop()


def test_a_resumed_run_takes_the_lr_that_was_set_while_it_was_down(daemon: Daemon, tmp_path: Path) -> None:
    with tuned(daemon, SCRIPT, tmp_path / "run", "--max-steps", "300000") as run:
        run.set("lr=0.02")
        run.trigger("run.checkpoint")
        (saved,) = (tmp_path / "run" / "checkpoints").glob("livetune-*.ckpt")
        run.process.process.kill()
        run.process.wait()
    eventually(lambda: types_pb2.JOB_STATE_LOST == state_of(daemon, JOB), 90)
    shell = Shell(daemon)
    assert 0 == shell("set", JOB, "lr=0.05", "--wait", "accepted").code
    with tuned(daemon, SCRIPT, tmp_path / "again", "--resume", str(saved), "--max-steps", "400000") as run:
        taken = run.process.facts(lambda fact: fact.get("lr", [0])[0] > 0.03)
        assert 0.05 == taken["lr"][0]
        assert 0.05 == run.value("lr")
        assert 400_000 == run.value("run.max_steps"), "which nobody set, but somebody edited"
        run.stop()


@pytest.mark.slow
def test_a_replay_takes_the_same_values_at_the_same_steps(daemon: Daemon, tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    with tuned(daemon, SCRIPT, tmp_path / "run", LIVETUNE_RECORD=str(record)) as run:
        step = run.set("lr=0.02")
        end = run.stop()["step"]
    (tmp_path / "again").mkdir()
    log = tmp_path / "again" / "log"
    with program(SCRIPT, JOB, str(tmp_path / "again"), log=log, LIVETUNE_REPLAY=str(record)) as again:
        assert 0.1 > again.facts(lambda fact: fact.get("count") == step)["lr"][0] > 0.09
        assert 0.02 == again.facts(lambda fact: fact.get("count") == step + 1)["lr"][0]
        assert end == again.facts(lambda fact: "tested" in fact)["step"]
        assert 0 == again.wait()


def test_two_ranks_take_everything_at_the_same_step(daemon: Daemon, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    first, second = meeting(2)
    second["LIVETUNE_ENDPOINT"] = daemon.target
    with (
        program(SCRIPT, JOB, str(folder), "--ranks", "2", log=folder / "log1", **second) as other,
        tuned(daemon, SCRIPT, folder, "--ranks", "2", **first) as run,
    ):
        assert "2/2" in run.shell("jobs").out
        step = run.set("lr=0.02")
        assert 0.02 == run.at(step + 1)["lr"][0]
        used = other.facts(lambda fact: fact.get("count") == step + 1)
        assert 0.02 == used["lr"][0]
        assert 0.09 < cosine(step, STEPS)
        run.trigger("run.checkpoint", "run.evaluate")
        assert run.fact("validated") == other.facts(lambda fact: "validated" in fact)["validated"]
        assert 1 == len(list((folder / "checkpoints").glob("livetune-*.ckpt")))
        run.trigger("run.stop")
        told = [process.facts(lambda fact: "tested" in fact) for process in (run.process, other)]
        assert [0, 0] == [process.wait() for process in (run.process, other)]
    assert told[0]["step"] == told[1]["step"], json.dumps(told)
