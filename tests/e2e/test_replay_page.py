"""docs/replay.md: its programs and commands, as pasted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.daemon import Daemon, eventually

PAGE = (Path(__file__).parents[2] / "docs" / "replay.md").read_text()
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(300)  # several programs that load torch, one after the other
def test_the_page_works_as_pasted(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = make_daemon("--job-ports", "25020-25029").start()
    train, offline = blocks("python")
    (tmp_path / "train.py").write_text(train)
    (tmp_path / "offline.py").write_text(offline)
    begin, tune, replay, history, export = (
        [line.removeprefix("$ ") for line in block.splitlines()] for block in blocks("console")
    )
    environment = {
        **os.environ,
        "LIVETUNE_ENDPOINT": daemon.target,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PYTHONIOENCODING": "utf-8",
    }

    def shell(command: str) -> str:
        answer = subprocess.run(
            command, shell=True, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=100
        )
        assert 0 == answer.returncode, (command, answer)
        return answer.stdout

    training = subprocess.Popen(
        f"exec {begin[0].replace('LIVETUNE', 'env LIVETUNE', 1)}",
        shell=True, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        eventually(lambda: "running" in shell("ltctl jobs"), 60)
        for command in tune:
            shell(command)
        printed, _ = training.communicate(timeout=60)
    finally:
        training.kill()
        training.wait()
    assert re.fullmatch(r"stopped at step \d+ with \[\[.*\]\]\n", printed)
    assert printed == shell(replay[0])
    assert "" == shell(history[0])
    assert printed == shell(history[1])
    assert "" == shell(export[0])
    assert "it converges" in (tmp_path / "schedule.py").read_text()
    assert "0.0001\n" == shell("python offline.py")
