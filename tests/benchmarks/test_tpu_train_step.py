"""The training step compiled for TPUs without one: FLOPs, all-reduces and cycles, estimates, the result
file and its page."""

import json
import os
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
import tiny

from benchmarks._program import RESULTS
from benchmarks.tpu import _compile
from benchmarks.tpu import compile_train_step as tpu_compile
from benchmarks.tpu import report as tpu_report
from benchmarks.tpu._compile import compile_step
from benchmarks.tpu._estimate import assumptions, estimate_step, free_bytes, gradient_reductions, used_bytes
from benchmarks.tpu._hlo import PARTS, UNNAMED, AllReduce, all_reduces, cycles_by_part, estimated_cycles
from benchmarks.tpu._product_flops import product_flops, static_flops
from benchmarks.tpu._programs import CHIPS, GIB
from benchmarks.tpu._rows import COLUMNS, read_ablation, read_rows
from benchmarks.tpu._step_flops import roi_programs, step_and_arguments
from mrcnn_jax import presets
from mrcnn_jax.models.mask_rcnn import MaskRCNN
from mrcnn_jax.models.systems import init_variables
from mrcnn_jax.runtime import compiling_for

TEXT = """
%sum.1 (x.1: f32[], y.1: f32[]) -> f32[] {
  %x.1 = f32[] parameter(0)
  %y.1 = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%x.1, %y.1)
}

%body.1 (state.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state.1 = (s32[], f32[8]) parameter(0)
  %counts.1 = f32[6]{0:T(128)} all-reduce(%counts.0), channel_id=3, to_apply=%sum.1
  ROOT %fusion.1 = (s32[], f32[8]) fusion(%state.1), calls=%fused.1, backend_config={"estimated_cycles":"7"}
}

%few.1 (x.2: f32[8]) -> f32[8] {
  %x.2 = f32[8] parameter(0)
  ROOT %copy.2 = f32[8] copy(%x.2), backend_config={"window_config":{"estimated_cycles":"5"}}
}

%many.1 (x.3: f32[8]) -> f32[8] {
  %x.3 = f32[8] parameter(0)
  ROOT %copy.3 = f32[8] copy(%x.3), backend_config={"window_config":{"estimated_cycles":"50"}}
}

ENTRY %main.1 (gradient.1: f32[3,3,4,8], gradient.2: bf16[8,16], take.1: s32[]) -> f32[8] {
  %gradient.1 = f32[3,3,4,8]{3,2,1,0:T(8,128)} parameter(0)
  %gradient.2 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(1)
  %take.1 = s32[]{:T(128)} parameter(2)
  %both.1 = (f32[3,3,4,8]{3,2,1,0}, bf16[8,16]{1,0:T(8,128)S(1)}) all-reduce(%gradient.1), to_apply=%sum.1
  %first.1 = f32[3,3,4,8]{3,2,1,0:T(8,128)} get-tuple-element(%both.1), index=0
  %begin.1 = (s32[], f32[8]) tuple(%take.1, %first.1)
  %while.1 = (s32[], f32[8]) while(%begin.1), condition=%condition.1, body=%body.1
  %part.1 = f32[8] get-tuple-element(%while.1), index=1
  %which.1 = f32[8] conditional(%take.1, %part.1, %part.1), branch_computations={%few.1, %many.1}
  ROOT %out.1 = f32[8] negate(%which.1), backend_config={"window_config":{"estimated_cycles":"1000"}}
}
"""
ROW = {
    "topology": "v5e:2x4", "chips": 8, "experiment": "mask_rcnn_r50_fpn", "images_per_chip": 2,
    "image_size": [800, 1344], "dtype": "bfloat16", "parallel": "pmap", "accumulate": 1, "remat": False,
    "reduce_dtype": "float32", "changes": {}, "effort": 0.0, "jax": "1", "libtpu": "2", "flops": 3e12,
    "product_flops": 1.97e12, "cycles": 75_000_000, "bytes_accessed": 5e10, "argument_bytes": 5 * GIB,
    "output_bytes": 4 * GIB, "alias_bytes": 3 * GIB, "temp_bytes": 2 * GIB, "code_bytes": GIB,
    "compile_seconds": 60, "compile_cpu_seconds": 90,
    "all_reduces": [[80, 150_000_000], [1, 50_000_000], [6, 24]],
}  # fmt: skip
OUT_OF_MEMORY = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (18.25G) "
    "exceeds available HBM (15.75G). Details",
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 18.25G "
    "of 15.75G hbm. Exceeded by 2.50G.\n\nTotal",
)


