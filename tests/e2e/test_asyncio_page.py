"""The program and the commands of docs/asyncio.md, as pasted."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from livetune.v1 import types_pb2
from support.daemon import Daemon, eventually
from support.shell import Shell, state_of

PAGE = (Path(__file__).parents[2] / "docs" / "asyncio.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_the_program_and_its_commands_work_as_pasted(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "rollouts.py").write_text(block("python"))
    program = subprocess.Popen(
        [sys.executable, "-W", "always", "rollouts.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "LIVETUNE_ENDPOINT": daemon.target},
    )  # fmt: skip
    try:
        shell = Shell(daemon)
        eventually(lambda: "stop" in shell.inside("describe", "rollouts").out, 60)
        commands = [line.removeprefix("$ ltctl ") for line in block("console").splitlines()]
        assert 3 == len(commands)
        for command in commands:
            answer = shell(*shlex.split(command))
            assert (0, "") == (answer.code, answer.err)
        said, errors = program.communicate(timeout=30)
    finally:
        program.kill()
        program.communicate()
    assert (0, "") == (program.returncode, errors)
    lines = said.splitlines()
    assert re.fullmatch(r"step \d+: \{'temperature': \(1\.0, 0\.7\)\} because 'explore less'", lines[0])
    assert re.fullmatch(r"saved at step \d+", lines[1])
    assert ["over"] == lines[2:]
    assert types_pb2.JOB_STATE_FINISHED == state_of(daemon, "rollouts")
