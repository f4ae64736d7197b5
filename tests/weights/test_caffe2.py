"""Conversion of the original Detectron's tensors equals Detectron2's own converter."""

import json

import numpy as np
import pytest
from paths import GOLDEN

from mrcnn_jax.errors import InputError
from mrcnn_jax.weights.caffe2 import convert_to_detectron2, is_caffe2

NAMES = json.loads((GOLDEN / "detectron1_names.json").read_text())
MODELS = ["mask_rcnn_R_50_FPN", "keypoint_rcnn_R_50_FPN", "mask_rcnn_R_50_C4"]


def random_tensors(names, rows=12):
    rng = np.random.default_rng(0)
    linear = ("fc6_w", "fc7_w", "cls_score_w", "bbox_pred_w", "fc1000_w", "pred_w")

    def shape(name):
        return (rows, 5) if name in linear else (rows, 3, 2, 2) if name.endswith("_w") else (rows,)

    return {name: rng.standard_normal(shape(name), np.float32) for name in names}


@pytest.mark.parametrize("model", MODELS)
def test_names_and_rows_equal_those_of_detectron2s_converter(model):
    expected = NAMES[model]
    tensors = random_tensors(expected["c2_to_d2"])
    assert is_caffe2(tensors)
    converted = convert_to_detectron2(tensors)
    assert not is_caffe2(converted)
    assert converted.keys() == {*expected["c2_to_d2"].values(), *expected["d2_without_c2"]}
    for name, renamed in expected["c2_to_d2"].items():
        if name.endswith("_riv"):
            np.testing.assert_array_equal(converted[renamed], tensors[name] + np.float32(1e-5))
        elif not (model.endswith("C4") and name.startswith("rpn_")):  # the converter leaves anchors alone
            np.testing.assert_array_equal(
                converted[renamed], tensors[name][expected["row_map"].get(name, slice(None))], err_msg=name
            )
    for name in expected["d2_without_c2"]:
        np.testing.assert_array_equal(
            converted[name], np.full(12, name.endswith("var"), np.float32), err_msg=name, strict=True
        )


@pytest.mark.parametrize(
    "per_anchor, name, renamed",
    [(1, "rpn_cls_logits", "objectness_logits"), (4, "rpn_bbox_pred", "anchor_deltas")],
)
@pytest.mark.parametrize("parameter, rank", [("weight", 4), ("bias", 1)])
@pytest.mark.parametrize("sizes", [[32, 64, 128, 256, 512], [256]])
def test_anchors_of_a_single_map_are_reordered_by_size(per_anchor, name, renamed, parameter, rank, sizes):
    ratios = [1, 2, 3]
    original = [1e4 * ratio + size + 0.1 * i for ratio in ratios for size in sizes for i in range(per_anchor)]
    expected = [1e4 * ratio + size + 0.1 * i for size in sizes for ratio in ratios for i in range(per_anchor)]
    tensors = random_tensors(["conv1_w", "conv_rpn_w"])
    rows = np.array(original).reshape(-1, *[1] * (rank - 1)) * np.ones((1, 3, 2, 2)[:rank])
    converted = convert_to_detectron2(tensors | {f"{name}_{parameter[0]}": rows})[
        f"proposal_generator.rpn_head.{renamed}.{parameter}"
    ]
    assert converted.shape == rows.shape
    np.testing.assert_array_equal(
        converted.reshape(len(rows), -1), np.repeat(np.array(expected)[:, None], rows[0].size, axis=1)
    )


def test_anchors_of_a_pyramid_keep_their_order():
    tensors = random_tensors(["conv1_w", "fpn_res2_2_sum_w", "rpn_cls_logits_fpn2_b"], rows=6)
    converted = convert_to_detectron2(tensors)
    np.testing.assert_array_equal(
        converted["proposal_generator.rpn_head.objectness_logits.bias"], tensors["rpn_cls_logits_fpn2_b"]
    )


def test_other_numbers_of_aspect_ratios_are_refused():
    with pytest.raises(InputError, match="3 aspect ratios per size: 8 rows"):
        convert_to_detectron2(random_tensors(["conv1_w", "conv_rpn_w", "rpn_cls_logits_b"], rows=8))


@pytest.mark.parametrize(
    "name, renamed",
    [
        ("res4_22_branch2b_bn_s", "backbone.bottom_up.res4.22.conv2.norm.weight"),
        ("res3_7_branch2c_w", "backbone.bottom_up.res3.7.conv3.weight"),
        ("fpn_inner_res4_22_sum_lateral_w", "backbone.fpn_lateral4.weight"),
        ("fpn_inner_res4_35_sum_lateral_b", "backbone.fpn_lateral4.bias"),
        ("fpn_res3_7_sum_b", "backbone.fpn_output3.bias"),
    ],
)
def test_names_of_deeper_networks_are_converted(name, renamed):
    tensors = random_tensors(["conv1_w", "fpn_res2_2_sum_w", name])
    np.testing.assert_array_equal(convert_to_detectron2(tensors)[renamed], tensors[name])


