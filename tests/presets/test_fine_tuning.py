"""Defaults for fine-tuning: what they follow, and what options keep."""

from dataclasses import replace

import jax
import pytest

from mrcnn_jax.config import AUGMENTATIONS, DataConfig, Experiment, TrainConfig
from mrcnn_jax.config.rescale_schedule import scale_schedule
from mrcnn_jax.presets import fine_tuning

COCO = Experiment(data=DataConfig(dataset="mine", padding_divisor=32))


@pytest.fixture
def machine(monkeypatch):
    """``machine(images, validation, cores, gigabytes)`` sets what the defaults depend on."""

    def use(images=200, validation=50, cores=2, gigabytes=32.0):
        splits = {"train": range(images), "validation": range(validation)}
        monkeypatch.setattr(fine_tuning, "open_split", lambda data, split: splits[split])
        monkeypatch.setattr(fine_tuning, "open_training", lambda data: splits["train"])
        monkeypatch.setattr(fine_tuning, "usable_cores", lambda: cores)
        monkeypatch.setattr(fine_tuning, "_memory", lambda: gigabytes)
        monkeypatch.setattr(jax, "device_count", lambda: 1)

    return use


def test_a_few_hundred_images_on_a_laptop(machine):
    machine(images=200)
    experiment, text = fine_tuning.adapt(COCO, set())
    data, train = experiment.data, experiment.train
    assert (data.short_edge, data.short_edge_test, data.long_edge) == ((320,), 320, 533)
    assert (train.images_per_device, train.steps, train.warmup_steps) == (2, 3000, 300)
    assert train.decay_steps == (2100, 2700) and train.learning_rate == 0.02 and train.reference_batch == 16
    assert (train.checkpoint_every, train.evaluate_every, train.keep_best) == (300, 600, True)
    assert (train.schedule, train.freeze_backbone_steps) == ("cosine", 300)
    assert train.ema_decay == pytest.approx(1 - 1 / 150) and data.augment == AUGMENTATIONS["light"]
    assert text == (
        "Fine-tuning on 200 images of about 320 x 533 pixels: 3,000 steps of 2 images, 30.0 passes, light "
        "augmentation, cosine schedule, the best evaluation is kept; very roughly 3 hours here, if the "
        "backbone is a ResNet-50. Options such as --train.steps change it."
    )


@pytest.mark.parametrize(
    "images, augment, given, expected",
    [
        (20_000, "paper", set(), "light"),
        (20_001, "paper", set(), "paper"),
        (200, "strong", set(), "strong"),  # what the weights were trained with
        (200, "paper", {"data.augment.flip"}, "paper"),
        (200, "paper", {"augment"}, "paper"),
    ],
)
def test_few_images_are_augmented_more_than_by_mirroring(machine, images, augment, given, expected):
    machine(images=images)
    experiment = replace(COCO, data=replace(COCO.data, augment=AUGMENTATIONS[augment]))
    assert fine_tuning.adapt(experiment, given)[0].data.augment == AUGMENTATIONS[expected]


def test_epochs_are_counted_in_images_of_the_data_set(machine):
    machine(images=1_000)
    experiment = replace(COCO, train=replace(COCO.train, epochs=4.0))
    train = fine_tuning.adapt(experiment, {"train.epochs"})[0].train
    assert (train.steps, train.warmup_steps, train.decay_steps) == (2_000, 200, (1_400, 1_800))


def test_passes_fall_from_30_to_12():
    found = [round(fine_tuning.epochs(images)) for images in (0, 10, 500, 5_000, 118_000, 10**6)]
    assert found == [30, 30, 30, 20, 12, 12]


@pytest.mark.parametrize(
    "cores, gigabytes, short_edge, batch",
    [(2, 32.0, 320, 2), (16, 64.0, 480, 2), (64, 256.0, 800, 2), (2, 6.0, 320, 1), (16, 4.0, 480, 1)],
)
def test_image_size_and_batch_fit_the_machine(machine, cores, gigabytes, short_edge, batch):
    machine(cores=cores, gigabytes=gigabytes)
    experiment, _ = fine_tuning.adapt(COCO, set())
    assert experiment.data.short_edge_test == short_edge
    assert experiment.train.images_per_device == batch


def test_few_images_get_enough_steps_and_many_validation_images_few_evaluations(machine):
    machine(images=5, validation=4000)
    train = fine_tuning.adapt(COCO, set())[0].train
    assert train.steps == fine_tuning.LEAST_STEPS and train.evaluate_every == 0 and not train.keep_best
    machine(images=500, validation=2000)
    train = fine_tuning.adapt(COCO, set())[0].train
    assert train.steps == 7500 and train.evaluate_every == 3000


def test_options_win(machine):
    machine()
    given = replace(
        COCO,
        data=replace(COCO.data, short_edge_test=600),
        train=replace(COCO.train, steps=40, decay_steps=(9,), images_per_device=8, evaluate_every=7),
    )
    names = {"data.short_edge_test", "train.steps", "train.decay_steps", "train.images_per_device",
             "train.evaluate_every"}  # fmt: skip
    experiment, _ = fine_tuning.adapt(given, names)
    assert experiment.data == replace(given.data, threads=2, augment=AUGMENTATIONS["light"])
    train = experiment.train
    assert (train.schedule, train.keep_best) == ("step", True)
    assert (train.steps, train.decay_steps, train.images_per_device) == (40, (9,), 8)
    assert (train.evaluate_every, train.warmup_steps) == (7, 4)


def test_sizes_are_only_ever_reduced(machine):
    machine(cores=64)
    small = replace(COCO, data=DataConfig(short_edge=(224, 256), short_edge_test=256, long_edge=352))
    assert fine_tuning.adapt(small, set())[0].data.short_edge == (224, 256)


def test_schedules_keep_their_fractions():
    before = TrainConfig(steps=900, decay_steps=(660, 820), warmup_steps=50)
    assert scale_schedule(replace(before, steps=300), 900, set()).decay_steps == (220, 273)
    assert scale_schedule(replace(before, steps=1800), 900, set()).decay_steps == (1320, 1640)
    short = scale_schedule(replace(before, steps=2), 900, set())
    assert short.decay_steps == (1, 2) and short.warmup_steps == 0
    kept = scale_schedule(replace(before, steps=300), 900, {"train.decay_steps", "train.warmup_steps"})
    assert kept == replace(before, steps=300)
