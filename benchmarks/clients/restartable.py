"""A training program that can be tuned live, and stopped and restarted: `restartable.py --help`.

CIFAR-10 or synthetic images, worker processes that load and augment, AdamW under a schedule. Told `stop` on standard
input it finishes its step, writes all that a restart needs and ends; `digest` says what its model and optimizer have
become. Says lines of JSON with monotonic times in nanoseconds: each phase of its start and end, and each step.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import random
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.io import decode_jpeg


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps({**facts, "at": time.monotonic_ns()}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":  # not in spawned workers
    say(phase="imports")

import livetune  # noqa: E402 - timed by itself
from livetune.torch import Mode, bind  # noqa: E402

PAD = 4
SYNTHETIC = 4_096
SEED = 0

Place = tuple[int, int]
"""Epoch, and index of an image."""


class Order(Sampler[Place]):
    """Endless shuffled epochs, from any place on: a restart skips indices, and loads nothing for it.

    Args:
        length: Images in an epoch.
        consumed: Images that were trained on before.
    """

    def __init__(self, length: int, consumed: int) -> None:
        self._length = length
        self._consumed = consumed

    def __iter__(self) -> Iterator[Place]:
        epoch, skipped = divmod(self._consumed, self._length)
        while True:
            order = np.random.default_rng((SEED, epoch)).permutation(self._length)
            yield from ((epoch, int(index)) for index in order[skipped:])
            epoch, skipped = epoch + 1, 0


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Images of 32 x 32, shifted and mirrored by chance. Chance depends on epoch and image only, not on a worker."""

    def __init__(self, folder: Path | None) -> None:
        if folder is None:
            generator = np.random.default_rng(SEED)
            self._pixels = torch.from_numpy(generator.integers(0, 256, (SYNTHETIC, 3, 32, 32), np.uint8))
            self._labels = generator.integers(0, 10, SYNTHETIC)
            self._jpegs = None
        else:
            with np.load(folder / "cifar10_train.npz") as stored:
                self._jpegs, self._offsets, self._labels = stored["jpegs"], stored["offsets"], stored["labels"]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, place: Place) -> tuple[torch.Tensor, int]:
        epoch, index = place
        if self._jpegs is None:
            pixels = self._pixels[index]
        else:
            pixels = decode_jpeg(torch.from_numpy(self._jpegs[self._offsets[index] : self._offsets[index + 1]]))
        chance = np.random.default_rng((SEED, epoch, index))
        down, right = chance.integers(0, 2 * PAD + 1, 2)
        padded = nn.functional.pad(pixels, (PAD, PAD, PAD, PAD))[:, down : down + 32, right : right + 32]
        image = padded.flip(2) if chance.random() < 0.5 else padded
        return image.float().div_(127.5).sub_(1), int(self._labels[index])


def schedule(step: int) -> float:
    """A short warm-up, then a cosine over 100,000 steps; as a share of the peak."""
    return min(1.0, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / 100_000)))


def arguments() -> argparse.Namespace:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--job", required=True)
    flags.add_argument("--checkpoint", type=Path, required=True, help="written at the end, read with --resume")
    flags.add_argument("--resume", action="store_true")
    flags.add_argument("--data", type=Path, help="folder of cifar10_train.npz; synthetic images without it")
    flags.add_argument("--model", required=True, help="one of torchvision's")
    flags.add_argument("--device", required=True)
    flags.add_argument("--batch", type=int, required=True)
    flags.add_argument("--workers", type=int, required=True)
    flags.add_argument("--threads", type=int, required=True, help="of a step on a CPU")
    flags.add_argument("--lr", type=float, required=True, help="the peak of the schedule")
    flags.add_argument("--until", type=int, default=sys.maxsize, help="wait for a line after this step")
    return flags.parse_args()


