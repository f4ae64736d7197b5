"""One fault at a time, each in a run of its own: what exit status and which sentence it gives, and whether the run can go on afterwards."""

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
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_jax.checkpoint import CheckpointStore
from mrcnn_jax.data import dataset as records
from mrcnn_jax.data import shapes
from mrcnn_jax.data.dataset_writer import write_dataset
from mrcnn_jax.errors import InputError
from tests.slow.training_process import (
    AGAIN,
    BAD_INPUT,
    DAMAGES,
    FAILED,
    FINISHED,
    PATIENCE,
    POLL,
    Task,
    Training,
    checkpoints,
    comparison,
    damage,
    differing,
    files_by_size,
    free_port,
    logged,
    saved_arrays,
)

Row = dict[str, Any]
STALL = 80
"""train.stall_seconds where a process is stopped: more than a start takes."""
SIGN_OF_LIFE = 100
"""Seconds after which JAX gives up a process that gives none."""


def begun(finished: Path, directory: Path, checkpoints_back: int = 1) -> int:
    """A copy of a finished run as it was before its last checkpoints; the step it would go on from."""
    shutil.copytree(finished, directory)
    for step in checkpoints(directory)[-checkpoints_back:]:
        shutil.rmtree(directory / "checkpoints" / str(step))
    (directory / "metrics.json").unlink()
    return checkpoints(directory)[-1]


def row(fault: str, ended: Sequence[Training], expected: Sequence[int], words: Sequence[str] = (), failures: Sequence[str] = ()) -> Row:
    """A line of the table: exit statuses, what was said, what was not as it should be. One of the processes must have said each of ``words``."""
    statuses, said = [training.wait() for training in ended], " ".join(training.stderr + training.stdout for training in ended)
    found = [f"exit status {statuses} instead of {list(expected)}"] if statuses != list(expected) else []
    found += [f"{word!r} was not said, but {said[-300:]!r}" for word in words if word not in said]
    found += ["a traceback was printed"] if any(training.traceback for training in ended) else []
    sentences = list(dict.fromkeys(sentence.replace(str(training.directory), "RUN") for training in ended for sentence in training.sentences))
    return {"fault": fault, "status": statuses, "said": sentences, "failures": [*found, *failures]}


# ---------------------------------------------------------------- one process


def started_again(task: Task, finished: Path, folder: Path) -> Row:
    """A run that has come to its end says so and leaves everything as it is."""
    contents = lambda: {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in finished.rglob("*") if path.is_file()}
    before, training = contents(), Training(task, finished, log=folder / "again")
    training.wait()
    changed = [] if contents() == before else ["it changed files of the run"]
    line = next((line for line in training.stdout.splitlines() if "is finished" in line), "")
    return row("a finished run is started again", [training], [FINISHED], ["is finished"], changed) | {"said": [line.replace(str(finished), "RUN")]}


def damaged_checkpoints(task: Task, finished: Path, folder: Path) -> Row:
    """Without any checkpoint that can be read, the run does not begin anew by itself."""
    directory = folder / "run"
    begun(finished, directory)
    for step in checkpoints(directory):
        damage(files_by_size(directory / "checkpoints" / str(step))[0], "bytes flipped")
    before = checkpoints(directory)
    training = Training(task, directory)
    training.wait()
    return row(
        "every checkpoint is damaged", [training], [BAD_INPUT], ["checkpoint"], [] if checkpoints(directory) == before else ["checkpoints were moved"]
    )


def damaged_files(task: Task, finished: Path, folder: Path, most: int | None = None) -> Row:
    """Every file of a checkpoint (or the ``most`` largest), damaged in every way, one at a time: it is found out, or it changes nothing."""
    directory, counts, failures = folder / "checkpoints", Counter(), []
    step = str(task.steps)
    expected = saved_arrays(finished, task.steps)
    for original in files_by_size(finished / "checkpoints" / step)[:most]:
        for how in DAMAGES:
            shutil.rmtree(directory, ignore_errors=True)
            shutil.copytree(finished / "checkpoints" / step, directory / step)
            file = directory / step / original.relative_to(finished / "checkpoints" / step)
            damage(file, how)
            with redirect_stderr(io.StringIO()):  # what Orbax's threads print meanwhile
                outcome = _outcome(directory, expected)
            counts[outcome] += 1
            if outcome not in ("found out", "of no consequence"):
                failures.append(f"{file.name} {how}: {outcome}")
    about = f"{sum(counts.values())} damages: {', '.join(f'{number} {outcome}' for outcome, number in sorted(counts.items()))}"
    return {"fault": f"every file of a checkpoint, one at a time: {', '.join(DAMAGES)}", "status": [], "said": [about], "failures": failures}