def test_all_reduces_of_a_text():
    assert all_reduces(TEXT) == [AllReduce(2, 4 * 3 * 3 * 4 * 8 + 2 * 8 * 16), AllReduce(1, 24)]


def test_cycles_count_loops_once_and_the_most_expensive_branch():
    assert estimated_cycles(TEXT) == 7 + 50 + 1000
    assert estimated_cycles(TEXT.replace("estimated_cycles", "x")) is None


def test_cycles_by_part_are_found_by_path():
    assert cycles_by_part(TEXT)[UNNAMED] == (7 + 50 + 1000, 0)
    paths = {
        "calls=%fused.1": "jit(step)/jvp(MaskRCNN.roi_features)/while/body/dot_general",
        "copy(%x.3)": "jit(step)/transpose(jvp(MaskRCNN.pyramid))/backbone/res3_0/conv1/add",
        "negate(%which.1)": "jit(step)/mul",
    }
    text = TEXT
    for place, path in paths.items():
        text = text.replace(place, f'{place}, metadata={{op_name="{path}"}}')
    cycles = cycles_by_part(text)
    expected = {"RoI pooling": (7, 0), "res3": (0, 50), "targets, losses, update": (1000, 0)}
    assert cycles == dict.fromkeys([*PARTS, UNNAMED], (0, 0)) | expected
    images = text.replace("MaskRCNN.roi_features)/while", "MaskRCNN.pyramid)/jit(_where)/while")
    assert cycles_by_part(images)["stem and res2"] == (7, 0)


