"""The training objective on validation images, to be compared with that of the training images."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.config import AUGMENTATIONS, Experiment
from mrcnn_jax.data.augment.example import training_example
from mrcnn_jax.data.dataset import DatasetSplit
from mrcnn_jax.data.pipeline import stack_examples
from mrcnn_jax.data.transforms import is_portrait
from mrcnn_jax.distributed import all_gather_object
from mrcnn_jax.inference.program import compiled
from mrcnn_jax.models.two_stage import TwoStage
from mrcnn_jax.structures import Batch
from mrcnn_jax.training.losses import loss_terms
from mrcnn_jax.typing import Array, Float, Int


def validation_losses(
    experiment: Experiment, split: DatasetSplit, variables: Mapping[str, Any], programs: Any = None,
    watch: Callable[[], None] = lambda: None,
) -> dict[str, float]:  # fmt: skip
    """Computes the losses of ``train.validation_loss_images`` images, spread evenly over a split.

    Images are those that the detector sees, not augmented; norms use their running statistics. Anchors and
    RoIs are sampled with a key of each image. Sums over images are divided once, by the sums of their
    divisors, so that the result depends on neither devices nor processes. A program for landscape and one for
    portrait images are compiled.

    Args:
        experiment: with ``data.short_edge_test`` and the model.
        split: with the classes of the model.
        variables: of the model, on the devices of this process.
        programs: directory of stored programs, if any.
        watch: called between images.

    Returns:
        "validation_loss" and its terms, such as "validation_loss_mask"; nothing if no image is asked for.

    Raises:
        InputError: an image cannot be read.
    """
    number = min(experiment.train.validation_loss_images, len(split))
    if not number:
        return {}
    images = np.linspace(0, len(split) - 1, number).round().astype(np.int32)
    program = compiled(experiment.model, experiment.train.dtype, True, programs, method=_image_losses)
    found: list[tuple[list[int], Any]] = []
    for chunk, batch in _chunks(experiment, split, images[jax.process_index() :: jax.process_count()]):
        found.append((chunk[:, 0].tolist(), program(variables, batch, chunk)))
        if len(found) > 1:
            jax.block_until_ready(found[-2][1])  # while the last one is computed
        watch()
    sums = {image: {name: np.asarray(values)[row, 0] for name, values in each.items()}
            for chunk, each in found for row, image in enumerate(chunk)}  # fmt: skip
    sums = {image: each for share in all_gather_object(sums) for image, each in share.items()}
    totals = {name: np.sum([sums[image][name] for image in images.tolist()], axis=0, dtype=np.float64)
              for name in sums[int(images[0])]}  # fmt: skip
    means = {f"validation_{name}": float(total / max(count, 1)) for name, (total, count) in totals.items()}
    return {"validation_loss": sum(means.values()), **means}


def _image_losses(model: TwoStage, batch: Batch, image: Int[Array, "B"]) -> dict[str, Float[Array, "B 2"]]:
    """Computes sum and divisor of each loss of one image (B is 1)."""
    keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(0), index))(image)
    terms = loss_terms(model, batch, keys, train=False)
    return {
        name: jnp.stack([term.total, jnp.asarray(term.count, jnp.float32)])[None]
        for name, term in terms.items()
    }


def _chunks(
    experiment: Experiment, split: DatasetSplit, images: Int[np.ndarray, "n"]
) -> Iterator[tuple[Int[np.ndarray, "D 1"], Batch]]:
    """Yields images of one orientation, one for each device, the last ones repeated to fill up."""
    data, conventions = experiment.data, experiment.model.conventions
    data = replace(data, augment=AUGMENTATIONS["none"], short_edge=(data.short_edge_test,))
    masks, devices = "masks" in experiment.model.tasks, jax.local_device_count()

    def load(index: int) -> Any:
        random = np.random.default_rng(0)  # nothing is drawn
        return training_example(split[index], split.info, data, random, masks, conventions)

    portrait = is_portrait(split.sizes[images])
    with ThreadPoolExecutor(data.threads) as threads:
        for group in (images[~portrait], images[portrait]):
            for first in range(0, len(group), devices):
                chunk = group[first : first + devices]
                chunk = np.pad(chunk, (0, devices - len(chunk)), mode="edge")[:, None]
                batch = stack_examples(list(threads.map(load, chunk[:, 0].tolist())))
                yield chunk, jax.tree.map(lambda leaf: leaf[:, None], batch)