class Training:
    """Model, optimizer, schedule and loader, and what a restart needs of them."""

    def __init__(self, told: argparse.Namespace) -> None:
        torch.manual_seed(SEED)
        self.told = told
        self.steps = 0
        self.model = torchvision.models.get_model(told.model, num_classes=10).to(told.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=told.lr)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule)
        self._dice: dict[str, Any] = {}
        if told.resume:
            self._load()

    def _load(self) -> None:
        # Our own file: it has the states of random generators, which are no tensors.
        saved = torch.load(self.told.checkpoint, map_location=self.told.device, weights_only=False)
        self.steps = saved["steps"]
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        self._dice = saved["dice"]
        # The change that the restart is for: the schedule on another peak.
        self.scheduler.base_lrs = [self.told.lr]
        for group in self.optimizer.param_groups:
            group["initial_lr"] = self.told.lr
            group["lr"] = self.told.lr * schedule(self.scheduler.last_epoch)

    def save(self) -> int:
        """Writes the checkpoint. Returns its size in bytes."""
        dice = {"torch": torch.get_rng_state(), "python": random.getstate()}
        if self.told.device.startswith("cuda"):
            dice["cuda"] = torch.cuda.get_rng_state(self.told.device)
        state = {
            "steps": self.steps,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "dice": dice,
        }
        part = self.told.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.told.checkpoint)
        return self.told.checkpoint.stat().st_size

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Starts the workers, at the place that was reached."""
        told = self.told
        images = Images(told.data)
        order = Order(len(images), self.steps * told.batch)
        pinned = told.device.startswith("cuda")
        batches = iter(DataLoader(images, told.batch, sampler=order, num_workers=told.workers, pin_memory=pinned))
        # Not before: the loader draws a number of its own when it begins.
        if self._dice:
            torch.set_rng_state(self._dice["torch"].cpu())
            random.setstate(self._dice["python"])
            if "cuda" in self._dice:
                torch.cuda.set_rng_state(self._dice["cuda"].cpu(), told.device)
        return batches

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        images, labels = (part.to(self.told.device, non_blocking=True) for part in (images, labels))
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(images), labels).backward()
        self.optimizer.step()
        self.scheduler.step()
        self.steps += 1
        if self.told.device.startswith("cuda"):
            torch.cuda.synchronize()  # a step is over when it is computed

    def digest(self) -> str:
        """A hash of all parameters, buffers and moments, bit by bit."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()["state"]}
        sha = hashlib.sha256()

        def take(part: Any) -> None:
            if isinstance(part, dict):
                for key in sorted(part, key=str):
                    sha.update(str(key).encode())
                    take(part[key])
            else:
                buffer = io.BytesIO()
                np.save(buffer, part.cpu().numpy() if isinstance(part, torch.Tensor) else np.asarray(part))
                sha.update(buffer.getvalue())

        take(state)
        return sha.hexdigest()


def told_line(*, wait: bool) -> str:
    """Returns what was said on standard input; "" if nothing was. Not by a thread: workers are forked."""
    if wait or select.select([sys.stdin], [], [], 0)[0]:
        # One byte after the other: what a buffer holds is not seen by select.
        return b"".join(iter(lambda: os.read(0, 1), b"\n")).decode()
    return ""


def main() -> None:
    told = arguments()
    torch.set_num_threads(told.threads)
    training = Training(told)
    say(phase="model and state")
    job = livetune.init(told.job)
    lr = job.variable("lr", told.lr, min=1e-7, max=1.0, scale="log")
    bind(training.optimizer, lr=lr, scheduler=training.scheduler, mode=Mode.REBASE)
    say(phase="livetune")
    batches = training.batches()
    for number, (images, labels) in enumerate(batches):
        if number == 0:
            say(phase="first batch")
        training.step(images, labels)
        job.step(training.steps)
        say(step=training.steps, lr=lr.value)
        while line := told_line(wait=training.steps >= told.until):
            if line == "digest":
                say(digest=training.digest(), after=training.steps)
            elif line == "stop":
                say(phase="stopping")
                say(phase="checkpoint", bytes=training.save())
                job.finish()
                return


if __name__ == "__main__":
    main()