def test_dilated_res5_belongs_to_the_backbone():
    converted = convert_to_detectron2(random_tensors(["conv1_w", "conv_rpn_w", "fc6_w", "res5_0_branch1_w"]))
    assert "backbone.res5.0.shortcut.weight" in converted and "backbone.stem.conv1.weight" in converted


@pytest.mark.parametrize(
    "ends, classifier",
    [("s b", "fc1000"), ("gamma beta running_mean running_var", "fc1000"), ("s b rm riv", "pred")],
)
def test_backbone_alone_is_converted(ends, classifier):
    ends = ends.split()
    layers = {
        "res2_0_branch1": "res2.0.shortcut",
        "res4_22_branch2a": "res4.22.conv1",
        "res5_2_branch2c": "res5.2.conv3",
    }
    norms = {"res_conv1_bn": "stem.conv1", **{f"{layer}_bn": renamed for layer, renamed in layers.items()}}
    dropped = ["conv1_b", *(f"{layer}_b" for layer in layers), f"{classifier}_w", f"{classifier}_b"]
    tensors = random_tensors(
        [
            "conv1_w",
            *(f"{layer}_w" for layer in layers),
            *(f"{norm}_{end}" for norm in norms for end in ends),
            *dropped,
        ]
    )
    converted = convert_to_detectron2(tensors)
    assert len(converted) == 5 * len(norms)
    for layer, renamed in {"conv1": "stem.conv1", **layers}.items():
        np.testing.assert_array_equal(converted[f"{renamed}.weight"], tensors[f"{layer}_w"])
    for norm, renamed in norms.items():
        scale, bias, *statistics = (tensors[f"{norm}_{end}"] for end in ends)
        mean, var = (
            (statistics[0], statistics[1] + np.float32(1e-5))
            if statistics
            else np.float32([[0] * 12, [1] * 12])
        )
        for parameter, value in (
            ("weight", scale),
            ("bias", bias),
            ("running_mean", mean),
            ("running_var", var),
        ):
            np.testing.assert_array_equal(converted[f"{renamed}.norm.{parameter}"], value, strict=True)


def test_leftovers_of_training_are_dropped():
    tensors = random_tensors(["conv1_w", "conv_rpn_w", "cls_score_w"])
    extra = random_tensors(
        [
            "conv1_b",
            "fc1000_w",
            "fc1000_b",
            "cls_score_w_momentum",
            "res2_0_branch1_bn_s_momentum",
            "kps_score_w",
            "kps_score_b",
        ]
    )
    assert convert_to_detectron2(tensors | extra).keys() == convert_to_detectron2(tensors).keys()


def test_all_unknown_names_are_listed():
    names = [
        "conv1_w",
        "head_conv1_w",
        "head_conv1_gn_s",
        "res6_0_branch1_w",
        "retnet_cls_conv_n0_fpn3_w",
        "cls_score",
        "xconv5_mask_w",
    ]
    with pytest.raises(InputError) as error:
        convert_to_detectron2(random_tensors(names))
    assert str(error.value).endswith(f"have no tensors {', '.join(names[1:])}")


def test_class_agnostic_boxes_are_refused_but_not_two_classes():
    boxes = random_tensors(["conv1_w", "bbox_pred_w", "bbox_pred_b"], rows=8)
    with pytest.raises(InputError, match="class-agnostic boxes are not supported"):
        convert_to_detectron2(boxes | random_tensors(["cls_score_w"], rows=81))
    two = convert_to_detectron2(boxes | random_tensors(["cls_score_w"], rows=2))
    np.testing.assert_array_equal(two["roi_heads.box_predictor.bbox_pred.bias"], boxes["bbox_pred_b"][4:])


def test_class_agnostic_masks_keep_their_row():
    tensors = random_tensors(["conv1_w", "cls_score_w"]) | random_tensors(
        ["mask_fcn_logits_w", "mask_fcn_logits_b"], rows=1
    )
    converted = convert_to_detectron2(tensors)
    for parameter in ("weight", "bias"):
        np.testing.assert_array_equal(
            converted[f"roi_heads.mask_head.predictor.{parameter}"],
            tensors[f"mask_fcn_logits_{parameter[0]}"],
        )


def test_is_caffe2_is_false_for_other_libraries():
    assert not is_caffe2(
        {
            "conv1.weight": np.zeros(1),
            "backbone.body.conv1.weight": np.zeros(1),
            "stem.conv1.weight": np.zeros(1),
        }
    )
