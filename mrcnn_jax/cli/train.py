"""`mrcnn train`: trains a preset, or fine-tunes the weights in a directory."""

import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from mrcnn_jax import presets
from mrcnn_jax.cli.exit_codes import INVALID_INPUT, OK, RETRY
from mrcnn_jax.cli.terminal import PROGRAM
from mrcnn_jax.config import Experiment

DESCRIPTION = "Train an experiment, fine-tune trained weights or resume a run; evaluate the result."
USAGE = f"""\
usage: {PROGRAM} train EXPERIMENT|DIR [--directory DIR] [--data.FIELD ...] [--train.FIELD ...] ...

{DESCRIPTION}

experiments:
{{experiments}}

DIR is a directory of imported weights (`{PROGRAM} import-weights`) or of another run: its weights are
fine-tuned, with its settings, on the data set --data.dataset, whose classes the model takes; layers for other
classes are initialised randomly. The new run is kept in runs/<name of DIR>_tuned unless --directory names
another place.
A backbone without a detector is passed to an experiment with --train.init-from DIR.

`{PROGRAM} train EXPERIMENT --help` lists every field with its value."""


@dataclass(frozen=True)
class Options:
    """Options of `mrcnn train EXPERIMENT`."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    directory: str
    """Directory of the run (also gs://...). If it holds an unfinished run, that run is resumed."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where several processes are started by hand; srun, mpirun and TPU pods are
    recognised, unless this is none."""
    processes: int | None = None
    """Number of processes that are started by hand."""
    process: int | None = None
    """Index of this process, from 0."""


def main(arguments: list[str]) -> int:
    """Runs `mrcnn train`; returns the exit status."""
    if threading.current_thread() is threading.main_thread():
        # until the run handles the signal itself; an exception raised here could be lost inside a callback
        signal.signal(signal.SIGTERM, lambda *_: os._exit(RETRY))
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, presets.PRESETS))
        listing = "\n".join(f"  {name:<{width}} {presets.describe(name)}" for name in presets.PRESETS)
        print(USAGE.format(experiments=listing))
        return OK if arguments else INVALID_INPUT
    name = arguments[0]
    experiment, run_name = presets.resolve(name)
    default = Options(experiment, str(Path("runs") / run_name))
    prog = f"{PROGRAM} train {name}"
    options = tyro.cli(Options, default=default, prog=prog, description=DESCRIPTION, args=arguments[1:])

    from mrcnn_jax import distributed
    from mrcnn_jax.training.loop import train

    distributed.initialize(options.coordinator, options.processes, options.process)
    train(options.experiment, options.directory, Console(), store_programs=True)
    return OK
