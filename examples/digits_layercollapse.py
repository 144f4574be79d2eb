"""Train a small network on handwritten digits, steer it while it trains, and take most of its parameters away.

Needs scikit-learn, torch, matplotlib and tqdm; downloads nothing. Trains with or without a daemon. From another
terminal:

    ltctl set digits lr=0.0005 lc.strength=0.5 --reason "time to collapse"
    ltctl trigger digits collapse
    ltctl trigger digits stop

Leaves `summary.json` and `training.png` in the output folder, and `checkpoint.pt` whenever `save` is fired. Prints one
line per evaluation: `step 1200 loss 0.031 test_acc 0.984 slopes 0.97 0.98`.
"""

import argparse
import itertools
import json
import os
import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import livetune
from livetune.integrations.layercollapse import LiveLayerCollapse
from livetune.torch import bind

mpl.use("Agg")
from matplotlib import pyplot as plt

EVALUATE_EVERY = 100
"""Steps between evaluations on the test set, which is measured and never learned from."""
LINE_EVERY = 200
"""Steps between progress lines where there is no terminal to draw a bar on."""
SLOPE_LR = 5e-3
"""Learning rate of the slopes: Adam moves them by about this much per step."""


@dataclass(frozen=True)
class Data:
    """Images (n, 1, 8, 8) in 0..1 and labels (n,) of the two halves of the split."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class Event:
    """Something that was done from outside, as the job saw it."""

    step: int
    name: str
    old: float | None = None
    new: float | None = None

    @property
    def label(self) -> str:
        """How the plot names it."""
        return self.name if self.new is None else f"{self.name} {self.old:g} → {self.new:g}"


@dataclass
class History:
    """What the plot and the summary are made of."""

    losses: list[tuple[int, float]] = field(default_factory=list)
    accuracies: list[tuple[int, float]] = field(default_factory=list)
    slopes: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)


def load_data(seed: int) -> Data:
    """Split scikit-learn's 1797 digits 3:1, every digit in proportion."""
    digits = load_digits()
    train_x, test_x, train_y, test_y = train_test_split(
        digits.images, digits.target, test_size=0.25, stratify=digits.target, random_state=seed
    )
    images = [torch.tensor(x, dtype=torch.float32).unsqueeze(1) / 16.0 for x in (train_x, test_x)]
    labels = [torch.tensor(y, dtype=torch.int64) for y in (train_y, test_y)]
    return Data(images[0], labels[0], images[1], labels[1])


def build_network() -> nn.Sequential:
    """Two convolutions and a three-layer classifier as in torchvision's VGG, which holds 98 % of the parameters."""
    features = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(True),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2),
    )  # fmt: skip
    classifier = nn.Sequential(
        nn.Linear(32 * 4 * 4, 256), nn.ReLU(True), nn.Dropout(0.3),
        nn.Linear(256, 256), nn.ReLU(True), nn.Dropout(0.3),
        nn.Linear(256, 10),
    )  # fmt: skip
    return nn.Sequential(OrderedDict(features=features, flatten=nn.Flatten(), classifier=classifier))


