"""Single faults, each in a run of its own: exit status, message, and whether the run resumes afterwards."""

import io
import os
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scaling._processes import free_port
from mrcnn_jax.checkpoint import CheckpointStore
from mrcnn_jax.cli.exit_codes import FAILED, INVALID_INPUT, KEYBOARD_INTERRUPT, OK, RETRY
from mrcnn_jax.data import shapes
from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.data.dataset_writer import write_dataset
from mrcnn_jax.errors import InputError
from tests.slow.training_process import (
    DAMAGES,
    Task,
    Training,
    checkpoints,
    compare_runs,
    damage,
    differing,
    files_by_size,
    logged,
    saved_arrays,
)

Row = dict[str, Any]
STALL_SECONDS = 80  # train.stall_seconds where a process is stopped: more than a start takes
HEARTBEAT_SECONDS = 100  # after which JAX gives up a silent process
FIRST_LOSS, LAST_LOSS = 1e-5, 0.05  # relative differences of losses after the number of devices has changed


def copy_unfinished(finished: Path, directory: Path, checkpoints_back: int = 1) -> int:
    """Copies a finished run without its last checkpoints; returns the step that it will resume from."""
    shutil.copytree(finished, directory)
    for step in checkpoints(directory)[-checkpoints_back:]:
        shutil.rmtree(directory / "checkpoints" / str(step))
    (directory / "metrics.json").unlink()
    return checkpoints(directory)[-1]


def make_row(
    fault: str, ended: Sequence[Training], expected: Sequence[int], words: str = "",
    failures: Sequence[str] = (),
) -> Row:  # fmt: skip
    """Returns a row of the table; unexpected exit statuses, missing words and tracebacks are failures."""
    statuses = [training.wait() for training in ended]
    output = " ".join(training.stderr + training.stdout for training in ended)
    found = [f"exit status {statuses} instead of {list(expected)}"] if statuses != list(expected) else []
    found += [f"{words!r} is missing in {output[-300:]!r}"] if words not in output else []
    found += ["a traceback was printed"] if any(training.traceback for training in ended) else []
    messages = [line.replace(str(each.directory), "RUN") for each in ended for line in each.messages]
    messages = list(dict.fromkeys(messages))
    return {"fault": fault, "status": statuses, "messages": messages, "failures": [*found, *failures]}


def restart(task: Task, directory: Path, finished: Path) -> list[str]:
    """Starts a run again to its end; returns what differs from the finished run."""
    again = Training(task, directory, log=directory.parent / "again")
    status = again.wait()
    failures = [f"the restart gave status {status}: {again.stderr[-300:]}"] if status != OK else []
    return failures + compare_runs(directory, finished)["failures"]


# ---------------------------------------------------------------- one process


def started_again(task: Task, finished: Path, folder: Path) -> Row:
    """A finished run is reported and left unchanged."""

    def contents():
        files = (path for path in finished.rglob("*") if path.is_file())
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}

    before, training = contents(), Training(task, finished, log=folder / "again")
    training.wait()
    failures = ["it changed files of the run"] if contents() != before else []
    row = make_row("a finished run is started again", [training], [OK], "is finished", failures)
    lines = training.stdout.replace(str(finished), "RUN").splitlines()
    return row | {"messages": [line for line in lines if "is finished" in line]}


def damaged_checkpoints(task: Task, finished: Path, folder: Path) -> Row:
    """A run all of whose checkpoints are damaged does not start over by itself."""
    directory = folder / "run"
    copy_unfinished(finished, directory)
    for step in checkpoints(directory):
        damage(files_by_size(directory / "checkpoints" / str(step))[0], "bytes flipped")
    before, training = checkpoints(directory), Training(task, directory)
    training.wait()
    failures = ["checkpoints were moved"] if checkpoints(directory) != before else []
    return make_row("every checkpoint is damaged", [training], [INVALID_INPUT], "checkpoint", failures)


