"""python -m tests.slow.faults [--kills N] [--seed N] [--out FILE]: real training processes are killed, and must end as if nothing had been.

One run is left alone. Another one, of the same settings, is killed by SIGKILL and SIGTERM in every phase of its life, each time started again by
the same command, its newest checkpoint damaged now and then; in the end parameters, optimiser state and logged losses are compared with those of
the first, bit for bit. Then single faults (tests.slow.single_faults): a full disk, unreadable images, a loss that explodes, lost and hanging
processes. The figures go into a JSON file, which `python -m benchmarks.scaling.report` renders. The exit status is 1 if anything was not as it
should be.

Which kills, in which order, how far into a phase and what is damaged follows from the seed; the rest is timing.
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
from paths import REPOSITORY

from benchmarks._program import check, command_line, versions
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.cli.main import silence_library_threads
from mrcnn_jax.errors import InputError
from tests.slow import single_faults
from tests.slow.training_process import (
    AGAIN,
    DAMAGES,
    FINISHED,
    PATIENCE,
    PHASES,
    POLL,
    Task,
    Training,
    checkpoints,
    comparison,
    damage,
    files_by_size,
)

PROGRAM = "python -m tests.slow.faults"
RESULTS = REPOSITORY / "benchmarks" / "results"
SIGNALS = ("SIGKILL", "SIGTERM")
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """Kill training processes, damage what they write, and see whether the run ends as an undisturbed one does."""

    kills: int = 30
    """Of the disturbed run."""
    steps: int = 400
    """Of the run."""
    seed: int = 0
    """Of what is done to the run when."""
    parts: tuple[Literal["kills", "single"], ...] = ("kills", "single")
    """What is done; of a part that is left out, an existing result file keeps the figures."""
    faults: tuple[str, ...] = tuple(fault.__name__ for fault in single_faults.FAULTS)
    """Which single faults; of those left out, too, an existing result file keeps the figures."""
    folder: Path | None = None
    """Where the runs are kept, and an undisturbed one is found again; by default a temporary folder."""
    out: Path = RESULTS / "faults.json"


class Kill(NamedTuple):
    """Which signal, in which phase, and how far into it (0 to 1)."""

    signal: str
    phase: str
    moment: float


def plan_kills(number: int, seed: int) -> list[Kill]:
    """Each signal in each phase equally often, as far as that goes, in random order and at random moments."""
    random = np.random.default_rng(seed)
    pairs = [(kind, phase) for kind in SIGNALS for phase in PHASES]
    chosen = [pairs[index] for start in range(0, number, len(pairs)) for index in random.permutation(len(pairs))[: number - start]]
    return [Kill(*pair, float(moment)) for pair, moment in zip(chosen, random.uniform(size=number), strict=True)]


# ---------------------------------------------------------------- the undisturbed run


def undisturbed(task: Task, directory: Path, say: Say) -> dict[str, Any]:
    """Trains without interruption. Returns seconds, and ``phases``: how long each took at a stretch, at most, of a start that need not compile."""
    seconds = []
    for attempt in ("compiling", "warm"):  # the second is what later starts are like
        shutil.rmtree(directory, ignore_errors=True)
        training, longest, phase, since = Training(task, directory), dict.fromkeys(PHASES, 0.0), PHASES[0], time.monotonic()
        while training.running:
            now, current = time.monotonic(), training.phase(task)
            longest[phase] = max(longest[phase], now - since)
            if current != phase:
                phase, since = current, now
            time.sleep(POLL)
        if training.wait() != FINISHED:
            raise InputError(f"the undisturbed run failed, so there is nothing to compare with: {training.stderr[-2000:]}")
        seconds.append(round(time.monotonic() - training.begin, 1))
        say(f"undisturbed, {attempt}: {task.steps} steps in {seconds[-1]} s")
    return {"seconds_compiling": seconds[0], "seconds": seconds[1], "phases": {name: round(value, 2) for name, value in longest.items()}}


# ---------------------------------------------------------------- the disturbed run


def disturbed(
    task: Task, directory: Path, kills: Sequence[Kill], phases: dict[str, float], say: Say, damages: Sequence[str] = DAMAGES
) -> dict[str, Any]:
    """Trains to the end through all these kills; ``phases`` says how long each lasts.

    Returns what was done and what came of it, and under "failures" what was not as it should be.
    """
    begin, steps_made, good = time.monotonic(), 0, []  # checkpoints that a start may go on from
    rows, damaged, failures = [], [], []
    waiting = [(len(kills) * turn // (len(damages) + 1), how) for turn, how in enumerate(damages, start=1)]  # after so many kills
    for number, kill in enumerate([*kills, None], start=1):
        training = Training(task, directory, log=directory.parent / "logs" / f"start_{number:02}")
        row = _kill(training, task, kill, phases) if kill else {"status": training.wait()}
        begun = training.resumed_at is not None or training.last_step is not None
        if begun and training.resumed_at != (good[-1] if good else None):
            failures.append(f"start {number} began at {training.resumed_at}, but the good checkpoints were {good}")
        if damaged and damaged[-1]["resumed_at"] is None:
            failures += _look_for_warning(damaged[-1], training, begun)
        steps_made += training.steps_made
        unnoticed = damaged[-1]["step"] if damaged and damaged[-1]["resumed_at"] is None else None
        good = [step for step in checkpoints(directory) if step != unnoticed]
        if not kill or row["status"] == FINISHED:
            break
        row |= {"resumed_at": training.resumed_at, "last_step": training.last_step, "checkpoint": good[-1] if good else None}
        row["steps_lost"] = training.last_step - (good[-1] if good else 0) if training.last_step else 0
        failures += [f"start {number}: {failure}" for failure in _kill_failures(row, task, training)]
        rows.append(row)
        what = f"{row['signal']}, {row['phase']}, step {training.last_step or training.resumed_at or 0}"
        say(f"kill {number} of {len(kills)}: {what}: exit {row['status']} after {row['seconds_to_exit']:.1f} s, {row['steps_lost']} steps lost")
        if waiting and number >= waiting[0][0] and len(good) > 1 and unnoticed is None:
            damaged.append(_damage(directory, good.pop(), waiting.pop(0)[1]))
            say(f"  {damaged[-1]['file']}: {damaged[-1]['how']}")
    if len(rows) < len(kills):
        failures.append(f"the run was over after {len(rows)} kills of {len(kills)}")
    if row["status"] != FINISHED:
        failures.append(f"the last start ended with status {row['status']}: {training.stderr[-500:]}")
    failures += [f"{len(waiting)} checkpoints were not damaged, for there never were two"] if waiting else []
    return {
        "kills": rows, "damaged": damaged, "starts": number, "seconds": round(time.monotonic() - begin, 1),
        "steps_made": steps_made, "steps_needed": task.steps, "failures": failures,
    }  # fmt: skip


def _damage(directory, step, how):
    """Damages the largest file of a checkpoint, which holds arrays."""
    file = files_by_size(directory / "checkpoints" / str(step))[0]
    found = {"file": str(file.relative_to(directory / "checkpoints")), "bytes": file.stat().st_size, "how": how, "step": step}
    damage(file, how)
    return found | {"warned": False, "resumed_at": None}


def _look_for_warning(damaged, training, begun):
    """Completes a damage's line: the start that comes so far must have warned, or one before it."""
    damaged["warned"] |= re.search(rf"Warning: checkpoint \S*/{damaged['step']} ", training.stdout) is not None
    damaged["resumed_at"] = training.resumed_at
    return [f"nothing was said of the damaged checkpoint {damaged['step']}"] if begun and not damaged["warned"] else []


