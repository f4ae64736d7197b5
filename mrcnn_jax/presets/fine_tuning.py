"""Defaults for fine-tuning on a data set of one's own, from its number of images and the machine.

Trained weights come with the schedule they were trained with: COCO's, for weeks on a CPU. A few hundred to a
few thousand images need 12 to 30 passes, as in the tutorials of torchvision, Detectron2 and MMDetection, and
more augmentation. `mrcnn train finetune --train.init-from WEIGHTS` and `mrcnn train WEIGHTS` are the same.
"""

from collections.abc import Set
from dataclasses import replace

import jax

from mrcnn_jax.config import AUGMENTATIONS, AugmentationConfig, DataConfig, Experiment, TrainConfig
from mrcnn_jax.config.rescale_schedule import with_epochs
from mrcnn_jax.data.catalog import open_split, open_training
from mrcnn_jax.data.image_sampling import epoch_images
from mrcnn_jax.machine import usable_cores, usable_memory

MOST_EPOCHS, FEWEST_EPOCHS = 30, 12
"""Passes over the training images: up to 500 images the most, from 100,000 the fewest (COCO's usual 12)."""
LEAST_STEPS = 300
DECAYS = 0.7, 0.9
"""Fractions of the steps after which the learning rate falls, where the schedule is "step"."""
LIGHTLY_AUGMENTED = 20_000
"""Number of training images up to which the augmentation "light" takes the place of mirroring alone."""
AVERAGED, LONGEST_AVERAGE = 1 / 20, 1_000
"""Part of the steps, and their largest number, over which the parameters are averaged."""
SHORT_EDGES_ON_CPU = {4: 320, 16: 480}
"""Shorter image edge in pixels up to a number of cores; otherwise the weights' own."""
GIGABYTES_PER_MEGAPIXEL = 4.5
"""Memory of a training step of ResNet-50-FPN in float32, besides ``GIGABYTES``."""
GIGABYTES = 2.0
CORE_SECONDS_PER_MEGAPIXEL = 20
"""Time of a training step of ResNet-50-FPN on a CPU, in seconds of a core."""


def adapt(experiment: Experiment, given: Set[str]) -> tuple[Experiment, str]:
    """Adapts image sizes, batch and schedule to the data set and this machine.

    Args:
        experiment: settings that the weights come with, and those that the user gives.
        given: dotted names of the fields that the user gives, which stay as they are.

    Returns:
        The experiment, and a text that says what was chosen.

    Raises:
        InputError: there is no such data set.
    """
    data, train = experiment.data, experiment.train
    images = epoch_images(open_training(data), data)
    validation = len(open_split(data, data.validation_split))
    if not given & {"data.short_edge", "data.short_edge_test", "data.long_edge"}:
        data = replace(data, **_image_sizes(data))
    if "data.threads" not in given:
        data = replace(data, threads=min(data.threads, max(2, usable_cores())))
    augments = any(name == "augment" or name.startswith("data.augment.") for name in given)
    if data.augment == AugmentationConfig() and images <= LIGHTLY_AUGMENTED and not augments:
        data = replace(data, augment=AUGMENTATIONS["light"])
    megapixels = data.short_edge_test * data.long_edge / 1e6
    if "train.images_per_device" not in given:
        fits = (_memory() / 2 - GIGABYTES) / (GIGABYTES_PER_MEGAPIXEL * megapixels)
        fitting = max(1, min(train.images_per_device, int(fits)))
        accumulate = train.accumulate if "train.accumulate" in given else 1
        train = replace(train, images_per_device=fitting, accumulate=accumulate)
    batch = train.images_per_device * jax.device_count()
    schedule = _schedule(images, validation, batch, train, given)
    train = replace(train, **{name: schedule[name] for name in schedule if f"train.{name}" not in given})
    passes = train.steps * batch / max(1, images)
    text = (
        f"Fine-tuning on {images:,} images of about {data.short_edge_test} x {data.long_edge} pixels: "
        f"{train.steps:,} steps of {batch} images, {passes:.1f} passes"
        f"{', light augmentation' if data.augment == AUGMENTATIONS['light'] else ''}, "
        f"{train.schedule} schedule"
        f"{', the best evaluation is kept' if train.keep_best else ''}"
    )
    if jax.default_backend() == "cpu":
        seconds = train.steps * batch * megapixels * CORE_SECONDS_PER_MEGAPIXEL / usable_cores()
        text += f"; very roughly {_duration(seconds)} here, if the backbone is a ResNet-50"
    return replace(experiment, data=data, train=train), f"{text}. Options such as --train.steps change it."


def epochs(images: int) -> float:
    """Returns the passes over a number of training images."""
    return min(MOST_EPOCHS, max(FEWEST_EPOCHS, MOST_EPOCHS * (500 / max(1, images)) ** 0.17))


def _schedule(images: int, validation: int, batch: int, train: TrainConfig, given: Set[str]) -> dict:
    """Returns the fields of the schedule; evaluations take about a tenth of the time."""
    steps = max(LEAST_STEPS, round(epochs(images) * images / batch))
    steps = train.steps if "train.steps" in given else steps
    steps = with_epochs(replace(train, steps=steps), images, batch).steps
    every = max(steps // 5, 3 * validation // batch)
    every = train.evaluate_every if "train.evaluate_every" in given else every if every < steps else 0
    warmup = min(500, steps // 10)
    return {
        "steps": steps,
        "warmup_steps": warmup,
        "freeze_backbone_steps": warmup,  # until the new layers no longer send it noise
        "schedule": "step" if "train.decay_steps" in given else "cosine",
        "decay_steps": tuple(sorted({max(1, round(steps * fraction)) for fraction in DECAYS})),
        "ema_decay": 1 - 1 / max(1, min(LONGEST_AVERAGE, round(AVERAGED * steps))),
        "checkpoint_every": max(50, steps // 10),
        "evaluate_every": every,
        "keep_best": every > 0,
        "log_every": 5 if jax.default_backend() == "cpu" else 20,
    }


def _image_sizes(data: DataConfig) -> dict:
    """Returns the fields of the image sizes, reduced where the machine asks for it."""
    short = data.short_edge_test
    if jax.default_backend() == "cpu":
        limits = [edge for cores, edge in SHORT_EDGES_ON_CPU.items() if usable_cores() <= cores]
        short = min([short, *limits])
    scale = short / data.short_edge_test
    return {
        "short_edge": tuple(max(1, round(edge * scale)) for edge in data.short_edge),
        "short_edge_test": short,
        "long_edge": round(data.long_edge * scale),
    }


def _memory() -> float:
    """Returns the gigabytes of a device, or of this machine."""
    if jax.default_backend() == "cpu":
        return usable_memory() / 1e9
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 16e9) / 1e9


def _duration(seconds: float) -> str:
    """Returns a duration in words."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return "a minute or two"
