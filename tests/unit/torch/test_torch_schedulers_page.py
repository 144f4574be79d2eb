"""docs/schedulers.md: its code runs, and its numbers are those that come out."""

from __future__ import annotations

import math
import re
import types
from pathlib import Path

import pytest
import torch

from livetune.torch import Mode, bind
from support.optimizing import Live

PAGE = (Path(__file__).parents[3] / "docs" / "schedulers.md").read_text()


def test_the_code_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert 2 == len(blocks)
    lr = Live(0.1)
    lr.post_set = lambda callback: lambda: None  # type: ignore[attr-defined]
    names = {"lr": lr, "job": types.SimpleNamespace(step=lambda: None)}
    for block in blocks:
        exec(compile(block, "docs/schedulers.md", "exec"), names)  # noqa: S102 - our own page
    assert pytest.approx(0.05 * (1 + math.cos(math.pi * 0.99))) == names["rate"]
    assert 0.1 == pytest.approx(names["strength"].item())


@pytest.mark.parametrize("mode", Mode)
def test_the_numbers_of_the_table(mode: Mode) -> None:
    row = re.search(rf"^\| `{mode.name}`.*$", PAGE, re.MULTILINE).group()
    expected = [float(cell) for cell in re.findall(r"(?<=\| )[\d.]+(?= \|)", row)]
    lr = Live(0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    binding = bind(optimizer, lr=lr, scheduler=scheduler, mode=mode)
    used = []
    for step in range(76):
        lr.value = 0.02 if step >= 50 else 0.1
        optimizer.step()
        used += binding.effective()
        scheduler.step()
    assert pytest.approx(expected, abs=5e-5) == [used[50], used[75]]