def _kill(training, task, kill, phases):
    """Waits for the phase, then for the moment, and sends the signal: at the latest when the phase is over, or the last evaluation has come."""
    deadline = time.monotonic() + PATIENCE
    go_on = lambda: training.running and not _at_the_end(training, task) and time.monotonic() < deadline
    while training.phase(task) != kill.phase and go_on():
        time.sleep(POLL)
    if kill.phase == "steps":  # of which a checkpoint and an evaluation are a part here
        aim = (training.last_step or 0) + round(kill.moment * 2 * task.checkpoint_every)
        while (training.last_step or 0) < aim and go_on():
            time.sleep(POLL)
        time.sleep(0.05 * kill.moment)
    else:
        end = time.monotonic() + 0.9 * kill.moment * phases[kill.phase]
        while training.phase(task) == kill.phase and training.running and time.monotonic() < end:
            time.sleep(POLL)
    phase, before = training.phase(task), time.monotonic()
    training.send(signal.Signals[kill.signal])
    status = training.wait()
    return {"signal": kill.signal, "planned": kill.phase, "phase": phase, "status": status, "seconds_to_exit": round(time.monotonic() - before, 2)}


def _at_the_end(training, task):
    return training.last_step == task.steps or training.resumed_at == task.steps


def _kill_failures(row, task, training):
    failures = []
    if row["signal"] == "SIGKILL":
        most = task.checkpoint_every * (2 if row["phase"] == "checkpoint" else 1)  # what is being written is not there yet
        if row["steps_lost"] > most:
            failures.append(f"SIGKILL cost {row['steps_lost']} steps, more than {most}")
    else:
        # before Python has come to our first instruction, the signal does what it does to every process
        allowed = (AGAIN, -signal.SIGTERM) if row["phase"] == "start-up" else (AGAIN,)
        if row["status"] not in allowed:
            failures.append(f"SIGTERM ({row['phase']}) gave status {row['status']}")
        if row["steps_lost"]:
            failures.append(f"SIGTERM cost {row['steps_lost']} steps")
    if training.traceback:
        failures.append(f"a traceback was printed: {(training.stderr or training.stdout)[-500:]}")
    return failures