def damaged_files(task: Task, finished: Path, folder: Path, limit: int | None = None) -> Row:
    """Damages every file of a checkpoint (or the largest) in turn: it is detected, or has no effect."""
    directory, saved = folder / "checkpoints", finished / "checkpoints" / str(task.steps)
    counts, failures, expected = Counter(), [], saved_arrays(finished, task.steps)
    for original in files_by_size(saved)[:limit]:
        for how in DAMAGES:
            shutil.rmtree(directory, ignore_errors=True)
            shutil.copytree(saved, directory / saved.name)
            damage(directory / saved.name / original.relative_to(saved), how)
            with redirect_stderr(io.StringIO()):  # of Orbax's threads
                outcome = _restore_outcome(directory, expected)
            counts[outcome] += 1
            if outcome not in ("detected", "without effect"):
                failures.append(f"{original.name} {how}: {outcome}")
    outcomes = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))
    fault = f"every file of a checkpoint, one at a time: {', '.join(DAMAGES)}"
    messages = [f"{sum(counts.values())} damages: {outcomes}"]
    return {"fault": fault, "status": [], "messages": messages, "failures": failures}


def _restore_outcome(directory, expected):
    try:
        with CheckpointStore(directory, read_only=True) as store:
            found = store.restore_latest()
    except InputError:
        return "detected"
    if found is None:
        return "not seen"
    return "wrong arrays" if differing(found.arrays, expected) else "without effect"


def damaged_cache(task: Task, finished: Path, folder: Path) -> Row:
    """Truncated compiled programs are compiled again."""
    directory, cache = folder / "run", folder / "cache"
    copy_unfinished(finished, directory)
    shutil.copytree(task.cache, cache)
    for file in files_by_size(cache):
        damage(file, "cut short")
    training = Training(replace(task, cache=cache), directory)
    training.wait()
    failures = compare_runs(directory, finished)["failures"]
    return make_row("every compiled program in the cache is cut short", [training], [OK], failures=failures)


def interrupted(task: Task, finished: Path, folder: Path) -> Row:
    """Ctrl-C."""
    directory = folder / "run"
    start = copy_unfinished(finished, directory, checkpoints_back=2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells make background processes ignore it
    training = Training(task, directory)
    training.wait_for_step(start + 2)
    training.send(signal.SIGINT)
    training.wait()
    failures = restart(task, directory, finished)
    said = "stopped by Ctrl-C and saved at step"
    return make_row("Ctrl-C", [training], [KEYBOARD_INTERRUPT], said, failures)


def full_disk(task: Task, finished: Path, folder: Path) -> Row:
    """The next checkpoint does not fit; with more room the run resumes."""
    disk, copy = folder / "disk", folder / "copy"
    disk.mkdir()
    copy_unfinished(finished, copy)
    files = files_by_size(finished / "checkpoints" / str(task.steps))
    used = sum(path.stat().st_size for path in copy.rglob("*"))
    with _small_disk(disk, used + sum(file.stat().st_size for file in files) // 2) as enlarge:
        limits = files[0].stat().st_size // 2, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        directory = disk / "run"
        shutil.copytree(copy, directory)
        before = checkpoints(directory)
        training = Training(task, directory, log=folder / "full", preexec_fn=None if enlarge else limit)
        training.wait()
        after = checkpoints(directory)
        failures = [f"the checkpoints are {after} instead of {before}"] if after != before else []
        if enlarge:
            enlarge()
        failures += restart(task, directory, finished)
    kind = "a file system that is full" if enlarge else "a limit to the size of files"
    fault = f"the next checkpoint does not fit ({kind})"
    return make_row(fault, [training], [FAILED], "cannot be written", failures)


@contextmanager
def _small_disk(path: Path, size: int):
    """Mounts a small file system where that is permitted; yields a function that enlarges it, or None."""

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    mounted = os.geteuid() == 0 and mount(f"size={size}")
    try:
        yield (lambda: mount(f"remount,size={4 * size}")) if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(path)], check=False)


