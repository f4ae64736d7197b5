"""python -m tests.slow.faults: kills real training processes and damages their files, again and again.

One run is left alone. Another one with the same settings is killed by SIGKILL and SIGTERM in every phase,
restarted by the same command each time, and its newest checkpoint damaged now and then; in the end
parameters, optimizer state and logged losses are compared bit for bit. Then come single faults
(tests.slow.single_faults): a full disk, unreadable images, a loss that explodes, lost and hanging processes.
The exit status is 1 if anything was not as expected.

Results go into a JSON file that `python -m benchmarks.scaling.report` renders. The seed determines the kills,
how far into a phase they come, and which files are damaged; the rest is timing.
"""

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

from benchmarks._program import RESULTS, check, command_line, versions
from benchmarks.scaling._processes import PHASES
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.cli.exit_codes import OK, RETRY
from mrcnn_jax.cli.main import silence_library_threads
from mrcnn_jax.errors import InputError
from tests.slow import single_faults
from tests.slow.training_process import (
    DAMAGES,
    POLL,
    TIMEOUT,
    Task,
    Training,
    checkpoints,
    compare_runs,
    damage,
    files_by_size,
)

PROGRAM = "python -m tests.slow.faults"
SIGNALS = ("SIGKILL", "SIGTERM")
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
Report = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """Kill training processes, damage their files, and compare the run with an undisturbed one."""

    kills: int = 30
    """Kills of the disturbed run."""
    steps: int = 400
    """Training steps."""
    seed: int = 0
    """Seed of kills and damages."""
    parts: tuple[Literal["kills", "single"], ...] = ("kills", "single")
    """Parts to measure; an existing result file keeps the others."""
    folder: Path | None = None
    """Directory for the runs, where an undisturbed one is reused; by default a temporary one."""
    out: Path = RESULTS / "faults.json"
    """Result file."""


class Kill(NamedTuple):
    """A signal, the phase to send it in, and how far into the phase (0 to 1)."""

    signal: str
    phase: str
    moment: float


def plan_kills(number: int, seed: int) -> list[Kill]:
    """Plans each signal in each phase equally often, in random order and at random moments."""
    random = np.random.default_rng(seed)
    pairs = [(kind, phase) for kind in SIGNALS for phase in PHASES]
    rounds = [random.permutation(len(pairs)) for _ in range(0, number, len(pairs))]
    chosen = [pairs[index] for order in rounds for index in order][:number]
    moments = random.uniform(size=number).tolist()
    return [Kill(*pair, moment) for pair, moment in zip(chosen, moments, strict=True)]


def train_undisturbed(task: Task, directory: Path, report: Report) -> dict[str, Any]:
    """Trains twice, at first compiling; returns seconds, and the longest stay in each phase."""
    seconds = []
    for attempt in ("compiling", "warm"):
        shutil.rmtree(directory, ignore_errors=True)
        training, longest = Training(task, directory), dict.fromkeys(PHASES, 0.0)
        phase, since = PHASES[0], time.monotonic()
        while training.running:
            now, current = time.monotonic(), training.phase
            longest[phase] = max(longest[phase], now - since)
            if current != phase:
                phase, since = current, now
            time.sleep(POLL)
        if training.wait() != OK:
            raise InputError(f"the undisturbed run failed: {training.stderr[-2000:]}")
        seconds.append(round(time.monotonic() - training.begin, 1))
        report(f"undisturbed, {attempt}: {task.steps} steps in {seconds[-1]} s")
    phases = {name: round(value, 2) for name, value in longest.items()}
    return {"seconds_compiling": seconds[0], "seconds": seconds[1], "phases": phases}


