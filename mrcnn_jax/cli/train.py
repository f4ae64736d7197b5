"""`mrcnn train`: trains a preset, continues a run, or fine-tunes trained weights."""

import sys
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from mrcnn_jax import presets
from mrcnn_jax.cli import PROGRAM
from mrcnn_jax.cli.exit_codes import INVALID_INPUT, OK
from mrcnn_jax.cli.first_options import first_options
from mrcnn_jax.cli.terminal import TolerantStream, parse
from mrcnn_jax.config import AUGMENTATIONS, Augmentation, Experiment
from mrcnn_jax.config.rescale_schedule import scale_schedule
from mrcnn_jax.errors import InputError
from mrcnn_jax.paths import require_place

DESCRIPTION = "Train an experiment, continue a run or fine-tune trained weights; evaluate the result."
USAGE = f"""\
usage: {PROGRAM} train EXPERIMENT|DIR|NAME [--directory DIR] [--data.FIELD ...] [--train.FIELD ...] ...

{DESCRIPTION}

experiments:
{{experiments}}

DIR is a directory of imported weights (`{PROGRAM} import-weights`), whose weights are fine-tuned on the data
set --data.dataset: number of steps, image sizes and schedule fit its images and this machine, unless options
give them. The run is kept in runs/<name of DIR>_tuned unless --directory names another place.
NAME is that of published weights (`{PROGRAM} zoo`), an address or hf://owner/name, to be fine-tuned likewise.
DIR may also be that of a run: an unfinished one is continued, as by repeating its command. With another
--data.dataset or --directory, its weights are fine-tuned.
A backbone without a detector gets that of finetune; --train.init-from DIR passes it to another experiment.

`{PROGRAM} train EXPERIMENT --help` shows the options that are needed first, --help-all every field."""

_HELP = {"-h", "--help", "--help-all"}


