"""The README's own example and commands, as pasted; and the demo."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from support.daemon import Daemon, eventually

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent


def section(title: str) -> str:
    match = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## )", README, re.MULTILINE | re.DOTALL)
    assert match, title
    return match[1]


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_example_works_as_pasted(daemon: Daemon, tmp_path: Path) -> None:
    own = section("Tune a job of your own")
    (program,) = blocks("python", own)
    assert len([line for line in program.splitlines() if line.strip()]) <= 22
    (tmp_path / "train.py").write_text(program)
    environment = {
        **os.environ,
        "LIVETUNE_ENDPOINT": daemon.target,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONIOENCODING": "utf-8",
    }

    def shell(command: str) -> str:
        answer = subprocess.run(
            command, shell=True, capture_output=True, text=True, env=environment, timeout=60, check=False
        )
        assert 0 == answer.returncode, (command, answer)
        return answer.stdout

    training = subprocess.Popen(
        [sys.executable, "train.py"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        eventually(lambda: "running" in shell("ltctl jobs"), 60)
        commands = [line[2:] for line in blocks("console", own)[-1].splitlines() if line.startswith("$ ")]
        assert 6 == len(commands)
        printed = {command.split()[1]: shell(command) for command in commands}
        assert re.search(r"^lr 0\.01 → 0\.001   applied at step \d+$", printed["set"], re.MULTILINE)
        assert "it converges" in printed["history"]
        assert re.search(r"^lr +0\.001 +0\.001 +\d+", printed["get"], re.MULTILINE)
        assert 0 == training.wait(30)
        assert training.stdout is not None
        assert "stopped at step" in training.stdout.read()
    finally:
        training.kill()
        training.wait()
        assert training.stdout is not None
        training.stdout.close()


def test_exit_codes_in_the_readme_are_those_of_the_code() -> None:
    from livetuned.daemon.lifecycle import ExitCode
    from ltctl.exits import Exit

    told = {int(code) for code in re.findall(r"^\| (\d+) \|", section("ltctl"), re.MULTILINE)}
    assert {code.value for code in Exit} == told
    daemon_codes = re.findall(r"(?:with|,|\n)\s?(\d) [a-z]", section("The daemon").split("It ends")[1])
    assert {code.value for code in ExitCode} - {1} == set(map(int, daemon_codes)) | {0}


def test_every_command_in_the_readme_exists() -> None:
    from ltctl.main import cli

    named = set(re.findall(r"`ltctl ([a-z]+)", section("ltctl")))
    assert set(cli.commands) == named


def test_the_demo_meets_all_its_expectations(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py"), "--out", str(tmp_path / "out")],
        capture_output=True, text=True, timeout=110, check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert 0 == answer.returncode, answer.stdout + answer.stderr
    assert "All expectations met" in answer.stdout
    assert (tmp_path / "out" / "training.png").read_bytes().startswith(b"\x89PNG")


def test_the_demo_fails_when_an_expectation_is_not_met(tmp_path: Path) -> None:
    """The control: a demo whose job does not come up must not pass."""
    broken = tmp_path / "examples"
    broken.mkdir()
    (broken / "demo.py").write_text((ROOT / "examples" / "demo.py").read_text())
    (broken / "digits_layercollapse.py").write_text("raise SystemExit('broken on purpose')")
    answer = subprocess.run(
        [sys.executable, str(broken / "demo.py"), "--out", str(tmp_path / "out")],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert 1 == answer.returncode
    assert "DEMO FAILED: expected that the job lives" in answer.stderr
    assert "broken on purpose" in answer.stderr