def train_disturbed(
    task: Task, directory: Path, kills: Sequence[Kill], phases: dict[str, float], report: Report,
    damages: Sequence[str] = DAMAGES,
) -> dict[str, Any]:  # fmt: skip
    """Trains to the end through all kills; ``phases`` holds the seconds each phase takes.

    Returns:
        Kills, damages and steps; under "failures" a sentence for everything that was not as expected.
    """
    begin, steps_made, intact = time.monotonic(), 0, []  # intact: checkpoints that a start may resume from
    rows, damaged, failures = [], [], []
    # kills after which the damages are due
    due = [(len(kills) * turn // (len(damages) + 1), how) for turn, how in enumerate(damages, start=1)]
    for number, kill in enumerate([*kills, None], start=1):
        training = Training(task, directory, log=directory.parent / "logs" / f"start_{number:02}")
        row = _kill(training, kill, phases) if kill else {"status": training.wait()}
        started = training.resumed_at is not None or training.last_step is not None
        if started and training.resumed_at != (intact[-1] if intact else None):
            failures.append(f"start {number} began at {training.resumed_at}, intact were {intact}")
        if damaged and damaged[-1]["resumed_at"] is None:
            failures += _check_warning(damaged[-1], training, started)
        steps_made += training.steps_made
        unnoticed = damaged[-1]["step"] if damaged and damaged[-1]["resumed_at"] is None else None
        intact = [step for step in checkpoints(directory) if step != unnoticed]
        if not kill or row["status"] == OK:
            break
        newest = intact[-1] if intact else None
        row |= {"resumed_at": training.resumed_at, "last_step": training.last_step, "checkpoint": newest}
        row["steps_lost"] = training.last_step - (newest or 0) if training.last_step else 0
        failures += [f"start {number}: {failure}" for failure in _kill_failures(row, training)]
        rows.append(row)
        report(f"kill {number} of {len(kills)}: {row}")
        if due and number >= due[0][0] and len(intact) > 1 and unnoticed is None:
            damaged.append(_damage_checkpoint(directory, intact.pop(), due.pop(0)[1]))
            report(f"  {damaged[-1]}")
    if len(rows) < len(kills):
        failures.append(f"the run was over after {len(rows)} kills of {len(kills)}")
    if row["status"] != OK:
        failures.append(f"the last start ended with status {row['status']}: {training.stderr[-500:]}")
    failures += [f"{len(due)} checkpoints were not damaged, as there were never two"] if due else []
    return {
        "kills": rows, "damaged": damaged, "starts": number, "seconds": round(time.monotonic() - begin, 1),
        "steps_made": steps_made, "steps_needed": task.steps, "failures": failures,
    }  # fmt: skip


def _damage_checkpoint(directory, step, how):
    """Damages the largest file of a checkpoint, which holds arrays."""
    file = files_by_size(directory / "checkpoints" / str(step))[0]
    name, size = str(file.relative_to(directory / "checkpoints")), file.stat().st_size
    damage(file, how)
    return {"file": name, "bytes": size, "how": how, "step": step, "warned": False, "resumed_at": None}


def _check_warning(damaged, training, started):
    """Records whether a start warned of a damage, and returns a failure if none did before training."""
    warning = rf"Warning: checkpoint \S*/{damaged['step']} "
    damaged["warned"] |= re.search(warning, training.stdout) is not None
    damaged["resumed_at"] = training.resumed_at
    missing = started and not damaged["warned"]
    return [f"no warning of the damaged checkpoint {damaged['step']}"] if missing else []


def _kill(training, kill, phases):
    """Waits for phase and moment of a kill, at most until all steps are done, and sends its signal."""
    deadline = time.monotonic() + TIMEOUT

    def can_wait():
        return training.running and not training.at_end and time.monotonic() < deadline

    while training.phase != kill.phase and can_wait():
        time.sleep(POLL)
    if kill.phase == "steps":  # including checkpoints and evaluations between them
        target = (training.last_step or 0) + round(kill.moment * 2 * training.task.checkpoint_every)
        while (training.last_step or 0) < target and can_wait():
            time.sleep(POLL)
        time.sleep(0.05 * kill.moment)
    else:
        end = time.monotonic() + 0.9 * kill.moment * phases[kill.phase]
        while training.phase == kill.phase and training.running and time.monotonic() < end:
            time.sleep(POLL)
    row = {"signal": kill.signal, "planned": kill.phase, "phase": training.phase}
    before = time.monotonic()
    training.send(signal.Signals[kill.signal])
    return row | {"status": training.wait(), "seconds_to_exit": round(time.monotonic() - before, 2)}


def _kill_failures(row, training):
    failures = []
    if row["signal"] == "SIGKILL":
        # a checkpoint that is being written is lost too
        limit = training.task.checkpoint_every * (2 if row["phase"] == "checkpoint" else 1)
        if row["steps_lost"] > limit:
            failures.append(f"SIGKILL cost {row['steps_lost']} steps, more than {limit}")
    else:
        # before Python runs our first instruction, the signal has its default effect
        if row["status"] not in ((RETRY, -signal.SIGTERM) if row["phase"] == "start-up" else (RETRY,)):
            failures.append(f"SIGTERM ({row['phase']}) gave status {row['status']}")
        if row["steps_lost"]:
            failures.append(f"SIGTERM cost {row['steps_lost']} steps")
    if training.traceback:
        failures.append(f"a traceback was printed: {(training.stderr or training.stdout)[-500:]}")
    return failures


def measure(options: Options, folder: Path, report: Report) -> dict[str, Any]:
    """Measures the chosen parts; "failures" of a part has a sentence for all that was not as expected."""
    settings = {"steps": options.steps, "checkpoint_every": 10, "evaluate_every": 40}
    task = Task(folder / "shapes", folder / "compiled", **settings)
    task.prepare()
    reference, notes, parts = folder / "undisturbed", folder / "undisturbed.json", {}
    if not notes.exists():
        notes.write_text(json.dumps(train_undisturbed(task, reference, report)))
    fields = ("steps", "checkpoint_every", "evaluate_every", "devices", "images_per_device")
    about = {
        "command": command_line(PROGRAM, options, leave=("parts",)), "seed": options.seed,
        "versions": versions(*PACKAGES),
        "hardware": f"{task.devices} virtual CPU devices, {os.cpu_count()} CPU cores",
        "run": {name: getattr(task, name) for name in fields}, "undisturbed": json.loads(notes.read_text()),
    }  # fmt: skip
    if "kills" in options.parts:
        kills, phases = plan_kills(options.kills, options.seed), about["undisturbed"]["phases"]
        result = train_disturbed(task, folder / "disturbed", kills, phases, report)
        compared = compare_runs(folder / "disturbed", reference)
        failures = result["failures"] + compared["failures"]
        parts["kills"] = about | result | {"comparison": compared, "failures": failures}
    if "single" in options.parts:
        rows = single_faults.measure(task, reference, folder / "single", report)
        failures = [f"{row['fault']}: {failure}" for row in rows for failure in row["failures"]]
        parts["single"] = about | {"rows": rows, "failures": failures}
    return parts


def main(arguments: list[str] | None = None) -> int:
    """Writes the result file; returns the exit status."""
    options = tyro.cli(Options, prog=PROGRAM, args=arguments, description=Options.__doc__)
    silence_library_threads()
    try:
        check(options, kills=0, steps=50, seed=0)
        with tempfile.TemporaryDirectory() as temporary:
            folder = (options.folder or Path(temporary)).absolute()
            result = measure(options, folder, lambda line: print(line, file=sys.stderr, flush=True))
        before = json.loads(options.out.read_text()) if options.out.exists() else {}
        write_json(options.out, before | result)
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    failures = [failure for part in result.values() for failure in part["failures"]]
    for failure in failures:
        print(f"{PROGRAM}: {failure}", file=sys.stderr)
    print(f"Wrote {options.out}: {len(failures)} failures.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
