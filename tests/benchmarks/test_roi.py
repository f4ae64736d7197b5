"""The benchmark of the RoI operations, on a few kilobytes: what it measures, writes and refuses, and that all sides compute the same."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rois import BOXES, PYRAMID, SOLID

from benchmarks.roi import _programs as roi_programs
from benchmarks.roi import _torchvision_process as torchvision_process
from benchmarks.roi import measure as roi_ops
from benchmarks.roi import report as roi_report
from benchmarks.roi._one_hot import one_hot_align
from benchmarks.roi._workloads import TINY, WORKLOADS
from mrcnn_jax import ops
from mrcnn_jax.data.image_io import read_image

STRIDES = (2, 4, 8)
TORCHVISION = os.environ.get("MRCNN_TORCHVISION_PYTHON")
TRUE = shutil.which("true")  # takes any arguments, and ends
FORM = ops.roi_implementations("align", "average", 2)[0]


@pytest.fixture(autouse=True)
def small_and_alone(monkeypatch):
    """A copy of a few kilobytes; no torchvision unless a test asks for it."""
    monkeypatch.setattr(roi_ops, "COPIED", 2**12)
    monkeypatch.delenv("MRCNN_TORCHVISION_PYTHON", raising=False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder that a run leaves."""
    folder = tmp_path_factory.mktemp("roi")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roi_ops, "COPIED", 2**12)
        selection = ["--operations", "align", "--workloads", "tiny", "--forms", FORM, "one-hot einsum", "--dtypes", "float32"]
        assert roi_ops.main(["--quick", *selection, "--rounds", "2", "--out", str(folder / "roi_ops_cpu.json")]) == 0
    return folder


def content(folder, name="roi_ops_cpu"):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.parametrize("levels", [1, 3])
def test_one_hot_matrices_are_roi_align(levels):
    boxes = np.stack([BOXES[SOLID], BOXES[SOLID][::-1]])
    assigned = np.random.default_rng(3).integers(0, levels, boxes.shape[:2]).astype(np.int32)
    cotangent = np.random.default_rng(4).standard_normal((*boxes.shape[:2], 3, 3, 2), dtype=np.float32)

    def both(pool, pyramid):
        pooled, backward = jax.vjp(lambda pyramid: pool(pyramid, boxes, assigned, STRIDES[:levels], 3), pyramid)
        return pooled, backward(cotangent)[0]

    pyramid = [jnp.asarray(level) for level in PYRAMID[:levels]]
    (pooled, gradient), (expected, expected_gradient) = (jax.jit(both, static_argnums=0)(pool, pyramid) for pool in (one_hot_align, ops.pool_rois))
    np.testing.assert_allclose(pooled, expected, atol=2e-5, rtol=0)
    for level, (ours, theirs) in enumerate(zip(gradient, expected_gradient, strict=True)):
        assert np.abs(theirs).max() > 0
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0, err_msg=f"level {level}")


def test_a_run_leaves_a_row_for_each_form_and_direction(measured):
    result = content(measured)
    rows = {(row["form"], row["direction"]): row for row in result["rows"]}
    assert set(rows) == {(form, direction) for form in (FORM, "one-hot einsum") for direction in ("forward", "forward+backward")}
    assert len(rows) == len(result["rows"]) and result["not_measured"] == [] and result["copy_gigabytes_per_second"] > 0
    what = {"operation": "align", "reduction": "average", "samples": 2, "workload": "tiny", "batch": 1, "dtype": "float32"}
    default = ops.default_implementation("align", "average", 2, jax.default_backend())
    for (form, _), row in rows.items():
        assert what.items() <= row.items() and row["is_default"] == (form == default)
        assert 0 < row["min_ms"] <= row["median_ms"] and row["rounds"] == 2 and row["compile_seconds"] > 0 and row["share_of_copy"] > 0
        assert row["temp_bytes"] >= 0 and row["bytes_accessed"] > 0 and row["flops"] > 0
    features, pooled = 4 * 8 * (12 * 16 + 6 * 8), 4 * 6 * 3 * 3 * 8
    for direction, outputs, times in (("forward", pooled, 1), ("forward+backward", pooled + features, 2)):
        row = rows[FORM, direction]
        assert outputs <= row["output_bytes"] <= outputs + 64  # pointers of a tuple
        assert row["necessary_bytes"] == times * (features + pooled) + 6 * 4 * 4 + 6 * 4 and row["bound_bytes"] == 2 * pooled + features