def _outcome(directory, expected):
    kept = CheckpointStore(directory, read_only=True)
    try:
        found = kept.restore_latest()
    except InputError:
        return "found out"
    finally:
        kept.close()
    return "not seen" if found is None else "of no consequence" if not differing(found.arrays, expected) else "wrong arrays"


def damaged_cache(task: Task, finished: Path, folder: Path) -> Row:
    """Compiled programs that were cut short while they were written are compiled again."""
    directory, cache = folder / "run", folder / "cache"
    begun(finished, directory)
    shutil.copytree(task.cache, cache)
    for file in files_by_size(cache):
        damage(file, "cut short")
    training = Training(replace(task, cache=cache), directory)
    training.wait()
    return row("every compiled program in the cache is cut short", [training], [FINISHED], failures=comparison(directory, finished)["failures"])


def interrupted(task: Task, finished: Path, folder: Path) -> Row:
    """Ctrl-C."""
    directory = folder / "run"
    begun(finished, directory, checkpoints_back=2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else, in the background of a shell, processes started here would ignore it
    training = Training(task, directory)
    _reach(training, task.steps - 2 * task.checkpoint_every + 2)
    training.send(signal.SIGINT)
    training.wait()
    again = Training(task, directory, log=folder / "again")
    failures = [] if again.wait() == FINISHED else ["it could not be started again"]
    return row("Ctrl-C", [training], [130], ["interrupted"], failures + comparison(directory, finished)["failures"])


def full_disk(task: Task, finished: Path, folder: Path) -> Row:
    """The next checkpoint does not fit. With more room, the same command goes on."""
    disk = folder / "disk"
    disk.mkdir()
    begun(finished, folder / "copy")
    used = sum(path.stat().st_size for path in (folder / "copy").rglob("*"))
    files = files_by_size(finished / "checkpoints" / str(task.steps))
    with _small_disk(disk, used + sum(file.stat().st_size for file in files) // 2) as resize:
        limit = files[0].stat().st_size // 2
        settings = (
            {} if resize else {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))}
        )
        directory = disk / "run"
        shutil.copytree(folder / "copy", directory)
        before = checkpoints(directory)
        training = Training(task, directory, log=folder / "full", **settings)
        training.wait()
        failures = [] if checkpoints(directory) == before else [f"the checkpoints are {checkpoints(directory)} instead of {before}"]
        if resize:
            resize()
        again = Training(task, directory, log=folder / "again")
        failures += [] if again.wait() == FINISHED else [f"with more room it gave status {again.wait()}: {again.stderr[-300:]}"]
        failures += comparison(directory, finished)["failures"]
    kind = "a file system that is full" if resize else "a limit to the size of files"
    return row(f"the next checkpoint does not fit ({kind})", [training], [FAILED], ["cannot be written"], failures)


@contextmanager
def _small_disk(place: Path, size: int):
    """A file system of its own in memory, where this process may make one; gives a function that enlarges it, or None."""
    mount = lambda options: (
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False).returncode == 0
    )
    mounted = os.geteuid() == 0 and mount(f"size={size}")
    try:
        yield (lambda: mount(f"remount,size={4 * size}")) if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=False)