@dataclass(frozen=True)
class Options:
    """Options of `mrcnn train EXPERIMENT`."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    directory: str
    """Directory of the run (also gs://...). If it holds an unfinished run, that run is resumed."""
    augment: Augmentation | None = None
    """Augmentation of the training images; options --data.augment.FIELD change it. paper mirrors images and
    suits long trainings of 100,000 images; light suits some thousands, strong some hundreds or fewer; aerial
    and microscopy are for pictures without an up and down. `mrcnn dataset --draw FILE --augment` shows it."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where several processes are started by hand; srun, mpirun and TPU pods are
    recognised, unless this is none."""
    processes: int | None = None
    """Number of processes that are started by hand."""
    process: int | None = None
    """Index of this process, from 0."""


def main(arguments: list[str]) -> int:
    """Runs `mrcnn train`; returns the exit status."""
    if not arguments or arguments[0] in _HELP:
        width = max(map(len, presets.PRESETS))
        listing = "\n".join(f"  {name:<{width}} {presets.describe(name)}" for name in presets.PRESETS)
        print(USAGE.format(experiments=listing))
        return OK if arguments else INVALID_INPUT
    name, words = arguments[0], arguments[1:]
    if name.startswith("-"):
        raise InputError(f"an experiment or a directory precedes the options: `{PROGRAM} train demo {name}`")
    if not name:
        raise InputError(f"the experiment has an empty name: `{PROGRAM} train --help` lists them")
    given = {word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")}
    origin = _origin(words) if name == "finetune" and not _HELP & set(words) else None
    options, adapts = _resolve(origin or name, words, given, begins=bool(origin))

    from mrcnn_jax import distributed
    from mrcnn_jax.data.dataset import is_prepared
    from mrcnn_jax.training.loop import train

    if is_prepared(options.directory):
        raise InputError(f"{options.directory} is a data set: choose another --directory for the run")
    if adapts and "data.dataset" not in given:
        raise InputError(f"name the data set to fine-tune on: `{PROGRAM} train {name} --data.dataset DIR`")
    distributed.initialize(options.coordinator, options.processes, options.process)
    experiment, console = options.experiment, Console(file=TolerantStream(sys.stdout))
    if adapts:
        from mrcnn_jax.presets.fine_tuning import adapt

        experiment, text = adapt(experiment, given)
        if distributed.is_primary():
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    train(experiment, options.directory, console, store_programs=True, own_process=True)
    return OK


def _origin(words: Sequence[str]) -> str:
    """Returns the weights that `mrcnn train finetune` names; InputError without any."""
    for word, following in pairwise([*words, ""]):
        option, _, value = word.partition("=")
        if option.replace("_", "-") == "--train.init-from" and (given := value or following):
            return f"./{given}" if given in presets.PRESETS else given  # a directory of that name
    raise InputError(f"finetune starts from trained weights: `{PROGRAM} train finetune --train.init-from "
                     f"NAME|DIR --data.dataset DIR`; `{PROGRAM} zoo` lists names")


def _resolve(
    name: str, words: Sequence[str], given: Set[str], begins: bool = False
) -> tuple[Options, bool]:
    """Returns the options of the run, and whether they are yet to be adapted to the data set.

    A run that is continued, or repeated by the command that began to fine-tune, keeps its settings. With
    ``begins`` the run of that name is not continued, but its weights are fine-tuned.
    """
    if _HELP & set(words) and _is_elsewhere(name):
        others = f"the defaults here are those of {Experiment().name}"
        print(f"{name} has settings of its own, but nothing is downloaded for a help: {others}.\n")
        return _parse(name, words, Options(Experiment(), "runs/NAME_tuned"), given), True
    stored = None if name in presets.PRESETS or begins else presets.stored_run(name)
    if stored:
        options = _parse(name, words, Options(stored, name), given)
        if _same(options.directory, name) and _same(options.experiment.data.dataset, stored.data.dataset):
            return options, False
    if begins:
        from mrcnn_jax.inference.detector import require_weights

        require_weights(name)
    experiment, run_name = presets.resolve(name)
    options = _parse(name, words, Options(experiment, str(Path("runs") / run_name)), given)
    if name in presets.PRESETS:
        return options, False
    begun = presets.stored_run(options.directory)
    if begun and _same(begun.train.init_from, name):
        return _parse(name, words, Options(begun, options.directory), given), False
    return options, True


def _is_elsewhere(name: str) -> bool:
    """Returns whether a name is that of weights that would have to be downloaded first."""
    from mrcnn_jax.weights.locate import cached, is_local

    return name not in presets.PRESETS and not is_local(name) and cached(name) is None


def _parse(name: str, words: Sequence[str], default: Options, given: Set[str]) -> Options:
    """Parses the options, whose schedule follows the number of steps."""
    if _HELP & set(words) - {"--help-all"}:
        print(first_options(name, default.experiment, default.directory))
        raise SystemExit(OK)
    words = ["--help" if word == "--help-all" else word for word in words]
    options = parse(Options, f"train {name}", words, default, DESCRIPTION)
    if options.augment:
        augment = AUGMENTATIONS[options.augment]
        data = replace(default.experiment.data, augment=augment)
        default = replace(default, experiment=replace(default.experiment, data=data))
        options = parse(Options, f"train {name}", words, default, DESCRIPTION)
    require_place(options.directory, "--directory")
    before, experiment = default.experiment.train.steps, _without_contradiction(options.experiment, given)
    options = replace(options, experiment=experiment)
    if experiment.train.steps == before:
        return options
    return replace(
        options, experiment=replace(experiment, train=scale_schedule(experiment.train, before, given))
    )


def _without_contradiction(experiment: Experiment, given: Set[str]) -> Experiment:
    """Returns the experiment, whose epochs give way to steps; InputError where options name both."""
    if "train.epochs" in given and experiment.train.epochs:
        for name in ("train.steps", "train.decay_steps"):
            if name in given:
                option = name.replace("_", "-")
                raise InputError(f"--train.epochs determines what --{option} says: give --train.steps alone")
    if "train.steps" in given:
        return replace(experiment, train=replace(experiment.train, epochs=0.0))
    return experiment


def _same(path: str, other: str) -> bool:
    """Returns whether two spellings are the same place."""
    return path == other or Path(path).expanduser().absolute() == Path(other).expanduser().absolute()
