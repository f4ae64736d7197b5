"""Benchmark of the RoI operations, on a few kilobytes: result files, tables, refusals, equality."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rois import BOXES, PYRAMID, SOLID

from benchmarks.roi import _torchvision_process as torchvision_process
from benchmarks.roi import measure, report
from benchmarks.roi._one_hot import one_hot_align
from benchmarks.roi._programs import DTYPES, OPERATIONS, Group, make_inputs, program
from benchmarks.roi._workloads import TINY, WORKLOADS
from mrcnn_jax import ops
from mrcnn_jax.data.image_io import read_image

STRIDES = (2, 4, 8)
TORCHVISION = os.environ.get("MRCNN_TORCHVISION_PYTHON")
TRUE = shutil.which("true")  # takes any arguments, and ends
FAST = ops.roi_implementations("align", "average", 2)[0]


@pytest.fixture(autouse=True)
def small_and_alone(monkeypatch):
    """A copy of a few kilobytes; no torchvision unless a test asks for it."""
    monkeypatch.setattr(measure, "COPIED", 2**12)
    monkeypatch.delenv("MRCNN_TORCHVISION_PYTHON", raising=False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder that a run leaves."""
    folder = tmp_path_factory.mktemp("roi")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "COPIED", 2**12)
        selection = [
            "--operations",
            "align",
            "--workloads",
            "tiny",
            "--implementations",
            FAST,
            "one-hot einsum",
            "--dtypes",
            "float32",
        ]
        assert (
            measure.main(["--quick", *selection, "--rounds", "2", "--out", str(folder / "roi_ops_cpu.json")])
            == 0
        )
    return folder


def content(folder, name="roi_ops_cpu"):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.parametrize("levels", [1, 3])
def test_one_hot_matrices_equal_roi_align(levels):
    boxes = np.stack([BOXES[SOLID], BOXES[SOLID][::-1]])
    assigned = np.random.default_rng(3).integers(0, levels, boxes.shape[:2]).astype(np.int32)
    cotangent = np.random.default_rng(4).standard_normal((*boxes.shape[:2], 3, 3, 2), dtype=np.float32)

    def both(pool, pyramid):
        pooled, backward = jax.vjp(
            lambda pyramid: pool(pyramid, boxes, assigned, STRIDES[:levels], 3), pyramid
        )
        return pooled, backward(cotangent)[0]

    pyramid = [jnp.asarray(level) for level in PYRAMID[:levels]]
    (pooled, gradient), (expected, expected_gradient) = (
        jax.jit(both, static_argnums=0)(pool, pyramid) for pool in (one_hot_align, ops.pool_rois)
    )
    np.testing.assert_allclose(pooled, expected, atol=2e-5, rtol=0)
    for level, (ours, theirs) in enumerate(zip(gradient, expected_gradient, strict=True)):
        assert np.abs(theirs).max() > 0
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0, err_msg=f"level {level}")


def test_run_writes_a_row_for_each_implementation_and_direction(measured):
    result = content(measured)
    rows = {(row["implementation"], row["direction"]): row for row in result["rows"]}
    directions = ("forward", "forward+backward")
    assert set(rows) == {(name, direction) for name in (FAST, "one-hot einsum") for direction in directions}
    assert (
        len(rows) == len(result["rows"])
        and result["not_measured"] == []
        and result["copy_gigabytes_per_second"] > 0
    )
    what = {
        "operation": "align",
        "reduction": "average",
        "samples": 2,
        "workload": "tiny",
        "batch": 1,
        "dtype": "float32",
    }
    default = ops.default_implementation("align", "average", 2, jax.default_backend())
    for (name, _), row in rows.items():
        assert what.items() <= row.items() and row["is_default"] == (name == default)
        assert 0 < row["min_ms"] <= row["median_ms"] and row["rounds"] == 2
        assert row["compile_seconds"] > 0 and row["share_of_copy"] > 0
        assert row["temp_bytes"] >= 0 and row["bytes_accessed"] > 0 and row["flops"] > 0
    features, pooled = 4 * 8 * (12 * 16 + 6 * 8), 4 * 6 * 3 * 3 * 8
    for direction, outputs, times in (("forward", pooled, 1), ("forward+backward", pooled + features, 2)):
        row = rows[FAST, direction]
        assert outputs <= row["output_bytes"] <= outputs + 64  # pointers of a tuple
        assert (
            row["necessary_bytes"] == times * (features + pooled) + 6 * 4 * 4 + 6 * 4
            and row["bound_bytes"] == 2 * pooled + features
        )