def batches(data: Data, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled training batches for ever."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(data.train_y), generator=generator)
        for start in range(0, len(order), size):
            index = order[start : start + size]
            yield data.train_x[index], data.train_y[index]


@torch.no_grad()
def test_accuracy(model: nn.Module, data: Data) -> float:
    """Return the share of test images that are classified right, 0..1."""
    model.eval()
    correct = model(data.test_x).argmax(1) == data.test_y
    model.train()
    return float(correct.float().mean())


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write a checkpoint so that a reader sees the old one or the new one, never a part."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def train(job: Any, options: argparse.Namespace) -> dict[str, object]:
    """Train until `stop` is fired or the steps are used up; return the summary."""
    torch.manual_seed(options.seed)
    # A network this small gains nothing from more, and loses much where the cores are shared.
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    data = load_data(options.seed)
    model = build_network()
    parameters = sum(p.numel() for p in model.parameters())

    lr = job.variable("lr", 1e-3, min=1e-6, max=1.0, scale="log", doc="Learning rate of the network.")
    weight_decay = job.variable("weight_decay", 1e-4, min=0.0, max=1.0, doc="Decoupled weight decay (AdamW).")
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr.value, weight_decay=weight_decay.value)
    # Bound before the slopes come in as a group of their own: theirs is another rate.
    bind(optimizer, lr=lr, weight_decay=weight_decay)
    live = LiveLayerCollapse(job, model, optimizer, example_inputs=data.train_x[:256], slope_lr=SLOPE_LR)
    save = job.trigger("save", doc="Write a checkpoint.")
    stop = job.trigger("stop", doc="Evaluate, write summary and plot, and end.")

    watched = {"lr": lr, "weight_decay": weight_decay, **live.variables}
    values = {name: variable.value for name, variable in watched.items()}
    history = History()
    collapses: list[dict[str, object]] = []
    recent: list[float] = []
    drawn = sys.stderr.isatty()
    with tqdm(total=options.max_steps, unit="step", disable=not drawn, file=sys.stderr) as bar:
        stream = batches(data, options.batch_size, options.seed)
        for step, (x, y) in zip(range(1, options.max_steps + 1), stream, strict=False):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            (loss + live.penalty()).backward()
            optimizer.step()
            job.step()

            for name, variable in watched.items():
                if variable.value != values[name]:
                    history.events.append(Event(step, name, values[name], variable.value))
                    values[name] = variable.value
            if live.requested():
                remember_slopes(step, live, history)
                before = test_accuracy(model, data)
                report = live.collapse()
                if report is not None:
                    after = test_accuracy(model, data)
                    history.events.append(Event(step, f"collapse {len(report.collapsed)} of {len(report.pairs)}"))
                    outcome = {"step": step, "accuracy_before": before, "accuracy_after": after}
                    collapses.append({**outcome, "collapsed": len(report.collapsed), "report": report.to_dict()})
                    say(f"collapse at step {step}: test_acc {before:.4f} -> {after:.4f}\n{report}")
                else:
                    history.events.append(Event(step, "collapse refused"))
                    say(f"collapse refused at step {step}: {live.refusal}")
            if save():
                save_checkpoint(options.out / "checkpoint.pt", model, optimizer, step)
                history.events.append(Event(step, "save"))
                say(f"saved at step {step}: {options.out / 'checkpoint.pt'}")
            recent.append(loss.item())
            if step % EVALUATE_EVERY == 0 or step == options.max_steps:
                status = evaluate(step, sum(recent) / len(recent), model, data, live, history)
                say(status)
                recent.clear()
                figures = status.split(" ", 2)[2]
                bar.set_postfix_str(figures, refresh=False)
                if not drawn and step % LINE_EVERY == 0:
                    print(f"[{step}/{options.max_steps}] {figures}", file=sys.stderr, flush=True)
            bar.update()
            if stop():
                history.events.append(Event(step, "stop"))
                break

    accuracy = test_accuracy(model, data)
    history.accuracies.append((step, accuracy))
    say(f"end at step {step}: test_acc {accuracy:.4f}")
    remaining = sum(p.numel() for p in model.parameters()) - len(live.prepared.pairs)
    done = [collapse for collapse in collapses if collapse["collapsed"]]
    summary: dict[str, object] = {
        "job": options.job,
        "seed": options.seed,
        "steps": step,
        "parameters_before": parameters,
        "parameters_after": remaining,
        "test_accuracy_before_collapse": done[0]["accuracy_before"] if done else None,
        "test_accuracy_after_collapse": done[-1]["accuracy_after"] if done else None,
        "test_accuracy_end": accuracy,
        "collapse_step": done[0]["step"] if done else None,
        "collapses": collapses,
        "changes": [asdict(event) for event in history.events],
    }
    (options.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    plot(history, options.out / "training.png", f"{options.job}: {parameters:,} → {remaining:,} parameters")
    return summary


def evaluate(step: int, loss: float, model: nn.Module, data: Data, live: LiveLayerCollapse, history: History) -> str:
    """Measure, remember, and return the line that says so; a driver parses it."""
    accuracy = test_accuracy(model, data)
    slopes = remember_slopes(step, live, history)
    history.losses.append((step, loss))
    history.accuracies.append((step, accuracy))
    listed = " ".join(f"{slope:.3f}" for slope in slopes.values()) or "none"
    return f"step {step} loss {loss:.4f} test_acc {accuracy:.4f} slopes {listed}"


def remember_slopes(step: int, live: LiveLayerCollapse, history: History) -> dict[str, float]:
    """Note the slope of every remaining pair for the plot, and return them."""
    slopes = live.prepared.slopes()
    for name, slope in slopes.items():
        history.slopes.setdefault(name, []).append((step, slope))
    return slopes


def say(line: str) -> None:
    """Print a line on stdout without tearing the progress bar."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def plot(history: History, path: Path, title: str) -> None:
    """Draw loss, test accuracy and slopes over the steps, every event marked."""
    figure, (strip, *panels) = plt.subplots(
        4, 1, sharex=True, figsize=(11, 9), height_ratios=(1.1, 2, 2, 2), layout="constrained"
    )
    loss, accuracy, slopes = panels
    loss.semilogy(*_xy(history.losses), color="tab:blue")
    loss.set_ylabel(f"training loss\n(mean of {EVALUATE_EVERY} steps)")
    accuracy.plot(*_xy([(step, 100 * value) for step, value in history.accuracies]), color="tab:green")
    accuracy.set_ylabel("test accuracy (%)")
    for (name, points), style in zip(history.slopes.items(), itertools.cycle(("-", "--", ":"))):
        slopes.plot(*_xy(points), style, label=name)
    slopes.set_ylabel("slope a (1 = linear)")
    slopes.set_ylim(-0.05, 1.05)
    slopes.set_xlabel("step")
    if history.slopes:
        slopes.legend(loc="center left", title="pair")
    for axes in panels:
        axes.grid(alpha=0.3)
    # Room on the right for the label of what happened last.
    loss.set_xlim(0, 1.12 * history.accuracies[-1][0])
    figure.suptitle(title)
    mark(strip, panels, history.events)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def mark(strip: Any, panels: list[Any], events: list[Event]) -> None:
    """Draw a line per step with events, and its label in the strip on top, in the first row where it has room."""
    strip.axis("off")
    strip.set_ylim(0, 1)
    by_step: dict[int, list[str]] = {}
    for event in events:
        by_step.setdefault(event.step, []).append(event.label)
    strip.figure.canvas.draw()
    renderer = strip.figure.canvas.get_renderer()
    placed: list[tuple[float, int]] = []
    # From right to left, each label above all that begin within its width: then no line crosses a label.
    for step, labels in sorted(by_step.items(), reverse=True):
        for axes in panels:
            axes.axvline(step, color="gray", linestyle="--", linewidth=0.9)
        text = strip.text(step, 0, " " + ", ".join(labels), fontsize=8, va="bottom")
        box = text.get_window_extent(renderer)
        row = 1 + max((row for left, row in placed if left < box.x1 + 8), default=-1)
        placed.append((box.x0, row))
        text.set_y(row)
        strip.plot([step, step], [0, row + 0.8], color="gray", linestyle="--", linewidth=0.9)
    strip.set_ylim(0, max([4, *(row + 1 for _, row in placed)]))


def _xy(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", default="digits", help="name of the job, as ltctl knows it (%(default)s)")
    parser.add_argument("--max-steps", type=int, default=20_000, help="steps after which to end (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of split, weights and batches (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/digits"), help="folder for results (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step (%(default)s)")
    options = parser.parse_args()
    if options.max_steps < 1 or options.batch_size < 1:
        parser.error(f"--max-steps and --batch-size must be at least 1, got {options.max_steps}, {options.batch_size}")
    with livetune.init(options.job) as job:
        train(job, options)


if __name__ == "__main__":
    main()
