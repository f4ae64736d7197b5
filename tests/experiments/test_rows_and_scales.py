"""The paper's tables: figures, systems that build at each scale, and rows that differ only in what a table
is about."""

import json
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
import tiny
from paths import GOLDEN

from experiments.rows import TABLES, all_systems
from experiments.scales import CITYSCAPES, PERSONS, SCALES, experiment_of, fit_to_devices
from mrcnn_jax import presets
from mrcnn_jax.config import BranchPoolConfig, ModelConfig, PoolConfig, RoIConfig, RPNConfig, to_dict
from mrcnn_jax.errors import InputError
from mrcnn_jax.models.systems import init_variables, make_model

SYSTEMS = all_systems()
SHAPES = SCALES["shapes"]


def systems_at(scale: str) -> list[str]:
    """Returns the systems that a scale has data for."""
    data = SCALES[scale].data
    return [name for name, system in SYSTEMS.items() if presets.get(system.base).data.dataset in data]


def test_figures_are_those_of_the_paper():
    """golden/paper_figures.json has all figures in the order in which the paper prints them."""
    printed = json.loads((GOLDEN / "paper_figures.json").read_text())
    figures = {
        key: [figure for row in table.rows for kind in row.metrics.values() for figure in kind.values()]
        for key, table in TABLES.items()
    }
    assert figures == printed and list(figures) == list(printed)
    assert [key for key, table in TABLES.items() if not table.verified] == ["table8", "table9", "related"]


def test_comparisons_are_of_trainable_rows_and_hold_in_the_paper():
    for table in TABLES.values():
        assert table.comparisons and table.claim
        for better, other, metrics, figure in table.comparisons:
            assert table.paper(better)[metrics][figure] > table.paper(other)[metrics][figure]
            assert {better, other} <= table.systems().keys()


def test_each_name_stands_for_one_system():
    for table in TABLES.values():
        for system in table.systems().values():
            assert all(SYSTEMS[other.name] == other for other in (*system.prerequisites(), system))


def for_arrays(model: ModelConfig) -> ModelConfig:
    """Returns a model with the same arrays, and defaults for fields that no array depends on."""
    heads = {
        part: replace(head, pool=BranchPoolConfig(size=head.pool.size))
        for part, head in (("box", model.box), ("mask", model.mask), ("keypoint", model.keypoint))
    }
    model = replace(model, **heads, pool=PoolConfig(), num_classes=model.num_classes or 3)
    return replace(
        model,
        rpn=RPNConfig(proposals_from="rpn" if model.rpn.proposals_from else ""),
        roi=RoIConfig(levels=model.roi.levels),
        box=replace(model.box, max_candidates=9, max_detections=9, nms_iou=0.5),
        keypoint=replace(model.keypoint, num_keypoints=7, classes=(0,)),
    )


@cache
def parameter_shapes(model: ModelConfig):
    variables = jax.eval_shape(lambda key: init_variables(make_model(model), key), jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf.shape, variables["params"])


@pytest.mark.parametrize("scale", SCALES)
def test_proposer_has_backbone_and_rpn_of_its_run(scale):
    for name in systems_at(scale):
        model = experiment_of(SYSTEMS[name], SCALES[scale]).model
        assert bool(model.rpn.proposals_from) == bool(SYSTEMS[name].rpn)
        if rpn := SYSTEMS[name].rpn:
            own = experiment_of(rpn, SCALES[scale]).model
            assert (own.backbone, own.rpn) == (model.backbone, replace(model.rpn, proposals_from=""))
            assert own.tasks == () and not own.rpn.proposals_from


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["paper", "shapes"])
def test_every_system_builds_and_its_proposer_has_the_layers_of_its_rpn(scale):
    models = {name: experiment_of(SYSTEMS[name], SCALES[scale]).model for name in systems_at(scale)}
    shapes = {name: parameter_shapes(for_arrays(model)) for name, model in models.items()}
    for name in models:
        if rpn := SYSTEMS[name].rpn:
            proposer = shapes[name]["proposer"]
            assert {part: shapes[rpn.name][part] for part in proposer} == proposer


def test_every_scale_has_valid_experiments_with_the_arrays_of_shapes():
    numbers = {scale: len(systems_at(scale)) for scale in SCALES}
    assert numbers == {"paper": 49, "shapes": 46, "shapes-long": 46, "nuclei": 36, "coco-small": 46}
    for scale in ("shapes-long", "nuclei", "coco-small"):
        for name in systems_at(scale):
            models = (experiment_of(SYSTEMS[name], SCALES[each]).model for each in (scale, "shapes"))
            assert len(set(map(for_arrays, models))) == 1


def test_a_system_without_data_at_a_scale_is_refused():
    with pytest.raises(InputError, match=f"scale shapes has no data set in place of {CITYSCAPES}"):
        experiment_of(SYSTEMS["cityscapes"], SHAPES)
    with pytest.raises(InputError, match=f"scale nuclei has no data set in place of {PERSONS}"):
        experiment_of(SYSTEMS["person_masks"], SCALES["nuclei"])


ABLATIONS = {
    "table2a": {"backbone", "roi", "box", "mask", "keypoint", "rpn"},
    "table2b": {"mask"},
    "agnostic": {"mask"},
    "table2c": {"pool"},
    "table2d": {"pool"},
    "table2e": {"mask"},
}
"""Parts of the model in which the rows of an ablation may differ."""


@pytest.mark.parametrize("key", ABLATIONS)
@pytest.mark.parametrize("scale", ["paper", "shapes"])
def test_rows_of_an_ablation_share_data_schedule_and_seed(key, scale):
    first, *others = (
        to_dict(experiment_of(system, SCALES[scale])) for system in TABLES[key].systems().values()
    )
    # table 2a: each backbone has its own RPN, and ResNeXt one image per device
    may_differ = {"init_from", "images_per_device"} if key == "table2a" else set()
    for other in others:
        assert other["data"] == first["data"] and other["evaluation"] == first["evaluation"]
        assert {name for name in first["train"] if first["train"][name] != other["train"][name]} <= may_differ
        differing = {part for part in first["model"] if first["model"][part] != other["model"][part]}
        assert differing and differing <= ABLATIONS[key]


def test_shared_layers_have_the_same_initial_weights():
    config = tiny.model_config()
    models = (make_model(config), make_model(replace(config, mask=replace(config.mask, head="mlp"))))
    init = jax.jit(lambda key: [init_variables(model, key)["params"] for model in models])
    fcn, mlp = init(jax.random.key(0))
    assert fcn.keys() == mlp.keys()
    for part in fcn.keys() - {"mask"}:
        jax.tree.map(np.testing.assert_array_equal, fcn[part], mlp[part])


def test_number_of_devices_keeps_the_number_of_images_seen():
    single = experiment_of(SYSTEMS["x101_fpn"], SCALES["paper"])
    assert (single.train.images_per_device, single.train.accumulate, single.train.steps) == (8, 8, 160_000)
    expected = {1: (8, 8, 160_000), 3: (2, 2, 213_333), 4: (2, 2, 160_000), 8: (1, 1, 160_000)}
    expected |= {16: (1, 1, 80_000)}
    for devices, (images, accumulate, steps) in expected.items():
        train = fit_to_devices(single, devices).train
        assert (train.images_per_device, train.accumulate, train.steps) == (images, accumulate, steps)
        assert train.decay_steps == (round(steps * 0.75),)
    assert fit_to_devices(experiment_of(SYSTEMS["r50_fpn"], SHAPES), 2).train.images_per_device == 4
