"""Play a person who tunes a training job from outside, and check every answer.

Starts a daemon in a fresh folder and `digits_layercollapse.py` as a process of its own, then does everything through
`ltctl`: looks, changes two variables at once, makes mistakes, kills the daemon and starts it again while the job trains
on, collapses the network's head, and stops the job. Exits with 1, naming the expectation, as soon as one is not met.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
JOB = "digits"
WARM_UP_STEPS = 800
"""Steps after which the network has learned what it will: the penalty then has something to spoil."""

LINE = re.compile(r"^step (\d+) loss (\S+) test_acc (\S+) slopes ?(.*)$", re.MULTILINE)


class ExpectationError(Exception):
    """Something did not happen as it must."""


def expect(condition: object, what: str) -> None:
    """Stop the demo if something did not happen as it must."""
    if not condition:
        raise ExpectationError(what)


def wait_for(condition: Callable[[], Any], what: str, seconds: float) -> Any:
    """Return what the condition returns once it is true; stop the demo if that takes too long."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        expect(time.monotonic() < deadline, f"{what} within {seconds:g} s")
        time.sleep(0.05)
    return result


def title(text: str) -> None:
    """Print a heading."""
    print(f"\n\033[1m=== {text}\033[0m" if sys.stdout.isatty() else f"\n=== {text}", flush=True)