@pytest.mark.parametrize(
    "side, size, stride, padding, groups, dilation",
    [(15, 3, 1, 1, 1, 1), (16, 3, 2, 1, 4, 1), (15, 1, 2, 0, 1, 1), (17, 7, 2, 3, 1, 2)],
)
def test_flops_of_convolutions_and_gradients_are_those_of_xla(side, size, stride, padding, groups, dilation):
    def total(images, kernel):
        return jax.lax.conv_general_dilated(
            images, kernel, (stride, stride), [(padding, padding)] * 2, rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        ).sum()  # fmt: skip

    images = jax.ShapeDtypeStruct((2, side, 20, 8), jnp.float32)
    kernel = jax.ShapeDtypeStruct((size, size, 8 // groups, 12), jnp.float32)
    for argument in range(2):
        gradient = jax.grad(total, argument)
        expected = jax.jit(gradient).lower(images, kernel).cost_analysis()["flops"]
        assert static_flops(jax.make_jaxpr(gradient)(images, kernel)) == expected


def test_static_flops_count_known_iterations():
    def program(matrix, number):
        matrix = jax.lax.scan(lambda x, _: (x @ x, None), matrix, length=5)[0]
        matrix = jax.lax.fori_loop(0, number, lambda _, x: x @ x, matrix)
        return jax.lax.cond(number > 3, lambda x: x, lambda x: x @ x @ x, matrix)

    traced, product = jax.make_jaxpr(program)(jnp.ones((8, 8)), 5), 2 * 8**3
    assert static_flops(traced) == (5 + 2) * product
    assert static_flops(traced, iterations=7) == (5 + 7 + 2) * product


def traced(experiment):
    step, arguments = step_and_arguments(experiment, jax.devices()[:1])
    with compiling_for("tpu"):
        return jax.make_jaxpr(step)(*arguments)


def test_flops_of_a_step_are_those_of_loops_that_data_decide_and_of_the_rest():
    experiment = tiny.experiment(images_per_device=6)
    program = traced(experiment)
    outside, once = (static_flops(program, iterations) for iterations in (0, 1))
    ((pool, arrays, channels),) = roi_programs(experiment)  # the tiny detector's branches pool alike
    with compiling_for("tpu"):
        one_iteration = static_flops(jax.make_jaxpr(pool)(*arrays), 1)
    # only the loops of the RoI operations compute products in the step, and they have more than one iteration
    assert once - outside == channels * one_iteration < channels * product_flops(pool, arrays)
    # half the images, twice; neither number of images is cut into strips
    halves = tiny.experiment(images_per_device=6, accumulate=2)
    assert static_flops(traced(halves)) == outside


def test_roi_operations_of_a_step_with_batch_norm_are_known():
    model = tiny.model_config(norm="batch", pyramid_norm="batch")
    _, (maps, *_), channels = next(roi_programs(tiny.experiment(model)))
    assert channels == model.backbone.pyramid_channels and maps[0].shape[-1] == 1


def test_estimates_by_hand():
    assert used_bytes(ROW) == 9 * GIB and free_bytes(ROW) == 6.75 * GIB
    assert gradient_reductions(ROW) == [150_000_000, 50_000_000]
    expected = estimate_step(ROW)
    assert expected.least_ms == pytest.approx(10) and expected.cycles_ms == pytest.approx(50)
    ring = 2 * 7 / 8 * 200_000_024 / 50e9 * 1e3
    assert expected.reduce_ms == pytest.approx((ring / 4, ring))
    assert expected.scaling == pytest.approx((10 / (10 + ring), 50 / (50 + ring / 4)))
    alone = estimate_step(ROW | {"chips": 1, "cycles": None})
    assert alone.cycles_ms is None and alone.reduce_ms == (0, 0) and alone.scaling == (1, 1)
    quick = estimate_step(ROW | {"effort": -1})  # its cycles are not those of a run's program
    assert quick.cycles_ms is None
    assert quick.scaling == pytest.approx((10 / (10 + ring), 10 / (10 + ring / 4)))


def test_assumptions_name_every_chip():
    assert all(f"{name}: {chip.links} links" in assumptions() for name, chip in CHIPS.items())


def rpn_alone():
    return tiny.experiment(replace(tiny.model_config(), tasks=()))


@pytest.fixture
def cpu_for_tpu(monkeypatch):
    """This machine's compiler and its eight devices in place of libtpu and a slice; a tiny RPN without a
    detector."""
    monkeypatch.setattr(tpu_compile, "topology", lambda _: jax.devices("cpu"))
    monkeypatch.setattr(_compile, "topology", lambda _: jax.devices("cpu"))
    monkeypatch.setattr(tpu_compile, "version", lambda _: "none")
    monkeypatch.setitem(presets.PRESETS, "tiny", rpn_alone)


def test_step_is_compiled_and_its_figures_are_written(tmp_path, cpu_for_tpu, monkeypatch, capsys):
    out = tmp_path / "out.json"
    arguments = ["--experiment", "tiny", "--topology", "v5e:2x4", "--out", str(out)]
    assert tpu_compile.main(arguments) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["chips"], row["image_size"], row["dtype"], row["changes"]) == (8, [64, 96], "bfloat16", {})
    model = MaskRCNN(rpn_alone().model)
    params = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))["params"]
    param_bytes = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    assert sum(size for _, size in row["all_reduces"]) == pytest.approx(param_bytes, rel=0.01)
    assert row["alias_bytes"] > 2 * param_bytes  # the state is donated: parameters and momentum
    printed = capsys.readouterr().out
    assert "1 of 64 x 96, bfloat16" in printed and assumptions() in printed

    def compile_step(experiment, name, effort):
        return row | {"topology": name, "effort": effort}

    monkeypatch.setattr(tpu_compile, "compile_step", compile_step)
    again = [*arguments, "--train.parallel", "shard_map"]
    for _ in range(2):
        assert tpu_compile.main(again) == 0
    rows = json.loads(out.read_text())["rows"]
    assert rows[0] == row and [other["changes"] for other in rows[1:]] == [{"train.parallel": "shard_map"}]
    assert tpu_compile.main([*again, "--effort", "-0.5"]) == 0
    assert [other["effort"] for other in json.loads(out.read_text())["rows"]] == [0, 0, -0.5]


def test_every_field_of_an_experiment_can_be_given(cpu_for_tpu):
    options, experiment, changes = tpu_compile.parse(
        ["--experiment=tiny", "--train.images-per-device", "2", "--model.mask.layers", "0"]
        + ["--topology", "v4:2x2x2", "v6e:2x4"]
    )
    assert options.topology == ("v4:2x2x2", "v6e:2x4")
    assert changes == {"model.mask.layers": 0, "train.images_per_device": 2}
    assert experiment.train.images_per_device == 2 and experiment.model.mask.layers == 0
    assert experiment.name == "tiny"
    _, _, changes = tpu_compile.parse(["--experiment", "tiny", "--train.dtype", "float32"])
    assert changes == {"train.dtype": "float32"}