def test_result_describes_the_machine_without_folders(measured):
    result = content(measured)
    assert (
        result["machine"]["platform"] == "cpu"
        and result["machine"]["jax"] == jax.__version__
        and result["machine"]["torchvision"] is None
    )
    command = f"{measure.PROGRAM} --quick --operations align --workloads tiny --implementations {FAST}"
    assert result["command"].startswith(command)
    assert str(Path.home()) not in json.dumps(result) and str(measured) not in json.dumps(result)


def test_run_draws_tables_and_plots(measured):
    page = (measured / "ROI_OPS.md").read_text()
    assert (
        "### tiny, 1 x float32" in page
        and f"{FAST}" in page
        and "| RoIAlign, average of 2 x 2 | one-hot einsum |" in page
    )
    assert (
        "No GPU results yet" in page
        and "No CPU results yet" not in page
        and "torchvision was not measured" in page
    )
    assert read_image(measured / "roi_ops_cpu_times.png").std() > 5 and "(roi_ops_cpu_times.png)" in page
    assert not (measured / "roi_ops_cpu_speed.png").exists() and not [*measured.glob("*.new")]


def test_groups_without_time_are_listed(tmp_path):
    arguments = [
        "--workloads",
        "tiny",
        "--operations",
        "align",
        "pool",
        "--minutes",
        "1e-9",
        "--out",
        str(tmp_path / "roi_ops_cpu.json"),
    ]
    assert measure.main(arguments) == 0
    result = content(tmp_path)
    assert result["rows"] == [] and {group["operation"] for group in result["not_measured"]} == {
        "align",
        "pool",
    }
    assert {(group["batch"], group["dtype"]) for group in result["not_measured"]} == {
        (1, "float32"),
        (2, "float32"),
        (1, "bfloat16"),
        (2, "bfloat16"),
    }
    assert (
        "RoIPool: forward and forward+backward"
        in (tmp_path / "ROI_OPS.md").read_text().split("### Not measured")[1]
    )


def test_failure_is_a_row_with_the_reason(monkeypatch):
    def prepare(group, implementation):
        if implementation == "one-hot einsum":
            raise NotImplementedError("no such products here\nand more")
        return {}, lambda: 1e-3

    monkeypatch.setattr(measure, "prepare", prepare)
    group = Group(TINY, 1, "float32", "align", "forward", (FAST, "one-hot einsum"))
    timed, failed = measure.measure(group, None, rounds=5, seconds=1.0)
    assert (
        (timed["median_ms"], timed["rounds"]) == (1.0, 5)
        and failed["unavailable"] == "no such products here"
        and "median_ms" not in failed
    )


def test_slow_programs_are_timed_less_often_and_take_turns(monkeypatch):
    seconds, calls = {"a": 0.01, "b": 0.3, "c": 5.0}, []

    def prepare(group, implementation):
        return {}, lambda: calls.append(implementation) or seconds[implementation]

    monkeypatch.setattr(measure, "prepare", prepare)
    rows = measure.measure(
        Group(TINY, 1, "float32", "align", "forward", ("a", "b", "c")), None, rounds=7, seconds=1.2
    )
    assert [row["rounds"] for row in rows] == [7, 4, 1]
    assert "".join(calls) == "aabbc" + "abc" + "ba" + "ab" + "ab" + "aaa"


