"""python -m tests.slow.random_signals: sends SIGINT, SIGTERM and SIGHUP to a training run at random moments.

The same command is started again and again in one directory, and each start gets one or two signals. Every
time the exit status, the message and the checkpoints must agree; in the end the run equals one that was left
alone, bit for bit. The seed determines signals and moments.
"""

import json
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from benchmarks.scaling._processes import PHASES
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.cli.exit_codes import KEYBOARD_INTERRUPT, OK, RETRY
from tests.slow.training_process import POLL, Task, Training, checkpoints, compare_runs

PROGRAM = "python -m tests.slow.random_signals"
STATUSES = {"SIGINT": KEYBOARD_INTERRUPT, "SIGTERM": RETRY, "SIGHUP": RETRY}
LIMIT = 60.0  # seconds until the process must have ended; a second Ctrl-C ends it within a few
PATIENCE = 5.0


@dataclass(frozen=True)
class Options:
    """Send signals to training processes at random moments."""

    signals: int = 200
    """Starts that get a signal."""
    steps: int = 3000
    """Training steps."""
    seed: int = 0
    """Seed of signals and moments."""
    out: Path = Path(__file__).with_name("random_signals.json")
    """Result file."""


class Disturbance(NamedTuple):
    """A signal, the phase to send it in, the seconds until then, and those until the same signal again."""

    signal: str
    phase: str
    seconds: float
    again: float | None


def plan(number: int, seed: int) -> list[Disturbance]:
    """Plans each signal in each phase equally often, half of them twice."""
    random = np.random.default_rng(seed)
    cases = [(kind, phase, twice) for kind in STATUSES for phase in PHASES for twice in (False, True)]
    rounds = [random.permutation(len(cases)) for _ in range(0, number, len(cases))]
    chosen = [cases[index] for order in rounds for index in order][:number]
    longest = {"start-up": 6.0, "compiling": 4.0, "steps": 4.0, "checkpoint": 0.2, "evaluation": 3.0}
    return [
        Disturbance(kind, phase, random.uniform(0, longest[phase]), random.uniform(0, 0.6) if twice else None)
        for kind, phase, twice in chosen
    ]


def disturb(task: Task, directory: Path, disturbance: Disturbance) -> dict[str, Any]:
    """Starts the command, sends the signals, and returns what happened, with a list of "failures"."""
    before = checkpoints(directory)
    log = directory.with_name("disturbed")
    training = Training(task, directory, log=log)
    end = time.monotonic() + 120
    while training.running and not _handles_signals(training.process.pid) and time.monotonic() < end:
        time.sleep(POLL)
    while training.running and training.phase != disturbance.phase and time.monotonic() < end:
        if training.phase == "evaluation" and disturbance.phase != "evaluation" and training.at_end:
            break
        time.sleep(POLL)
    time.sleep(disturbance.seconds)
    kind, phase = signal.Signals[disturbance.signal], training.phase
    training.send(kind)
    began = time.monotonic()
    if disturbance.again is not None:
        time.sleep(disturbance.again)
        training.send(kind)
    try:
        status = training.wait(LIMIT)
    except TimeoutError as error:
        return {"status": "hangs", "phase": phase, "failures": [str(error)[:1000]]}
    seconds = time.monotonic() - began
    row = {"status": status, "phase": phase, "seconds": round(seconds, 2)}
    return row | {"failures": _failures(disturbance, training, status, seconds, before)}


def _failures(disturbance, training, status, seconds, before):
    output = training.stderr + training.stdout
    failures = ["a traceback was printed"] if training.traceback or "Exception ignored" in output else []
    if status == OK:
        finished = (training.directory / "metrics.json").exists()
        return failures if finished else [*failures, "status 0 without metrics"]
    if status != STATUSES[disturbance.signal]:
        failures.append(f"status {status} after {disturbance.signal}")
    if len(training.messages) != 1:
        failures.append(f"{len(training.messages)} messages: {training.stderr[-300:]}")
    newest = max(checkpoints(training.directory), default=None)
    for promised in re.findall(r"(?:resumes at|saved at) step ([\d,]+)", " ".join(training.messages)):
        if int(promised.replace(",", "")) > (newest or 0):
            failures.append(f"step {promised} was promised, but the newest checkpoint is {newest}")
    if "nothing was saved yet" in output and newest is not None:
        failures.append(f"checkpoint {newest} was denied")
    if set(before) and (newest or 0) < max(before):
        failures.append(f"checkpoint {max(before)} is gone")
    lost = (training.last_step or 0) - (newest or 0)
    if lost > 0 and "saved at step" in output:
        failures.append(f"{lost} steps are lost")
    if (disturbance.signal, disturbance.again is None) == ("SIGINT", False) and seconds > PATIENCE:
        failures.append(f"a second Ctrl-C took {seconds:.1f} s")
    return failures


def _handles_signals(pid: int) -> bool:
    """Returns whether a process has a handler of its own for SIGTERM, as after the start of Python."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)
    return bool(caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def measure(task: Task, folder: Path, disturbances: Sequence[Disturbance]) -> dict[str, Any]:
    """Disturbs a run and compares it with an undisturbed one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells make background processes ignore them
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    reference, directory = folder / "undisturbed", folder / "run"
    if Training(task, reference).wait() != OK:
        raise RuntimeError("the undisturbed run failed")
    rows, failures = [], []
    for number, disturbance in enumerate(disturbances, start=1):
        row = disturb(task, directory, disturbance)
        rows.append(row)
        failures += [f"{number}, {disturbance}: {failure}" for failure in row["failures"]]
        print(f"{number} of {len(disturbances)}: {disturbance} {row}", file=sys.stderr, flush=True)
        if row["status"] == OK:  # the run is finished: the rest disturbs another one
            failures += compare_runs(directory, reference)["failures"]
            directory = folder / f"run{number}"
    last = Training(task, directory).wait()
    failures += [f"the last start gave status {last}"] if last != OK else []
    failures += compare_runs(directory, reference)["failures"]
    sent = Counter(f"{each.signal}{' twice' if each.again is not None else ''}" for each in disturbances)
    return {
        "signals": len(rows), "sent": dict(sent),
        "statuses": dict(Counter(str(row["status"]) for row in rows)),
        "phases": dict(Counter(row["phase"] for row in rows)),
        "slowest_seconds_to_exit": max(row.get("seconds", LIMIT) for row in rows), "failures": failures,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Writes the result file; returns the exit status."""
    options = tyro.cli(Options, prog=PROGRAM, args=arguments)
    with tempfile.TemporaryDirectory() as folder:
        task = Task(
            Path(folder) / "shapes", Path(folder) / "compiled", options.steps, checkpoint_every=10,
            evaluate_every=50, devices=1, portrait=False,
        )  # fmt: skip
        task.prepare()
        result = measure(task, Path(folder), plan(options.signals, options.seed))
    write_json(options.out, {"steps": options.steps, "seed": options.seed} | result)
    print(json.dumps(result, indent=1))
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