@pytest.mark.parametrize("message", OUT_OF_MEMORY)
def test_refused_step_reports_needed_memory(message, tmp_path, cpu_for_tpu, monkeypatch, capsys):
    def refuse(*_):
        raise RuntimeError(message)

    monkeypatch.setattr(_compile, "compile_for", refuse)
    out = tmp_path / "out.json"
    assert tpu_compile.main(["--experiment", "tiny", "--topology", "v5e:2x4", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    words = ("18.25G", "15.75G", "images-per-device", "remat", "accumulate")
    assert error.count("\n") == 1 and all(word in error for word in words)
    (row,) = json.loads(out.read_text())["rows"]
    assert row["unavailable"].startswith("Ran out of memory") and "18.25G" in row["unavailable"]
    assert "| refused | - |" in tpu_report.page([row])


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--experiment", "nothing"], "mask_rcnn_x101_fpn"),
        (["--topology", "v5e:2x4", "v5e:3x3"], "v5e:2x2"),
        (["--out", "FILE"], "no result file"),
        (["--effort", "1"], "--effort"),
    ],
)
def test_invalid_options_are_refused(arguments, named, tmp_path, capsys, monkeypatch):
    devices = SimpleNamespace(devices=jax.devices())
    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", lambda **_: devices)
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    assert tpu_compile.main([str(wrong) if word == "FILE" else word for word in arguments]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1 and wrong.read_text() == "{}"


def test_published_page_is_current():
    rows = read_rows(RESULTS / tpu_report.FILE)
    ablation = read_ablation(RESULTS / tpu_report.ABLATION)
    assert (RESULTS / tpu_report.PAGE).read_text() == tpu_report.page(rows, ablation)


def test_page_shows_parts_before_and_after():
    row = ROW | {"parts": {"res3": [1_500_000, 2_000_000]}, "before": {"res3": [3_000_000, 4_000_000]}}
    assert "| res3 | 1.50 | 2.00 | 3.00 | 4.00 |" in tpu_report.page([row])
    ablation = [{"part": "res4", "with": 5_000, "without": 2_000}]
    assert "| res4 | 5,000 | 2,000 |" in tpu_report.page([row], ablation)


def test_page_shows_the_effect_of_effort():
    quick = ROW | {"effort": -1.0, "temp_bytes": GIB, "compile_cpu_seconds": 30}
    text = tpu_report.page([quick, ROW])
    assert "on v5e:2x4: HBM 8.00 GiB with -1, 9.00 with 0; compilation 30 and 90 CPU seconds" in text
    assert "Effect of the compiler's effort" not in tpu_report.page([quick, ROW | {"topology": "v5e:8x8"}])


def test_page_has_a_line_for_each_row(tmp_path, capsys):
    row = ROW | {"changes": {"train.remat": True, "train.images_per_device": 2}}
    (tmp_path / tpu_report.FILE).write_text(json.dumps({"rows": [row]}))
    assert tpu_report.main([str(tmp_path)]) == 0
    lines = (tmp_path / tpu_report.PAGE).read_text().splitlines()
    (line,) = (line for line in lines if "| v5e:2x4" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    expected = ["mask_rcnn_r50_fpn `--train.remat`", "2 of 800 x 1344, bfloat16", "9.00", "6.75", "1.97"]
    assert cells[2:7] == expected and len(cells) == len(COLUMNS)
    assert tpu_report.main([str(tmp_path / "nowhere")]) == 2
    assert "no rows" in capsys.readouterr().err


HAS_TPU_COMPILER = os.environ.get("MRCNN_TPU_TOPOLOGY") and find_spec("libtpu")


@pytest.mark.skipif(not HAS_TPU_COMPILER, reason="needs MRCNN_TPU_TOPOLOGY=1 and libtpu")
def test_step_is_compiled_for_a_slice_of_tpus():
    row = compile_step(tiny.experiment(dtype="bfloat16"), "v5e:2x4", effort=-1)
    assert row["chips"] == 8 and sum(gradient_reductions(row)) > 0 and row["cycles"] > 0
    assert 0 < used_bytes(row) < CHIPS["v5e"].available