class Demo:
    """The daemon, the job, and a person with a shell."""

    def __init__(self, out: Path) -> None:
        self.out = out
        # The path of a Unix socket may have 107 bytes, and the checkout may lie deep.
        self.run_folder = Path(tempfile.mkdtemp(prefix="livetune-demo-"))
        self.endpoint = f"unix:{self.run_folder}/livetuned.sock"
        self.environment = {**os.environ, "LIVETUNE_ENDPOINT": self.endpoint, "PYTHONUNBUFFERED": "1"}
        self.daemon: subprocess.Popen[str] | None = None
        self.job: subprocess.Popen[bytes] | None = None
        self.begun = time.monotonic()
        self.trained = 0.0
        """Test accuracy before the penalty was raised."""

    # -- processes --

    def start_daemon(self) -> None:
        """Start the daemon and wait for its line."""
        with (self.out / "daemon.log").open("a") as log:
            self.daemon = subprocess.Popen(
                [
                    BIN / "livetuned", "serve", "--state", self.out / "state", "--listen", self.endpoint,
                    "--metrics", "127.0.0.1:0",
                ],
                stdout=subprocess.PIPE, stderr=log, text=True, env=self.environment,
            )  # fmt: skip
        stream = self.daemon.stdout
        line = stream.readline().strip() if stream else ""
        expect(line.startswith("livetuned ready"), f"the daemon is ready (see {self.out / 'daemon.log'})")
        print(line, flush=True)

    def start_job(self) -> None:
        """Start the training job as a process of its own."""
        with (self.out / "job.log").open("w") as log:
            self.job = subprocess.Popen(
                [
                    sys.executable, HERE / "digits_layercollapse.py", "--job", JOB, "--out", self.out,
                    "--max-steps", "100000",
                ],
                stdout=log, stderr=subprocess.STDOUT, env=self.environment,
            )  # fmt: skip

    def close(self) -> None:
        """End what was started."""
        for process in (self.job, self.daemon):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        shutil.rmtree(self.run_folder, ignore_errors=True)

    # -- what the person sees --

    def ltctl(self, *arguments: str, exit_code: int = 0, quiet: bool = False) -> str:
        """Type an `ltctl` command, show what it prints, check its exit code, return its standard output."""
        answer = subprocess.run(
            [BIN / "ltctl", *arguments], capture_output=True, text=True, env=self.environment, timeout=60, check=False
        )
        if not quiet:
            shown = " ".join(f"'{word}'" if " " in word else word for word in arguments)
            print(f"$ ltctl {shown}\n{answer.stdout}{answer.stderr}", end="", flush=True)
            if exit_code:
                print(f"  [exit {answer.returncode}]")
        expect(
            answer.returncode == exit_code,
            f"`ltctl {' '.join(arguments)}` exits with {exit_code}, not {answer.returncode}\n{answer.stderr}",
        )
        return answer.stdout

    def ltctl_json(self, *arguments: str) -> Any:
        """Return what a command says as JSON."""
        return json.loads(self.ltctl(*arguments, "-o", "json", quiet=True))

    def progress(self) -> tuple[int, float, list[float]]:
        """Return step, test accuracy and slopes of the job's last evaluation; -1 before the first."""
        expect(self.job is None or self.job.poll() in (None, 0), f"the job lives (see {self.out / 'job.log'})")
        lines = LINE.findall((self.out / "job.log").read_text(errors="replace"))
        if not lines:
            return -1, 0.0, []
        step, _, accuracy, slopes = lines[-1]
        return int(step), float(accuracy), [float(slope) for slope in slopes.split() if slope != "none"]

    def show_progress(self) -> None:
        """Print the job's own last line."""
        step, accuracy, slopes = self.progress()
        tail = f", slopes {' '.join(f'{slope:.2f}' for slope in slopes)}" if slopes else ""
        print(f"  (the job: step {step}, test accuracy {accuracy:.1%}{tail})", flush=True)

    # -- the acts --

    def look(self) -> int:
        """List and describe; return the job's port."""
        title("A training job registers with the daemon; look at it")
        self.start_daemon()
        self.start_job()

        def running() -> Any:
            self.progress()
            return [job for job in self.ltctl_json("jobs") if job["state"] == "running"]

        (job,) = wait_for(running, "the job runs", 60)
        wait_for(lambda: self.progress()[1] >= 0.9, "90 % test accuracy", 60)
        self.ltctl("jobs")
        self.ltctl("describe", JOB)
        self.show_progress()
        return int(job["port"])

    def change(self) -> None:
        """Change two variables in one transaction and wait until the training loop uses them."""
        title("Change two variables at once; the answer says at which step both took effect")
        said = self.ltctl("set", JOB, "lr=0.0005", "weight_decay=0.001", "--reason", "plateau")
        steps = re.findall(r"applied at step (\d+)", said)
        expect(len(steps) == 2 and steps[0] == steps[1], "both variables are applied at one step")
        expect("0.001 → 0.0005" in said or "0.001 -> 0.0005" in said, "the old and the new lr are printed")

    def mistakes(self, port: int) -> None:
        """Everything that must be refused is refused, with its exit code, and changes nothing."""
        title("Mistakes are refused, each with its reason and exit code; nothing is half done")
        before = self.ltctl_json("history", JOB)
        self.ltctl("set", JOB, "lr=nan", exit_code=5)
        self.ltctl("set", JOB, "lr=7", exit_code=5)
        self.ltctl("set", JOB, "lr=abc", exit_code=2)
        self.ltctl("set", JOB, "lr=0.01", "weight_dekay=0", exit_code=3)
        self.ltctl("set", "digit", "lr=0.01", exit_code=3)
        self.ltctl("set", JOB, "lr=0.01", "--if-revision", "1", exit_code=4)
        expect(before == self.ltctl_json("history", JOB), "no refused change is in the history")
        title("The job's own port needs no job name")
        self.ltctl("--port", str(port), "get", "lr")

    def linearise(self) -> None:
        """Raise the penalty: the slopes go to 1 while the network trains."""
        title("Raise the LayerCollapse penalty: the head's activations become linear while the network trains")
        wait_for(lambda: self.progress()[0] >= WARM_UP_STEPS, f"step {WARM_UP_STEPS}", 60)
        self.trained = self.progress()[1]
        self.ltctl("set", JOB, "lc.strength=0.5", "--reason", "make the head collapsible")
        self.show_progress()

    def kill_daemon(self) -> None:
        """Kill the daemon; the job trains on; start it again; nothing is lost."""
        title("kill -9 the daemon: the job trains on, and afterwards nothing is missing")
        before = self.ltctl_json("history", JOB)
        expect(self.daemon is not None, "the daemon runs")
        if self.daemon is not None:
            self.daemon.send_signal(signal.SIGKILL)
            self.daemon.wait()
        print("  (daemon killed)")
        step = self.progress()[0]
        self.ltctl("set", JOB, "lr=0.01", exit_code=7)
        wait_for(lambda: self.progress()[0] > step, "the job trains on without a daemon", 30)
        self.show_progress()
        self.start_daemon()
        expect(before == self.ltctl_json("history", JOB), "the history is what it was")

        def back() -> bool:
            return bool(self.ltctl_json("jobs")[0]["state"] == "running")

        wait_for(back, "the job is back", 20)
        self.ltctl("set", JOB, "lr=0.0003", "--reason", "the daemon is back")

    def collapse(self) -> None:
        """Fire the trigger when the slopes are there."""
        title("Collapse the head, in the middle of the run")
        wait_for(lambda: (slopes := self.progress()[2]) and min(slopes) > 0.955, "slopes near 1", 60)
        self.show_progress()
        self.ltctl("trigger", JOB, "collapse", "--reason", "slopes are at 1", "--wait", "applied")
        step = self.progress()[0]
        wait_for(lambda: self.progress()[0] >= step + 200, "training goes on after the collapse", 30)
        self.show_progress()

    def stop(self) -> None:
        """Stop the job through its trigger."""
        title("Stop the job gracefully")
        self.ltctl("trigger", JOB, "stop", "--reason", "done", "--wait", "applied")
        expect(self.job is not None and self.job.wait(30) == 0, "the job ends by itself with exit code 0")
        wait_for(lambda: self.ltctl_json("jobs", "-a")[0]["state"] == "finished", "the job is finished", 10)
        self.ltctl("jobs", "-a")

    def check_watch(self, watch: subprocess.Popen[bytes], path: Path) -> None:
        """The watch that ran all the while saw every change once, in order, over the daemon's death."""
        watch.send_signal(signal.SIGINT)
        expect(watch.wait(10) == 130, "ltctl watch ends with 130 on Ctrl-C")
        revisions = [json.loads(line)["revision"] for line in path.read_text().splitlines()]
        expect(revisions == sorted(set(revisions)), "the watch saw every revision once and in order")
        changes = {change["revision"] for change in self.ltctl_json("history", JOB)}
        expect(changes <= set(revisions), "the watch missed no change, although the daemon was killed meanwhile")
        print(f"\nltctl watch ran all the while: {len(revisions)} events, none missing, none twice.")

    def table(self) -> None:
        """Print what came of it, and check it."""
        title("What came of it")
        summary = json.loads((self.out / "summary.json").read_text())
        before, after = summary["parameters_before"], summary["parameters_after"]
        accuracy_before = max(self.trained, summary["test_accuracy_before_collapse"])
        accuracy_after = summary["test_accuracy_end"]
        saved = 1 - after / before
        rows = [
            ("", "before", "after", "difference"),
            ("parameters", f"{before:,}", f"{after:,}", f"-{saved:.1%}"),
            (
                "test accuracy", f"{accuracy_before:.2%}", f"{accuracy_after:.2%}",
                f"{round((accuracy_after - accuracy_before) * 100, 2) + 0.0:+.2f} points",
            ),
        ]  # fmt: skip
        print_table(rows)
        print(
            "\nTest accuracy is on images that the training never saw; 'before' is the better one of before the penalty"
        )
        print("was raised and right before the collapse.")
        print("\nThe change log:")
        self.ltctl("history", JOB)
        plot = self.out / "training.png"
        expect(plot.stat().st_size > 10_000, "the plot is there")
        print(f"\nLoss, accuracy and slopes with every change marked: {plot}")
        expect(saved >= 0.70, f"at least 70 % of the parameters are gone, not {saved:.1%}")
        expect(accuracy_after >= accuracy_before - 0.01, "test accuracy is within one point of before")
        print(f"All expectations met in {time.monotonic() - self.begun:.0f} s.")

    def play(self) -> None:
        """Play all acts."""
        port = self.look()
        events = self.out / "watch.jsonl"
        with events.open("w") as file:
            watch = subprocess.Popen(
                [BIN / "ltctl", "watch", JOB, "--after", "0", "-o", "jsonl"],
                stdout=file,
                stderr=subprocess.DEVNULL,
                env=self.environment,
            )
        try:
            self.change()
            self.mistakes(port)
            self.linearise()
            self.kill_daemon()
            self.collapse()
            self.stop()
            self.check_watch(watch, events)
        finally:
            if watch.poll() is None:
                watch.kill()
                watch.wait()
        self.table()


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        label, *numbers = row
        cells = [label.ljust(widths[0]), *(text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True))]
        print("  " + "   ".join(cells).rstrip())


def main() -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(description="A real training job, tuned and collapsed from outside while it runs.")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="emptied and filled [default: demo-out]")
    out = parser.parse_args().out.absolute()
    if out.exists() and not (out / "job.log").exists() and any(out.iterdir()):
        print(f"demo: {out} is not empty and not an earlier demo's", file=sys.stderr)
        return 2
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    demo = Demo(out)
    try:
        demo.play()
    except ExpectationError as error:
        print(f"\nDEMO FAILED: expected that {error}", file=sys.stderr)
        for name in ("daemon.log", "job.log"):
            path = out / name
            tail = path.read_text(errors="replace").splitlines()[-15:] if path.exists() else []
            print(f"--- {path}", *tail, sep="\n", file=sys.stderr)
        return 1
    finally:
        demo.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
