"""Start of a run: data, checkpoint or pretrained weights, model, optimizer and the placement of the state."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath
from rich.console import Console

from mrcnn_jax import distributed
from mrcnn_jax.atomic_io import write_text
from mrcnn_jax.checkpoint import Checkpoint, CheckpointStore
from mrcnn_jax.compiled_programs import StoredFunction, stored
from mrcnn_jax.config import DataConfig, Experiment, TrainConfig, to_dict
from mrcnn_jax.config.rescale_schedule import with_epochs
from mrcnn_jax.data.catalog import open_split, open_training
from mrcnn_jax.data.contents import Contents
from mrcnn_jax.data.dataset import DatasetSplit
from mrcnn_jax.data.image_sampling import epoch_images
from mrcnn_jax.data.mixture import Mixture
from mrcnn_jax.data.pipeline import UnreadableImages, training_batches
from mrcnn_jax.errors import InputError, printable
from mrcnn_jax.inference.detector import Weights, read_weights, require_weights
from mrcnn_jax.models.systems import init_variables, jitted_init, make_model
from mrcnn_jax.run_description import differing_fields, edited_experiment, newest_description
from mrcnn_jax.runtime import enable_compilation_cache
from mrcnn_jax.training.data_checks import data_warnings, split_statistics
from mrcnn_jax.training.data_identity import compare_data, contents_of, same_place
from mrcnn_jax.training.data_summary import summarize_objects
from mrcnn_jax.training.optimizer import make_optimizer, make_schedule, scaled_learning_rate
from mrcnn_jax.training.progress import warn
from mrcnn_jax.training.sharding import Sharding, prefetch
from mrcnn_jax.training.step import TrainState, create_state, make_train_step
from mrcnn_jax.training.warm_start import (
    check_backbone,
    load_frozen_rpn,
    load_pretrained,
    match_preprocessing,
    resolve_dataset_fields,
)

_FIXED = "model.", "data.", "train.seed", "train.ema_decay", "train.optimizer"
"""Beginnings of the fields that stay the same throughout a run."""
_MAY_CHANGE = ("data.threads", "data.max_unreadable_images", "data.dataset", "data.extra_datasets")
"""Fields of model and data that a resumed run may change; ``compare_data`` checks the data set itself."""


@dataclass(frozen=True)
class Sources:
    """Data and weights that a run starts from, with the experiment completed from them."""

    experiment: Experiment
    training: DatasetSplit | Mixture
    validation: DatasetSplit
    checkpoint: Checkpoint | None  # of the run itself, to resume
    pretrained: Weights | None  # of train.init_from
    contents: dict[str, Contents]  # of the splits, by name

    @property
    def step(self) -> int:
        """Number of steps that the run has done."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def images_seen(self) -> int:
        """Position in the training data."""
        return self.checkpoint.images_seen if self.checkpoint else 0


@dataclass
class Run:
    """Everything that the loop works with; ``state`` changes with every step."""

    sources: Sources
    sharding: Sharding
    state: TrainState
    train_step: Any  # (state, batch) -> (state, metrics)
    programs: Any  # directory of stored programs, if any
    batches: Iterator[tuple[Any, list[int]]]  # batches on the devices, and the ids of their images
    schedule: optax.Schedule
    images_per_step: int
    unreadable: UnreadableImages


Splits = tuple[DatasetSplit | Mixture, DatasetSplit]
"""Those for training and for validation."""


def open_splits(config: DataConfig) -> Splits:
    """Opens the splits for training and for validation."""
    return open_training(config), open_split(config, config.validation_split)


def require_origins(experiment: Experiment, directory: epath.Path) -> None:
    """Checks, for a new run, that the weights it starts from are there, without reading them.

    Raises:
        InputError: train.init_from or model.rpn.proposals_from is no directory of weights.
    """
    for origin in (experiment.train.init_from, experiment.model.rpn.proposals_from):
        if origin and newest_description(directory) is None:
            require_weights(origin)