def test_plan_has_every_workload_and_operation():
    whole = {
        (group.workload.name, group.batch, group.dtype, group.name, group.direction)
        for group in measure.plan(measure.Options(all=True), True)
    }
    usual = {
        (group.workload.name, group.batch, group.dtype, group.name, group.direction)
        for group in measure.plan(measure.Options(), True)
    }
    directions = {
        workload.name: ("forward", "forward+backward")[: 1 + workload.training]
        for workload in WORKLOADS.values()
    }
    cells = [(name, direction) for name, of_workload in directions.items() for direction in of_workload]
    every = {
        (name, batch, dtype, kind, way)
        for name, way in cells
        for batch in (1, 2)
        for dtype in DTYPES
        for kind in OPERATIONS
    }
    assert whole == every
    elsewhere = {
        (name, kind)
        for name in ("FPN mask training", "FPN inference")
        for kind in ("align-adaptive", "align-max", "warp")
    }
    assert usual < every and usual >= {
        cell for cell in every if cell[1:3] == (1, "float32") and (cell[0], cell[3]) not in elsewhere
    }
    assert usual >= {cell for cell in every if cell[0] == "FPN box training" and cell[3] in ("align", "pool")}
    selected = [tuple(group.key.values()) for group in measure.plan(measure.Options(workloads=("C4",)), True)]
    assert len(set(selected)) == len(selected)
    assert {name for group in measure.plan(measure.Options(), True) for name in group.implementations} >= {
        "one-hot einsum",
        "torchvision",
        FAST,
    }


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--operations", "crop"], "--operations does not know 'crop': choose from 'align', 'pool'"),
        (["--workloads", "C5"], "--workloads does not know 'C5': choose from 'one map', 'C4'"),
        (["--implementations", "magic"], "--implementations does not know 'magic'"),
        (["--dtypes", "float16"], "--dtypes does not know 'float16': choose from 'float32', 'bfloat16'"),
        (["--minutes", "0"], "--minutes must be more than 0, not 0"),
        (
            ["--operations", "warp", "--dtypes", "bfloat16"],
            "Nothing that these options select is in the plan",
        ),
        (["--out", "result.json"], "--out must be named roi_ops_*.json"),
        (
            ["--torchvision-python", "nowhere/python"],
            "nowhere/python cannot be run: No such file or directory",
        ),
        (["--torchvision-python", TRUE], f"{TRUE} does not run torchvision on this kind of device"),
    ],
)
def test_invalid_options_are_refused_in_a_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert measure.main(arguments) == 2
    refusal = capsys.readouterr().err
    assert (
        refusal.startswith(f"{measure.PROGRAM}: {sentence}")
        and refusal.count("\n") == 1
        and not [*tmp_path.iterdir()]
    )


def row(implementation, direction, milliseconds, **others):
    """A row of a result file, with numbers that are easy to divide."""
    what = {
        "operation": "pool",
        "reduction": "max",
        "samples": None,
        "workload": "C4",
        "batch": 1,
        "dtype": "float32",
    }
    sizes = {
        "direction": direction,
        "implementation": implementation,
        "is_default": implementation == "own",
        "necessary_bytes": 10,
        "bound_bytes": 3_000_000,
        "temp_bytes": 1_500_000,
        "flops": 1e9,  # which counts loops once
        "product_flops": 2e9,
        "least_ms": 0.5,
    }
    times = {"median_ms": milliseconds, "share_of_copy": 0.25} if milliseconds else {}
    return what | sizes | times | others


def results_file(folder, name, platform, rows):
    machine = {
        "platform": platform,
        "device_kind": "Chip",
        "processor": "Chip",
        "cores": 2,
        "jax": "1",
        "torchvision": "2",
    }
    (folder / f"{name}.json").write_text(json.dumps({"machine": machine, "rows": rows, "not_measured": []}))