def unreadable_images(task: Task, finished: Path, folder: Path) -> list[Row]:
    """Two of the training images are cut short: they are left out and counted, unless that is more than the run may leave out."""
    data = folder / "data"
    source = records.open_dataset(task.data, "train")
    cut = [record._replace(image=record.image[: len(record.image) // 2]) if index in (5, 20) else record for index, record in enumerate(source)]
    write_dataset(data, shapes.INFO, {"train": cut, "validation": records.open_dataset(task.data, "validation")})
    short = replace(task, data=data, steps=2 * len(source) // (task.devices * task.images_per_device), evaluate_every=1000)
    names, rows = [cut[index].file_name for index in (5, 20)], []
    for allowed, status in ((2, FINISHED), (1, BAD_INPUT)):
        training = Training(short, folder / f"run_{allowed}", ["--data.unreadable", str(allowed)])
        training.wait()
        told = [line for line in (training.stdout + training.stderr).splitlines() if any(name in line for name in names)]
        failures = [] if all(any(name in line for line in told) for name in names) else ["not all of the images that cannot be read were named"]
        rows.append(row(f"two images that cannot be read, where {allowed} may be left out", [training], [status], failures=failures))
        rows[-1]["said"] = rows[-1]["said"] or told
    return rows


def exploding_loss(task: Task, finished: Path, folder: Path) -> Row:
    """An absurd learning rate. With the right one the run goes on from the checkpoint before."""
    directory = folder / "run"
    start = begun(finished, directory)
    training = Training(task, directory, ["--train.learning-rate", "1e8", "--train.clip-norm", "0"])
    training.wait()
    failures = [] if checkpoints(directory)[-1] == start else ["a checkpoint was written after the loss exploded"]
    again = Training(task, directory, log=folder / "again")
    failures += [] if again.wait() == FINISHED else ["it could not be started again"]
    return row("the loss explodes", [training], [FAILED], ["images of id"], failures + comparison(directory, finished)["failures"])


def other_devices(task: Task, finished: Path, folder: Path) -> Row:
    """Half as many devices with twice as many images each go on from a checkpoint; what differs then is rounding, which grows from step to step."""
    directory = folder / "run"
    start = begun(finished, directory, checkpoints_back=len(checkpoints(finished)) - 1)
    training = Training(replace(task, devices=task.devices // 2, images_per_device=2 * task.images_per_device), directory)
    status = training.wait()
    if status != FINISHED:
        return row("half as many devices go on", [training], [FINISHED])
    found = row("half as many devices go on", [training], [FINISHED], [f"at step {start:,} of"])
    ours, theirs = (saved_arrays(each, task.steps) for each in (directory, finished))
    losses = [{line["step"]: line["loss"] for line in logged(each)[0]} for each in (directory, finished)]
    relative = {step: abs(losses[0][step] - losses[1][step]) / losses[1][step] for step in (start + 1, task.steps)}
    moved = {
        name: np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()
        for name in ours
        if name.startswith("params") and theirs[name].any()
    }
    found |= {
        "steps": task.steps - start, "first_loss_differs": relative[start + 1], "last_loss_differs": relative[task.steps],
        "parameters_differ": float(max(moved.values())), "parameters_differ_median": float(np.median(list(moved.values()))),
    }  # fmt: skip
    if found["first_loss_differs"] > FIRST_LOSS or found["last_loss_differs"] > LAST_LOSS:
        found["failures"].append(f"losses differ by {found['first_loss_differs']:.1e} at first and {found['last_loss_differs']:.1e} at last")
    return found


FIRST_LOSS, LAST_LOSS = 1e-5, 0.05  # relative; of the first and of the last step after the number of devices has changed


# ---------------------------------------------------------------- two processes


def pair(task: Task, directory: Path, log: Path, options: Sequence[str] = ()) -> list[Training]:
    """Both processes of a run of two; each has half of the task's devices."""
    half = replace(task, devices=task.devices // 2)
    joint = ["--coordinator", f"localhost:{free_port()}", "--processes", "2"]
    return [Training(half, directory, [*joint, "--process", str(index), *options], log.with_name(f"{log.name}_{index}")) for index in (0, 1)]


def two_processes(task: Task, finished: Path, folder: Path) -> Row:
    """Undisturbed, they end as one process with as many devices."""
    directory = folder / "run"
    begun(finished, directory, checkpoints_back=2)
    ended = pair(task, directory, folder / "log")
    row_ = row("two processes go on with the run of one", ended, [FINISHED, FINISHED])
    return row_ | {"failures": row_["failures"] + comparison(directory, finished)["failures"]}


def lost_process(task: Task, finished: Path, folder: Path, index: int) -> Row:
    """One of two is killed: the other does not wait for it for long. Both started again end as if nothing had been."""
    directory = folder / "run"
    start = begun(finished, directory, checkpoints_back=3)
    running = pair(task, directory, folder / "log")
    _reach(running[0], start + 5)
    seconds = _ends(running[1 - index], lambda: running[index].send(signal.SIGKILL))
    expected = [AGAIN, AGAIN]
    expected[index] = -signal.SIGKILL
    failures = _go_on(task, directory, finished, folder)
    return row(f"process {index} of two is killed by SIGKILL", running, expected, failures=failures) | {"seconds": seconds}


def terminated_process(task: Task, finished: Path, folder: Path) -> Row:
    """One of two is asked to stop: both save the same step, the last that was made."""
    directory = folder / "run"
    start = begun(finished, directory, checkpoints_back=3)
    running = pair(task, directory, folder / "log")
    _reach(running[0], start + 5)
    seconds = _ends(running[0], lambda: running[1].send(signal.SIGTERM))
    running[1].wait()
    made, saved = running[0].last_step, checkpoints(directory)[-1]
    failures = [] if made == saved else [f"the last step was {made}, but {saved} was saved"]
    failures += _go_on(task, directory, finished, folder)
    return row("process 1 of two is asked to stop by SIGTERM", running, [AGAIN, AGAIN], failures=failures) | {"seconds": seconds}


def stopped_process(task: Task, finished: Path, folder: Path) -> Row:
    """One of two hangs: the watchdog of the other one ends it, or JAX does, which misses a sign of life after a while; whichever is sooner."""
    directory = folder / "run"
    start = begun(finished, directory, checkpoints_back=3)
    running = pair(task, directory, folder / "log", ["--train.stall-seconds", str(STALL)])
    _reach(running[0], start + 5)
    seconds = _ends(running[0], lambda: running[1].send(signal.SIGSTOP))
    running[1].send(signal.SIGKILL)
    by_jax = running[0].wait() == -signal.SIGABRT
    words, status = ("detected fatal errors", -signal.SIGABRT) if by_jax else ("No progress for", AGAIN)
    failures = [] if 1 < seconds < max(STALL, SIGN_OF_LIFE) + 15 else [f"it ended after {seconds} seconds"]
    failures += _go_on(task, directory, finished, folder)
    found = row("process 1 of two hangs (SIGSTOP)", running, [status, -signal.SIGKILL], [words], failures)
    said = [line for line in running[0].stderr.splitlines() if words in line]
    return found | {"said": [line[line.find("Terminating process") :] if by_jax else line for line in said], "seconds": seconds}


def _go_on(task, directory, finished, folder):
    statuses = [training.wait() for training in pair(task, directory, folder / "again")]
    return ([] if statuses == [FINISHED, FINISHED] else [f"started again, they gave {statuses}"]) + comparison(directory, finished)["failures"]


def _reach(training: Training, step: int) -> None:
    """Waits until a step has been made."""
    deadline = time.monotonic() + PATIENCE
    while training.running and (training.last_step or 0) < step and time.monotonic() < deadline:
        time.sleep(POLL)


def _ends(training: Training, act: Callable[[], None]) -> float:
    """Seconds from an act to the end of a process."""
    begin = time.monotonic()
    act()
    training.wait()
    return round(time.monotonic() - begin, 1)


def lost_first_process(task: Task, finished: Path, folder: Path) -> Row:
    """The one that the others find each other through."""
    return lost_process(task, finished, folder, 0)


def lost_second_process(task: Task, finished: Path, folder: Path) -> Row:
    """One like all but the first."""
    return lost_process(task, finished, folder, 1)


FAULTS = (
    started_again, damaged_checkpoints, damaged_files, damaged_cache, interrupted, full_disk, unreadable_images, exploding_loss, other_devices,
    two_processes, terminated_process, stopped_process, lost_first_process, lost_second_process,
)  # fmt: skip


def measure(faults: Sequence[str], task: Task, finished: Path, folder: Path, say: Callable[[str], None]) -> list[Row]:
    """The lines of the faults of these names, in runs that go on from ``finished``."""
    rows = []
    for fault in FAULTS:
        name = fault.__name__
        if name not in faults:
            continue
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
        begin = time.monotonic()
        try:
            found = fault(task, finished, folder / name)
        except TimeoutError as error:
            found = {"fault": name, "status": [], "said": [], "failures": [str(error)]}
        for line in found if isinstance(found, list) else [found]:
            rows.append({"name": name, **line})
            say(f"{line['fault']}: exit {line['status']}; {'; '.join(line['failures']) or 'as it should be'}")
        say(f"  {name} took {time.monotonic() - begin:.0f} s")
    return rows