def unreadable_images(task: Task, finished: Path, folder: Path) -> list[Row]:
    """Two truncated training images are replaced and reported, unless there are more than the run allows."""
    source = list(open_dataset(task.data, "train"))
    for index in (5, 20):
        source[index] = source[index]._replace(image=source[index].image[: len(source[index].image) // 2])
    validation = open_dataset(task.data, "validation")
    write_dataset(folder / "data", shapes.INFO, {"train": source, "validation": validation})
    steps = 2 * len(source) // (task.devices * task.images_per_device)
    short = replace(task, data=folder / "data", steps=steps, evaluate_every=1000)
    names, rows = [source[index].file_name for index in (5, 20)], []
    for allowed, status in ((2, OK), (1, INVALID_INPUT)):
        options = ["--data.max-unreadable-images", str(allowed)]
        training = Training(short, folder / f"run_{allowed}", options)
        training.wait()
        output = (training.stdout + training.stderr).splitlines()
        reported = [line for line in output if any(name in line for name in names)]
        complete = all(any(name in line for line in reported) for name in names)
        failures = [] if complete else ["an unreadable image was not named"]
        fault = f"two images that cannot be read, where {allowed} may be left out"
        row = make_row(fault, [training], [status], failures=failures)
        rows.append(row | {"messages": row["messages"] or reported})
    return rows


def exploding_loss(task: Task, finished: Path, folder: Path) -> Row:
    """An absurd learning rate; with the right one the run resumes from the checkpoint before."""
    directory = folder / "run"
    start = copy_unfinished(finished, directory)
    training = Training(task, directory, ["--train.learning-rate", "1e8", "--train.clip-norm", "0"])
    training.wait()
    failures = [] if checkpoints(directory)[-1] == start else ["a checkpoint was written after the explosion"]
    failures += restart(task, directory, finished)
    return make_row("the loss explodes", [training], [FAILED], "image ids", failures)


def other_devices(task: Task, finished: Path, folder: Path) -> Row:
    """Half as many devices with twice as many images each resume; only rounding differs, and grows."""
    directory, fault = folder / "run", "half as many devices go on"
    start = copy_unfinished(finished, directory, checkpoints_back=len(checkpoints(finished)) - 1)
    half = replace(task, devices=task.devices // 2, images_per_device=2 * task.images_per_device)
    row = make_row(fault, [Training(half, directory)], [OK], f"at step {start:,} of")
    if row["failures"]:
        return row
    ours, theirs = (saved_arrays(each, task.steps) for each in (directory, finished))
    losses, expected = (
        {line["step"]: line["loss"] for line in logged(each)[0]} for each in (directory, finished)
    )
    first, last = (abs(losses[step] / expected[step] - 1) for step in (start + 1, task.steps))
    moved = [
        float(np.abs(ours[name] - array).max() / np.abs(array).max())
        for name, array in theirs.items()
        if name.startswith("params") and array.any()
    ]
    if first > FIRST_LOSS or last > LAST_LOSS:
        row["failures"].append(f"losses differ by {first:.1e} at first and {last:.1e} at last")
    return row | {
        "steps": task.steps - start, "first_loss_differs": first, "last_loss_differs": last,
        "parameters_differ": max(moved), "parameters_differ_median": float(np.median(moved)),
    }  # fmt: skip


# ---------------------------------------------------------------- two processes


def start_pair(task: Task, directory: Path, log: str, options: Sequence[str] = ()) -> list[Training]:
    """Starts both processes of a run; each has half of the task's devices."""
    half, pair = replace(task, devices=task.devices // 2), []
    joint = ["--coordinator", f"localhost:{free_port()}", "--processes", "2", *options, "--process"]
    for index in (0, 1):
        pair.append(Training(half, directory, [*joint, str(index)], directory.parent / f"{log}_{index}"))
    return pair


def two_processes(task: Task, finished: Path, folder: Path) -> Row:
    """Two processes end like one with as many devices."""
    directory = folder / "run"
    copy_unfinished(finished, directory, checkpoints_back=2)
    pair = start_pair(task, directory, "log")
    row = make_row("two processes go on with the run of one", pair, [OK, OK])
    return row | {"failures": row["failures"] + compare_runs(directory, finished)["failures"]}


def _disturb_pair(task, finished, folder, send, index, waits_for, options=()):
    """Sends a signal to one of two processes after some steps; returns both, and seconds until one ended."""
    directory = folder / "run"
    start = copy_unfinished(finished, directory, checkpoints_back=3)
    pair = start_pair(task, directory, "log", options)
    pair[0].wait_for_step(start + 5)
    begin = time.monotonic()
    pair[index].send(send)
    pair[waits_for].wait()
    return pair, round(time.monotonic() - begin, 1)


def _restart_pair(task, directory, finished):
    statuses = [training.wait() for training in start_pair(task, directory, "again")]
    failures = [f"the restart gave {statuses}"] if statuses != [OK, OK] else []
    return failures + compare_runs(directory, finished)["failures"]


def lost_process(task: Task, finished: Path, folder: Path, index: int) -> Row:
    """One of two processes is killed: the other ends soon, and both resume."""
    pair, seconds = _disturb_pair(task, finished, folder, signal.SIGKILL, index, 1 - index)
    expected = [RETRY, RETRY]
    expected[index] = -signal.SIGKILL
    failures = _restart_pair(task, folder / "run", finished)
    fault = f"process {index} of two is killed by SIGKILL"
    return make_row(fault, pair, expected, failures=failures) | {"seconds": seconds}


def terminated_process(task: Task, finished: Path, folder: Path) -> Row:
    """One of two processes gets SIGTERM: both save the same step, the last one made."""
    pair, seconds = _disturb_pair(task, finished, folder, signal.SIGTERM, 1, 0)
    pair[1].wait()
    made, saved = pair[0].last_step, checkpoints(folder / "run")[-1]
    failures = [f"the last step was {made}, but {saved} was saved"] if made != saved else []
    failures += _restart_pair(task, folder / "run", finished)
    fault = "process 1 of two is asked to stop by SIGTERM"
    return make_row(fault, pair, [RETRY, RETRY], failures=failures) | {"seconds": seconds}


def stopped_process(task: Task, finished: Path, folder: Path) -> Row:
    """One of two processes hangs: the other is ended by its watchdog or by JAX's heartbeat."""
    options = ["--train.stall-seconds", str(STALL_SECONDS)]
    pair, seconds = _disturb_pair(task, finished, folder, signal.SIGSTOP, 1, 0, options)
    pair[1].send(signal.SIGKILL)
    by_jax = pair[0].wait() == -signal.SIGABRT
    words, status = ("detected fatal errors", -signal.SIGABRT) if by_jax else ("No progress for", RETRY)
    in_time = 1 < seconds < max(STALL_SECONDS, HEARTBEAT_SECONDS) + 15
    failures = [] if in_time else [f"it ended after {seconds} seconds"]
    failures += _restart_pair(task, folder / "run", finished)
    row = make_row("process 1 of two hangs (SIGSTOP)", pair, [status, -signal.SIGKILL], words, failures)
    messages = [line for line in pair[0].stderr.splitlines() if words in line]
    messages = [line[max(0, line.find("Terminating process")) :] for line in messages]
    return row | {"messages": messages, "seconds": seconds}


FAULTS: dict[str, Callable[[Task, Path, Path], Row | list[Row]]] = {
    fault.__name__: fault
    for fault in (
        started_again, damaged_checkpoints, damaged_files, damaged_cache, interrupted, full_disk,
        unreadable_images, exploding_loss, other_devices, two_processes, terminated_process, stopped_process,
    )
} | {
    "lost_first_process": partial(lost_process, index=0),  # through which the others find each other
    "lost_second_process": partial(lost_process, index=1),
}  # fmt: skip


def measure(task: Task, finished: Path, folder: Path, report: Callable[[str], None]) -> list[Row]:
    """Returns the rows of all faults, in runs that continue ``finished``."""
    rows = []
    for name, fault in FAULTS.items():
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
        begin = time.monotonic()
        try:
            result = fault(task, finished, folder / name)
        except TimeoutError as error:
            result = {"fault": name, "status": [], "messages": [], "failures": [str(error)]}
        for row in result if isinstance(result, list) else [result]:
            rows.append({"name": name, **row})
            report(f"{row['fault']}: exit {row['status']}; {'; '.join(row['failures']) or 'as expected'}")
        report(f"  {name} took {time.monotonic() - begin:.0f} s")
    return rows