def test_tables_compare_with_torchvision_and_mark_compiled_programs(tmp_path, capsys):
    rows = [
        row("own", "forward", 5.0),
        row("own", "forward+backward", 40.0),
        row("torchvision", "forward", 10.0),
        row("torchvision", "forward+backward", 10.0),
    ]
    lost = row("torchvision", "forward", None, dtype="bfloat16", unavailable="no kernel")
    results_file(tmp_path, "roi_ops_gpu", "gpu", [*rows, lost])
    results_file(
        tmp_path,
        "roi_ops_tpu",
        "tpu",
        [row("own", "forward", None, compile_seconds=2.5, bytes_accessed=7_000_000, topology="v9")],
    )
    assert report.main([str(tmp_path)]) == 0 and "ROI_OPS.md" in capsys.readouterr().out
    page = (tmp_path / "ROI_OPS.md").read_text()
    assert "| RoIPool | **own** | 5 | 40 | 2x / 0.25x | - | 1.5 / 1.5 | 25% / 25% |" in page
    assert "Not available: torchvision, RoIPool: forward (no kernel)." in page
    assert (
        "## TPU (Chip): compiled, not run" in page
        and "### C4, 1 x float32 on v9" in page
        and "| RoIPool | **own** | 2.5 | 1.5 | 7 | 2 | 0.5 |" in page
    )
    assert "No CPU results yet" in page and "No TPU results yet" in page and "No GPU results yet" not in page
    assert read_image(tmp_path / "roi_ops_gpu_speed.png").std() > 5
    assert not [*tmp_path.glob("roi_ops_tpu*.png")]
    summary = report.summary(report.read_results(tmp_path))
    assert (
        "| GPU (Chip) | C4 |" in summary
        and "| RoIPool | 5 / 40 (2x / 0.25x) |" in summary
        and summary in page
    )


def test_report_refuses_other_files(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert (
        "contains no roi_ops_*.json: run `python -m benchmarks.roi.measure` first." in capsys.readouterr().err
    )
    (tmp_path / "roi_ops_cpu.json").write_text("{}")
    assert report.main([str(tmp_path)]) == 2
    assert (
        "roi_ops_cpu.json is not a result file of the RoI operations" in capsys.readouterr().err
        and not (tmp_path / "ROI_OPS.md").exists()
    )


def test_published_tables_are_made_from_the_results():
    plots = sorted(path.name for path in report.RESULTS.glob("roi_ops_*.png"))
    assert (report.RESULTS / report.TABLES).read_text() == report.tables(report.read_results(), plots)


def test_default_implementation_is_the_fastest_measured_on_cpu():
    """Over all workloads and directions of an operation together."""
    times = {}
    for row in report.read_results()["roi_ops_cpu"]["rows"]:
        if (
            "median_ms" in row
            and (row["batch"], row["dtype"]) == (1, "float32")
            and row["implementation"] != "torchvision"
        ):
            kind = row["operation"], row["reduction"], row["samples"]
            times.setdefault(kind, {}).setdefault(row["implementation"], {})[
                row["workload"], row["direction"]
            ] = row["median_ms"]
    assert len(times) == len(OPERATIONS)
    for (operation, reduction, samples), by_name in times.items():
        default = by_name.pop(ops.default_implementation(operation, reduction, samples or 0, "cpu"))
        for name, other in by_name.items():
            ratios = [other[cell] / default[cell] for cell in other]
            assert np.exp(np.log(ratios).mean()) > 0.97, (operation, reduction, samples, name)


@pytest.mark.slow
@pytest.mark.skipif(
    not TORCHVISION,
    reason="MRCNN_TORCHVISION_PYTHON does not name a Python interpreter that has torch and torchvision",
)
def test_torchvision_computes_the_same(tmp_path):
    with torchvision_process.start(TORCHVISION) as side:
        inputs = make_inputs(TINY, 2, "float32")
        for name in ("align", "align-adaptive", "pool"):
            group = Group(TINY, 2, "float32", name, "forward+backward", ("torchvision",))
            (timed,) = measure.measure(group, side, rounds=2, seconds=1.0)
            assert timed["rounds"] == 2 and timed["median_ms"] > 0
            side.call("result", out=tmp_path / "theirs.npz")
            pooled, gradient = jax.jit(program(group, ops.default_implementation(*group.kind[:3], "cpu")))(
                *inputs
            )
            with np.load(tmp_path / "theirs.npz") as theirs:
                np.testing.assert_allclose(
                    theirs["pooled"].reshape(pooled.shape), pooled, atol=2e-5, rtol=0, err_msg=name
                )
                for level, ours in enumerate(gradient):
                    np.testing.assert_allclose(
                        theirs[f"gradient{level}"], ours, atol=1e-4, rtol=0, err_msg=f"{name}, level {level}"
                    )
        half = measure.measure(
            Group(TINY, 2, "bfloat16", "align", "forward", ("torchvision",)), side, rounds=2, seconds=1.0
        )
        assert "not implemented for 'BFloat16'" in half[0]["unavailable"]
