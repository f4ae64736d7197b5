"""Parameter maps: layouts, rows of the background class, missing and misshapen tensors."""

import jax
import numpy as np
import pytest
import tiny

from mrcnn_jax.errors import InputError
from mrcnn_jax.weights import param_map as layouts
from mrcnn_jax.weights.param_map import (
    DENSE,
    ParamMap,
    ParamSpec,
    check_tensors,
    collect_unused_rows,
    flattened_roi,
    to_jax,
    to_source,
)

LAYOUTS = {
    "vector": (layouts.VECTOR, (6,)),
    "convolution": (layouts.CONV, (6, 5, 3, 2)),
    "dense": (DENSE, (6, 5)),
    "1x1": (layouts.CONV_1X1, (6, 5, 1, 1)),
    "transposed 4x4": (layouts.CONV_TRANSPOSE_4X4, (6, 5, 4, 4)),
    "transposed 2x2": (layouts.CONV_TRANSPOSE_2X2, (6, 5, 2, 2)),
    "flattened": (flattened_roi(3), (6, 4 * 9)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows", [{}, {"unused_rows": 2}, {"background_first": True}], ids=str)
def test_to_source_inverts_to_jax(layout, rows):
    layout, shape = LAYOUTS[layout]
    spec = ParamSpec("params/x", layout, **rows)
    tensor = np.random.default_rng(0).standard_normal(shape, np.float32)
    ours = spec.to_jax(tensor)
    unused = tensor[: spec.unused_rows] if spec.unused_rows else None
    np.testing.assert_array_equal(spec.to_source(ours, unused), tensor, strict=True)
    assert ours.size == tensor.size * (6 - spec.unused_rows) // 6
    zeros = spec.to_source(ours)
    assert not zeros[: spec.unused_rows].any()
    np.testing.assert_array_equal(zeros[spec.unused_rows :], tensor[spec.unused_rows :])


def test_layouts_place_elements():
    tensor = np.random.default_rng(0).standard_normal((6, 5, 2, 2), np.float32)
    upsampled = layouts.CONV_TRANSPOSE_2X2.to_jax(tensor)[4].reshape(2, 2, 5)
    np.testing.assert_array_equal(upsampled[1, 0], tensor[4, :, 1, 0])
    np.testing.assert_array_equal(layouts.CONV.to_jax(tensor)[1, 0, 3, 4], tensor[4, 3, 1, 0])
    np.testing.assert_array_equal(layouts.CONV_TRANSPOSE_4X4.to_jax(tensor)[1, 0, 4, 3], tensor[4, 3, 1, 0])
    matrix = np.random.default_rng(0).standard_normal((7, 2, 3, 3), np.float32)
    features = flattened_roi(3).to_jax(matrix.reshape(7, -1)).reshape(3, 3, 2, 7)
    np.testing.assert_array_equal(features[2, 1, 0], matrix[:, 0, 2, 1])
    scores = ParamSpec("params/x", background_first=True).to_jax(np.float32([9, 0, 1, 2]))
    np.testing.assert_array_equal(scores, [0, 1, 2, 9])


@pytest.fixture
def specs():
    specs = ParamMap()
    specs.add_layer("scores", "box/classes", DENSE, background_first=True)
    specs.add_layer("deltas", "box/deltas", DENSE, unused_rows=2)
    specs.add_norm("norm", "box/norm", "batch")
    return specs


@pytest.fixture
def tensors():
    rows = {"scores": 3, "deltas": 6, "norm": 5}
    weights = {
        f"{name}.weight": np.arange(rows[name] * 2.0, dtype=np.float32) for name in ("scores", "deltas")
    }
    tensors = {name: weight.reshape(-1, 2) for name, weight in weights.items()}
    tensors |= {f"{name}.bias": np.arange(rows[name], dtype=np.float32) for name in rows}
    vectors = ("weight", "running_mean", "running_var")
    return tensors | {f"norm.{name}": np.arange(5, dtype=np.float32) for name in vectors}


def test_tensors_are_converted_and_restored(specs, tensors):
    ours = to_jax(tensors, specs)
    box = ours["params"]["box"]
    np.testing.assert_array_equal(box["classes"]["kernel"], [[2, 4, 0], [3, 5, 1]])
    np.testing.assert_array_equal(box["classes"]["bias"], [1, 2, 0])
    np.testing.assert_array_equal(box["deltas"]["bias"], [2, 3, 4, 5])
    assert ours["batch_stats"]["box"]["norm"].keys() == {"mean", "var"}
    assert box["norm"].keys() == {"scale", "bias"}
    unused = collect_unused_rows(tensors, specs)
    lists = {name: rows.tolist() for name, rows in unused.items()}
    assert lists == {"deltas.weight": [[0, 1], [2, 3]], "deltas.bias": [0, 1]}
    tiny.assert_same(to_source(ours, specs, unused), tensors)
    np.testing.assert_array_equal(to_source(ours, specs)["deltas.bias"], [0, 0, 2, 3, 4, 5])


def test_missing_tensors_are_left_out(specs, tensors):
    some = {"deltas.bias": tensors["deltas.bias"]}
    ours = to_jax(some, specs)
    assert jax.tree.map(np.shape, ours) == {"params": {"box": {"deltas": {"bias": (4,)}}}}
    assert to_source(ours, specs).keys() == collect_unused_rows(some, specs).keys() == some.keys()


def test_check_tensors_lists_everything_that_does_not_fit(specs, tensors):
    template = to_jax(tensors, specs)
    assert check_tensors(tensors, specs, template, "file.npz") == []
    del tensors["norm.running_mean"], tensors["scores.bias"]
    missing = ["scores.bias", "norm.running_mean"]
    assert check_tensors(tensors, specs, template, "file.npz", partial=True) == missing
    tensors |= {
        "head.weight": np.zeros(2),
        "deltas.weight": np.zeros((4, 2)),
        "deltas.bias": np.zeros((6, 1)),
    }
    start = "the tensors of file.npz do not fit the model that they seem to be: "
    wrong = (
        "1 unexpected: head.weight; 2 of the wrong shape: deltas.weight [4, 2] instead of [6, 2], "
        "deltas.bias [6, 1] instead of [6]"
    )
    hint = "; --partial would initialise the missing ones randomly"
    with pytest.raises(InputError) as error:
        check_tensors(tensors, specs, template, "file.npz")
    assert str(error.value) == f"{start}2 missing: {', '.join(missing)}; {wrong}{hint}"
    with pytest.raises(InputError) as error:
        check_tensors(tensors, specs, template, "file.npz", partial=True)
    assert str(error.value) == start + wrong
