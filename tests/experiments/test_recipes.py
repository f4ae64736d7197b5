"""Recipes after the paper: the models that their weights are imported as, and their schedules."""

import json
from dataclasses import replace

import pytest
from library_models import zero_tensors

from experiments._results import RECIPE_COSTS, settings_of
from experiments.recipes import FACTS, compiled_recipes
from mrcnn_jax import presets
from mrcnn_jax.config import to_dict
from mrcnn_jax.data.transforms import padded_size
from mrcnn_jax.weights import detectron2, torchvision, zoo
from mrcnn_jax.weights.import_export import identify_model

FAST = ("mask_rcnn_r50_c4_1x", "mask_rcnn_r50_fpn_100ep", "mask_rcnn_r50_fpn_v2")
EPOCH = 118_287
"""Training images of COCO 2017."""


@pytest.mark.parametrize(
    "first",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in compiled_recipes()],
)
def test_recipes_train_the_model_that_their_weights_are_imported_as(first):
    model = presets.get(first).model
    library = torchvision if first.endswith("v2") else detectron2
    tensors = zero_tensors(model, library.make_param_map)
    names = [name for name in FACTS if presets.get(name).model == model]
    assert names[0] == first
    for name in names:
        entry, data = zoo.ENTRIES[FACTS[name]["weights"]], presets.get(name).data
        imported = identify_model(None, tensors, entry.name, entry.settings or None).experiment
        trained = model
        if library is torchvision:  # a keypoint branch that it does not have
            trained = replace(model, keypoint=imported.model.keypoint)
        assert imported.model == trained
        assert data.short_edge in (imported.data.short_edge, (1024,))
        assert imported.data.short_edge_test == data.short_edge_test == 800


def test_schedules_are_those_of_the_libraries():
    """Steps, decays and images of a step, as the configuration files have them."""
    trains = {name: presets.get(name).train for name in FACTS}
    assert len(trains) == 17
    for name, train in trains.items():
        epochs = train.steps * train.reference_batch / EPOCH
        if name.endswith("x"):
            times = int(name[-2])
            assert (train.steps, train.learning_rate, train.weight_decay) == (times * 90_000, 0.02, 1e-4)
            assert train.decay_steps == ((60_000, 80_000) if times == 1 else (210_000, 250_000))
        else:
            expected = int(name.rpartition("_")[2].removesuffix("ep").replace("v2", "400"))
            assert epochs == pytest.approx(expected, rel=0.01)
            assert (train.learning_rate, train.reference_batch, train.weight_decay) == (0.1, 64, 4e-5)
            fractions = [round(step / train.steps, 2) for step in train.decay_steps]
            assert fractions == ([0.88, 0.96] if name.endswith("v2") else [0.89, 0.96])
            assert padded_size(presets.get(name).data, False) == (1024, 1024)


NOT_COMPILED = set(compiled_recipes())
"""Recipes whose step has not been compiled at full size yet."""


def test_published_costs_are_of_todays_recipes():
    rows = json.loads(RECIPE_COSTS.read_text())["rows"] if RECIPE_COSTS.exists() else []
    compiled = [name for name in compiled_recipes() if name not in NOT_COMPILED]
    assert [row["system"] for row in rows] == compiled
    for row in rows:
        assert settings_of(row["settings"]) == settings_of(to_dict(presets.get(row["system"])))