def open_sources(
    experiment: Experiment, splits: Splits, directory: epath.Path, checkpoints: CheckpointStore,
    console: Console,
) -> Sources:  # fmt: skip
    """Restores the newest checkpoint, or reads the pretrained weights of a new run.

    Raises:
        InputError: data set, checkpoint or weights do not match the experiment.
    """
    training, validation = splits
    given, experiment = experiment, resolve_dataset_fields(experiment, training)
    for task in sorted(set(given.model.tasks) - set(experiment.model.tasks)):
        warn(console, f"no object of the split '{training.split}' has {task}, so the run neither learns nor "
                      f"predicts them (model.tasks {' '.join(experiment.model.tasks)}).")  # fmt: skip
    checkpoint = checkpoints.restore_latest(lambda message: warn(console, f"{message}."))
    images, images_per_step = epoch_images(training, experiment.data), _images_per_step(experiment.train)
    done = (checkpoint.step, checkpoint.images_seen) if checkpoint else (0, 0)
    schedule = with_epochs(experiment.train, images, images_per_step, *done)
    experiment = replace(experiment, train=schedule)
    init_from, pretrained, contents = experiment.train.init_from, None, contents_of(splits)
    if checkpoint and not checkpoint.step:
        raise InputError(
            f"{directory} holds imported weights: give --train.init-from {directory} and another --directory"
        )
    if checkpoint:
        for message in compare_data(checkpoint, experiment.data, training.info, contents, directory):
            warn(console, f"{message}.")
    if checkpoint and init_from:
        model = match_preprocessing(experiment.model, checkpoint.experiment.model)
        experiment = replace(experiment, model=model)
    elif init_from:
        pretrained = read_weights(init_from)
        check_backbone(experiment.model, pretrained.experiment.model, init_from)
        model = match_preprocessing(experiment.model, pretrained.experiment.model)
        experiment = replace(experiment, model=model)
    if checkpoint:
        _check_same_run(checkpoint, experiment, directory)
        if message := edited_experiment(directory, given=experiment):
            warn(console, f"{message}.")
    return Sources(experiment, training, validation, checkpoint, pretrained, contents)


def _images_per_step(config: TrainConfig) -> int:
    return jax.device_count() * config.images_per_device


def start_run(sources: Sources, directory: epath.Path, console: Console, store_programs: bool) -> Run:
    """Builds model, optimizer and data pipeline, and places the state on the devices."""
    experiment, config = sources.experiment, sources.experiment.train
    cache = enable_compilation_cache(config.compilation_cache)
    images_per_step = _images_per_step(config)
    model = make_model(experiment.model, jnp.dtype(config.dtype), config.remat)
    optimizer = make_optimizer(config, experiment.model, images_per_step)
    programs = cache / "programs" if cache and store_programs and jax.process_count() == 1 else None
    state, messages = _initial_state(sources, directory, model, optimizer, programs)
    console.print(_describe(sources, state, images_per_step), highlight=False, markup=False, soft_wrap=True)
    for message in messages:
        console.print(message, highlight=False, markup=False, soft_wrap=True)
    for message in _data_warnings(sources):
        warn(console, f"{message}.")
    if summary := summarize_objects(experiment, sources.training):
        console.print(f"{printable(summary)}.", highlight=False, markup=False, soft_wrap=True)
    if not sources.checkpoint and not sources.pretrained and experiment.model.backbone.norm == "frozen":
        warn(console, "the backbone is randomly initialised and its batch norm is frozen, so it will hardly "
                      "learn; model.backbone.norm group or batch trains from scratch.")  # fmt: skip
    _write_experiment(experiment, directory)

    sharding = Sharding(config.parallel)
    unreadable = UnreadableImages(experiment.data.max_unreadable_images)
    # the step itself, unless the run began with another number of devices
    position = sources.images_seen // images_per_step
    batches = training_batches(
        sources.training, experiment.data, start=position, steps=position + config.steps - sources.step,
        images_per_process=jax.local_device_count() * config.images_per_device, seed=config.seed,
        process=jax.process_index(), processes=jax.process_count(), masks="masks" in experiment.model.tasks,
        unreadable=unreadable, conventions=experiment.model.conventions,
    )  # fmt: skip
    train_step = make_train_step(model, optimizer, experiment)
    if programs:
        make_step = partial(make_train_step, model, optimizer, experiment)
        train_step = StoredFunction(make_step, programs, f"step {_model_and_train(experiment)}")
    return Run(
        sources=sources,
        sharding=sharding,
        state=sharding.replicate(state),
        train_step=train_step,
        programs=programs,
        batches=prefetch(batches, lambda item: (sharding.shard(item[0]), item[1].image_ids.tolist())),
        schedule=make_schedule(config, images_per_step),
        images_per_step=images_per_step,
        unreadable=unreadable,
    )