def test_a_result_names_the_machine_but_no_folder(measured):
    result = content(measured)
    assert result["machine"]["platform"] == "cpu" and result["machine"]["jax"] == jax.__version__ and result["machine"]["torchvision"] is None
    assert result["command"].startswith(f"python -m benchmarks.roi.measure --quick --operations align --workloads tiny --forms {FORM}")
    assert str(Path.home()) not in json.dumps(result) and str(measured) not in json.dumps(result)


def test_a_run_draws_tables_and_pictures(measured):
    page = (measured / "ROI_OPS.md").read_text()
    assert "### tiny, 1 x float32" in page and f"{FORM}" in page and "| RoIAlign, average of 2 x 2 | one-hot einsum |" in page
    assert "No GPU results yet" in page and "No CPU results yet" not in page and "torchvision was not there to be measured" in page
    assert read_image(measured / "roi_ops_cpu_times.png").std() > 5 and "(roi_ops_cpu_times.png)" in page
    assert not (measured / "roi_ops_cpu_speed.png").exists() and not [*measured.glob("*.new")]


def test_what_there_was_no_time_for_is_listed(tmp_path):
    arguments = ["--workloads", "tiny", "--operations", "align", "pool", "--minutes", "1e-9", "--out", str(tmp_path / "roi_ops_cpu.json")]
    assert roi_ops.main(arguments) == 0
    result = content(tmp_path)
    assert result["rows"] == [] and {group["operation"] for group in result["not_measured"]} == {"align", "pool"}
    assert {(group["batch"], group["dtype"]) for group in result["not_measured"]} == {
        (1, "float32"),
        (2, "float32"),
        (1, "bfloat16"),
        (2, "bfloat16"),
    }
    assert "RoIPool: forward and forward+backward" in (tmp_path / "ROI_OPS.md").read_text().split("### Not measured")[1]


def test_a_form_that_fails_is_a_row_with_the_reason(monkeypatch):
    def ours(group, form):
        if form == "one-hot einsum":
            raise NotImplementedError("no such products here\nand more")
        return {}, lambda: 1e-3

    monkeypatch.setattr(roi_ops, "ours", ours)
    group = roi_programs.Group(TINY, 1, "float32", "align", "forward", (FORM, "one-hot einsum"))
    timed, failed = roi_ops.measure(group, None, most=5, seconds=1.0)
    assert (timed["median_ms"], timed["rounds"]) == (1.0, 5) and failed["unavailable"] == "no such products here" and "median_ms" not in failed


def test_slow_programs_are_timed_less_often_and_all_take_turns(monkeypatch):
    seconds, calls = {"a": 0.01, "b": 0.3, "c": 5.0}, []

    def ours(group, form):
        return {}, lambda: calls.append(form) or seconds[form]

    monkeypatch.setattr(roi_ops, "ours", ours)
    rows = roi_ops.measure(roi_programs.Group(TINY, 1, "float32", "align", "forward", ("a", "b", "c")), None, most=7, seconds=1.2)
    assert [row["rounds"] for row in rows] == [7, 4, 1]
    assert "".join(calls) == "aabbc" + "abc" + "ba" + "ab" + "ab" + "aaa"