# ---------------------------------------------------------------- all of it


def measure(options: Options, folder: Path, say: Say) -> dict[str, Any]:
    """The figures of the parts asked for. "failures", in a part, has a sentence for whatever was not as it should be."""
    task = Task(folder / "shapes", folder / "compiled", steps=options.steps, checkpoint_every=10, evaluate_every=40)
    task.prepare()
    alone, notes, parts = folder / "undisturbed", folder / "undisturbed.json", {}
    if not notes.exists():
        notes.write_text(json.dumps(undisturbed(task, alone, say)))
    about = {
        "command": command_line(PROGRAM, options, leave=("parts", "faults")), "seed": options.seed,
        "versions": versions(*PACKAGES),
        "hardware": f"{task.devices} virtual CPU devices, {os.cpu_count()} CPU cores",
        "run": {name: getattr(task, name) for name in ("steps", "checkpoint_every", "evaluate_every", "devices", "images_per_device")},
        "undisturbed": json.loads(notes.read_text()),
    }  # fmt: skip
    if "kills" in options.parts:
        kills = plan_kills(options.kills, options.seed)
        found = disturbed(task, folder / "disturbed", kills, about["undisturbed"]["phases"], say)
        compared = comparison(folder / "disturbed", alone)
        parts["kills"] = about | found | {"comparison": compared, "failures": found["failures"] + compared["failures"]}
    if "single" in options.parts:
        parts["single"] = about | {"rows": single_faults.measure(options.faults, task, alone, folder / "single", say)}
    return parts


def _with_what_was_left_out(result: dict[str, Any], before: dict[str, Any], options: Options) -> dict[str, Any]:
    """The new figures, with those of earlier measurements for what was not measured now."""
    if "single" in result:
        kept = {row["name"]: [] for row in before.get("single", {}).get("rows", ())}
        for row in before.get("single", {}).get("rows", ()):
            kept[row["name"]].append(row)
        for name in options.faults:
            kept[name] = [row for row in result["single"]["rows"] if row["name"] == name]
        rows = [row for fault in single_faults.FAULTS for row in kept.get(fault.__name__, ())]
        result["single"] |= {"rows": rows, "failures": [f"{row['fault']}: {failure}" for row in rows for failure in row["failures"]]}
    return {name: figures for name, figures in (before | result).items() if name in ("kills", "single")}


def main(arguments: list[str] | None = None) -> int:
    """Writes the result file; returns the exit status."""
    options = tyro.cli(Options, prog=PROGRAM, args=arguments, description=Options.__doc__)
    silence_library_threads()
    try:
        check(options, kills=0, steps=50, seed=0)
        if unknown := set(options.faults) - set(Options().faults):
            raise InputError(f"--faults has {', '.join(sorted(unknown))}; choose from {', '.join(Options().faults)}")
        with tempfile.TemporaryDirectory() as temporary:
            folder = (options.folder or Path(temporary)).absolute()
            result = measure(options, folder, lambda line: print(line, file=sys.stderr, flush=True))
        result = _with_what_was_left_out(result, json.loads(options.out.read_text()) if options.out.exists() else {}, options)
        write_json(options.out, result)
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    failures = [failure for part in options.parts for failure in result[part]["failures"]]
    for failure in failures:
        print(f"{PROGRAM}: {failure}", file=sys.stderr)
    print(f"Wrote {options.out}: {len(failures)} failures.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