def _data_warnings(sources: Sources) -> list[str]:
    """Returns the warnings about the data set, then those about further ones to train on."""
    experiment, (first, *others) = sources.experiment, sources.training.parts
    statistics = {split.split: split_statistics(split) for split in (first, sources.validation)}
    found = data_warnings(experiment, first.info, statistics, first.split)
    for part in others:
        name = f"{part.split} of {part.directory.name}"
        found += data_warnings(experiment, part.info, {name: split_statistics(part)}, name)
    return found


def _initial_state(sources, directory, model, optimizer, programs) -> tuple[TrainState, list[str]]:
    """Returns the state on the host, and messages about where it comes from."""
    experiment, config = sources.experiment, sources.experiment.train
    key, average = jax.random.key(config.seed), config.ema_decay > 0
    if sources.checkpoint:
        template = stored(
            programs, f"state {_model_and_train(experiment)}",
            lambda: jax.eval_shape(lambda: create_state(init_variables(model, key), optimizer, average)),
        )  # fmt: skip
        message = f"Resumed {directory} at step {sources.step:,} of {config.steps:,}."
        return sources.checkpoint.restore_state(template), [message]
    # on a CPU, all optimisations of random numbers take XLA three times as long, and make them no faster
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    make_init = partial(jax.jit, jitted_init(model), compiler_options=options)
    init = StoredFunction(make_init, programs, f"init {_model_and_train(experiment)}")
    variables, messages = init(key), []
    if sources.pretrained:
        info, origin = sources.training.info, config.init_from
        loaded = load_pretrained(variables, sources.pretrained, experiment.model, info, origin)
        variables, random = loaded.variables, ", ".join(loaded.randomly_initialised) or "nothing"
        messages = [f"Initialised from {origin}. Randomly initialised: {random}."]
        messages += [f"Not used by this model: {', '.join(loaded.unused)}."] if loaded.unused else []
    if experiment.model.rpn.proposals_from:
        variables = load_frozen_rpn(variables, experiment)
    return jax.jit(create_state, static_argnums=(1, 2))(variables, optimizer, average), messages


def _model_and_train(experiment: Experiment) -> dict[str, Any]:
    """Returns what the compiled programs of a run depend on."""
    settings = to_dict(experiment)
    return {part: settings[part] for part in ("model", "train")}


def _check_same_run(checkpoint: Checkpoint, experiment: Experiment, directory: epath.Path) -> None:
    """Raises InputError if model, data or seed are not those of the run; the rest may change on resuming."""
    before, now = to_dict(checkpoint.experiment), to_dict(experiment)
    origins = [part["model"]["rpn"]["proposals_from"] for part in (before, now)]
    if same_place(*origins):
        before["model"]["rpn"]["proposals_from"] = origins[1]
    changed = [
        name
        for name in differing_fields(before, now)
        if name.startswith(_FIXED) and name not in _MAY_CHANGE
    ]
    if changed:
        raise InputError(
            f"{directory} holds another run ({', '.join(changed)} differ): choose another --directory, or "
            "give the same settings"
        )


def _write_experiment(experiment: Experiment, directory: epath.Path) -> None:
    """Writes experiment.json; raises InputError unless all processes see the same directory and settings."""
    text, file = json.dumps(to_dict(experiment), indent=1) + "\n", directory / "experiment.json"
    if distributed.is_primary():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "metrics.json").unlink(missing_ok=True)  # of a shorter run that now continues
        write_text(file, text)
    if jax.process_count() > 1:
        distributed.barrier()
        seen = distributed.all_gather_object(file.exists() and file.read_text() == text)
        if not all(seen):
            others = ", ".join(str(process) for process, sees in enumerate(seen) if not sees)
            raise InputError(
                "all processes must see the same directory and be given the same settings, but those of "
                f"{directory} differ in process {others}"
            )


def _describe(sources: Sources, state: TrainState, images_per_step: int) -> str:
    experiment, config = sources.experiment, sources.experiment.train
    device, count = jax.devices()[0], jax.device_count()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params)) / 1e6
    epochs = config.steps * images_per_step / epoch_images(sources.training, experiment.data)
    return (
        f"{experiment.name}: {parameters:.1f} M parameters, {experiment.model.num_classes} classes, "
        f"{len(sources.training):,} training and {len(sources.validation):,} validation images\n"
        f"{count} x {device.device_kind} ({device.platform}), {jax.process_count()} process(es), "
        f"{config.dtype}\n"
        f"Batch {images_per_step} = {count} x {config.images_per_device} images, so learning rate "
        f"{scaled_learning_rate(config, images_per_step):g} ({config.learning_rate:g} for "
        f"{config.reference_batch}); {config.steps:,} steps are {epochs:.1f} epochs"
    )