def test_the_plan_has_every_workload_and_operation():
    whole = {(group.workload.name, group.batch, group.dtype, group.name, group.direction) for group in roi_ops.plan(roi_ops.Options(all=True), True)}
    usual = {(group.workload.name, group.batch, group.dtype, group.name, group.direction) for group in roi_ops.plan(roi_ops.Options(), True)}
    directions = {workload.name: ("forward", "forward+backward")[: 1 + workload.training] for workload in WORKLOADS.values()}
    cells = [(name, direction) for name, of_workload in directions.items() for direction in of_workload]
    every = {(name, batch, dtype, kind, way) for name, way in cells for batch in (1, 2) for dtype in roi_programs.DTYPES for kind in roi_programs.OPERATIONS}
    assert whole == every
    elsewhere = {(name, kind) for name in ("FPN mask training", "FPN inference") for kind in ("align-adaptive", "align-max", "warp")}
    assert usual < every and usual >= {cell for cell in every if cell[1:3] == (1, "float32") and (cell[0], cell[3]) not in elsewhere}
    assert usual >= {cell for cell in every if cell[0] == "FPN box training" and cell[3] in ("align", "pool")}
    selected = [tuple(group.key.values()) for group in roi_ops.plan(roi_ops.Options(workloads=("C4",)), True)]
    assert len(set(selected)) == len(selected)
    assert {form for group in roi_ops.plan(roi_ops.Options(), True) for form in group.forms} >= {"one-hot einsum", "torchvision", FORM}


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--operations", "crop"], "--operations does not know 'crop': choose from 'align', 'pool'"),
        (["--workloads", "C5"], "--workloads does not know 'C5': choose from 'one map', 'C4'"),
        (["--forms", "magic"], "--forms does not know 'magic'"),
        (["--dtypes", "float16"], "--dtypes does not know 'float16': choose from 'float32', 'bfloat16'"),
        (["--minutes", "0"], "--minutes must be more than 0, not 0"),
        (["--operations", "warp", "--dtypes", "bfloat16"], "Nothing that these options select is in the plan"),
        (["--out", "result.json"], "--out must be named roi_ops_*.json"),
        (["--torchvision-python", "nowhere/python"], "nowhere/python cannot be run: No such file or directory"),
        (["--torchvision-python", TRUE], f"{TRUE} does not run torchvision on this kind of device"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert roi_ops.main(arguments) == 2
    refusal = capsys.readouterr().err
    assert refusal.startswith(sentence) and refusal.count("\n") == 1 and not [*tmp_path.iterdir()]


def row(form, direction, milliseconds, **others):
    """A line of a result file, of numbers that are easy to divide."""
    what = {"operation": "pool", "reduction": "max", "samples": None, "workload": "C4", "batch": 1, "dtype": "float32", "form": form}
    sizes = {
        "direction": direction,
        "is_default": form == "own",
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
    machine = {"platform": platform, "device_kind": "Chip", "processor": "Chip", "cores": 2, "jax": "1", "torchvision": "2"}
    (folder / f"{name}.json").write_text(json.dumps({"machine": machine, "rows": rows, "not_measured": []}))


def test_tables_compare_with_torchvision_and_tell_compiled_from_measured(tmp_path, capsys):
    rows = [
        row("own", "forward", 5.0),
        row("own", "forward+backward", 40.0),
        row("torchvision", "forward", 10.0),
        row("torchvision", "forward+backward", 10.0),
    ]
    lost = row("torchvision", "forward", None, dtype="bfloat16", unavailable="no kernel")
    results_file(tmp_path, "roi_ops_gpu", "gpu", [*rows, lost])
    results_file(
        tmp_path, "roi_ops_tpu", "tpu", [row("own", "forward", None, compile_seconds=2.5, bytes_accessed=7_000_000, topology="v9")]
    )
    assert roi_report.main([str(tmp_path)]) == 0 and "ROI_OPS.md" in capsys.readouterr().out
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
    short = roi_report.summary(roi_report.read_results(tmp_path))
    assert "| GPU (Chip) | C4 |" in short and "| RoIPool | 5 / 40 (2x / 0.25x) |" in short
    readme = f"before\n{roi_report.BEGIN}\nold\n{roi_report.END}\nafter"
    assert roi_report.rendered(readme, roi_report.read_results(tmp_path)) == f"before\n{roi_report.BEGIN}\n{short}\n{roi_report.END}\nafter"
    assert roi_report.rendered("no place", {}) == "no place"


def test_the_report_refuses_what_is_no_result(tmp_path, capsys):
    assert roi_report.main([str(tmp_path)]) == 2
    assert "holds no roi_ops_*.json: run `python -m benchmarks.roi.measure` first." in capsys.readouterr().err
    (tmp_path / "roi_ops_cpu.json").write_text("{}")
    assert roi_report.main([str(tmp_path)]) == 2
    assert "roi_ops_cpu.json is no result file of the RoI operations" in capsys.readouterr().err and not (tmp_path / "ROI_OPS.md").exists()


def test_the_published_tables_are_made_from_the_results():
    results = roi_report.read_results()
    readme = roi_report.README.read_text()
    assert roi_report.rendered(readme, results) == readme
    if results:
        pictures = sorted(path.name for path in roi_report.RESULTS.glob("roi_ops_*.png"))
        assert (roi_report.RESULTS / roi_report.TABLES).read_text() == roi_report.tables(results, pictures)


def test_no_form_was_measured_to_be_faster_on_cpu_than_the_default_one():
    """Over all workloads and directions of an operation together."""
    times = {}
    for row in roi_report.read_results()["roi_ops_cpu"]["rows"]:
        if "median_ms" in row and (row["batch"], row["dtype"]) == (1, "float32") and row["form"] != "torchvision":
            kind = row["operation"], row["reduction"], row["samples"]
            times.setdefault(kind, {}).setdefault(row["form"], {})[row["workload"], row["direction"]] = row["median_ms"]
    assert len(times) == len(roi_programs.OPERATIONS)
    for (operation, reduction, samples), by_form in times.items():
        default = by_form.pop(ops.default_implementation(operation, reduction, samples or 0, "cpu"))
        for form, other in by_form.items():
            ratios = [other[cell] / default[cell] for cell in other]
            assert np.exp(np.log(ratios).mean()) > 0.97, (operation, reduction, samples, form)


@pytest.mark.skipif(not TORCHVISION, reason="MRCNN_TORCHVISION_PYTHON does not name a Python interpreter that has torch and torchvision")
def test_torchvision_computes_the_same(tmp_path):
    with torchvision_process.start(TORCHVISION) as side:
        inputs = roi_programs.make_inputs(TINY, 2, "float32")
        for name in ("align", "align-adaptive", "pool"):
            group = roi_programs.Group(TINY, 2, "float32", name, "forward+backward", ("torchvision",))
            (timed,) = roi_ops.measure(group, side, most=2, seconds=1.0)
            assert timed["rounds"] == 2 and timed["median_ms"] > 0
            side.call("result", out=tmp_path / "theirs.npz")
            pooled, gradient = jax.jit(roi_programs.program(group, ops.default_implementation(*group.kind[:3], "cpu")))(*inputs)
            with np.load(tmp_path / "theirs.npz") as theirs:
                np.testing.assert_allclose(theirs["pooled"].reshape(pooled.shape), pooled, atol=2e-5, rtol=0, err_msg=name)
                for level, ours in enumerate(gradient):
                    np.testing.assert_allclose(theirs[f"gradient{level}"], ours, atol=1e-4, rtol=0, err_msg=f"{name}, level {level}")
        half = roi_ops.measure(roi_programs.Group(TINY, 2, "bfloat16", "align", "forward", ("torchvision",)), side, most=2, seconds=1.0)
        assert "not implemented for 'BFloat16'" in half[0]["unavailable"]
