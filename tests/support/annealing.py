"""Trains under four learning rate schedules at once, a job for each, and tells what the optimizer's steps really used.

The jobs are named onecycle, lambda, cosine (mode SCALE) and rebase (cosine, mode REBASE). Ends when a line comes on its standard
input; tells a line of JSON for each step whose learning rate is another multiple of the schedule than before.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time

import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR

import livetune
import livetune.torch

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
over = threading.Event()
TOTAL = 1_000_000


def wait_for_the_end() -> None:
    sys.stdin.readline()
    over.set()


class Watched(SGD):
    """Notes the learning rate that a step computes with: it is read where SGD reads it."""

    used = 0.0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        self.used = self.param_groups[0]["lr"]
        super().step()


class Training:
    def __init__(self, name: str, mode: str) -> None:
        self.job = livetune.init(name)
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.optimizer = Watched([self.weight], lr=0.1)
        self.lr = self.job.variable("lr", 0.1, min=0.0, max=1.0)
        self.schedule = self.make_schedule(name)
        self.binding = livetune.torch.bind(self.optimizer, lr=self.lr, scheduler=self.schedule, mode=mode)
        self.told = 0.1

    def make_schedule(self, name: str) -> LRScheduler:
        if name == "onecycle":
            return OneCycleLR(self.optimizer, max_lr=0.1, total_steps=TOTAL)
        if name == "lambda":
            return LambdaLR(self.optimizer, lambda step: 0.5 if step else 1.0)
        return CosineAnnealingLR(self.optimizer, TOTAL)

    def step(self) -> None:
        self.weight.grad = torch.ones(2)
        self.optimizer.step()
        if self.lr.value != self.told:
            self.told = self.lr.value
            sys.stdout.write(json.dumps({"job": self.job.name, "lr": self.told, "used": self.optimizer.used}) + "\n")
            sys.stdout.flush()
        self.schedule.step()
        self.job.step()


threading.Thread(target=wait_for_the_end, daemon=True).start()
trainings = [Training(name, "scale") for name in ("onecycle", "lambda", "cosine")] + [Training("rebase", "rebase")]
while not over.is_set():
    for training in trainings:
        training.step()
    time.sleep(0.002)
