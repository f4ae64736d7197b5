"""Benchmark of the RoI operations, on a few kilobytes: result files, tables, refusals, equality."""

import json
import os
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks._program import RESULTS
from benchmarks.roi import measure, report
from benchmarks.roi._programs import OPERATIONS, Group, program
from benchmarks.roi._workloads import TINY, TINY_FCIS, WORKLOADS
from mrcnn_jax import ops
from mrcnn_jax.data.image_io import read_image

TORCHVISION = os.environ.get("MRCNN_TORCHVISION_PYTHON")
IMPLEMENTATIONS = ops.roi_implementations("align", "average", 2)[:2]
GROUP = Group(TINY, 1, "float32", "align", "forward", IMPLEMENTATIONS)
BACKWARD = replace(GROUP, direction="forward+backward")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder that a run leaves."""
    folder = tmp_path_factory.mktemp("roi")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "COPIED", 2**12)
        patch.setattr(measure, "plan", lambda *_, **__: [GROUP, BACKWARD])
        patch.setattr(measure, "torchvision", lambda: None)
        assert measure.main(["--quick", "--workloads", "tiny", "--out", str(folder)]) == 0
    return folder


def content(folder):
    return json.loads((folder / "roi_ops_cpu.json").read_text())


def test_run_writes_a_row_for_each_implementation_and_direction(measured):
    result = content(measured)
    rows = {(row["implementation"], row["direction"]): row for row in result["rows"]}
    directions = ("forward", "forward+backward")
    assert set(rows) == {(name, direction) for name in IMPLEMENTATIONS for direction in directions}
    assert len(rows) == len(result["rows"]) and result["not_measured"] == []
    assert result["copy_gigabytes_per_second"] > 0
    what = {"operation": "align", "reduction": "average", "samples": 2}
    what |= {"workload": "tiny", "batch": 1, "dtype": "float32"}
    default = ops.default_implementation("align", "average", 2, jax.default_backend())
    for (name, _), row in rows.items():
        assert what.items() <= row.items() and row["is_default"] == (name == default)
        assert 0 < row["min_ms"] <= row["median_ms"] and row["rounds"] == 3
        assert row["compile_seconds"] > 0 and row["share_of_copy"] > 0 and row["temp_bytes"] >= 0
    features, pooled = 4 * 8 * (12 * 16 + 6 * 8), 4 * 6 * 3 * 3 * 8
    for direction, times in (("forward", 1), ("forward+backward", 2)):
        row = rows[IMPLEMENTATIONS[0], direction]
        assert row["necessary_bytes"] == times * (features + pooled) + 6 * 4 * 4 + 6 * 4
        assert row["bound_bytes"] == 2 * pooled + features


def test_result_describes_the_machine_without_folders(measured):
    result = content(measured)
    machine = {"platform": "cpu", "jax": jax.__version__, "torchvision": None}
    assert machine.items() <= result["machine"].items()
    assert result["command"] == f"{measure.PROGRAM} --quick --workloads tiny"
    assert str(Path.home()) not in json.dumps(result) and str(measured) not in json.dumps(result)


def test_run_draws_tables_and_plots(measured):
    page = (measured / "ROI_OPS.md").read_text()
    assert "### tiny, 1 x float32" in page and "torchvision was not measured" in page
    assert all(f"| {name} |" in page.replace("**", "") for name in IMPLEMENTATIONS)
    assert "No GPU results yet" in page and "No CPU results yet" not in page
    assert read_image(measured / "roi_ops_cpu_times.png").std() > 5 and "(roi_ops_cpu_times.png)" in page
    assert not (measured / "roi_ops_cpu_speed.png").exists() and not [*measured.glob("*.new")]


def test_groups_without_time_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "COPIED", 2**12)
    monkeypatch.setattr(measure, "torchvision", lambda: None)
    options = ["--workloads", "tiny", "--operations", "align", "pool", "--minutes", "0"]
    assert measure.main([*options, "--out", str(tmp_path)]) == 0
    result = content(tmp_path)
    groups = {(group["operation"], group["batch"], group["dtype"]) for group in result["not_measured"]}
    kinds = [(batch, dtype) for batch in (1, 2) for dtype in ("float32", "bfloat16")]
    assert result["rows"] == [] and groups == {(name, *kind) for name in ("align", "pool") for kind in kinds}
    missing = (tmp_path / "ROI_OPS.md").read_text().split("### Not measured")[1]
    assert "RoIPool: forward and forward+backward" in missing


def test_failure_is_a_row_with_the_reason(monkeypatch):
    def prepare(group, implementation):
        if implementation == "b":
            raise NotImplementedError("no such products here\nand more")
        return {}, lambda: 1e-3

    monkeypatch.setattr(measure, "prepare", prepare)
    timed, failed = measure.measure(replace(GROUP, implementations=("a", "b")), rounds=5, seconds=1.0)
    assert (timed["median_ms"], timed["rounds"]) == (1.0, 5)
    assert failed["unavailable"] == "no such products here" and "median_ms" not in failed


def test_slow_programs_are_timed_less_often_and_take_turns(monkeypatch):
    seconds, calls = {"a": 0.01, "b": 0.3, "c": 5.0}, []

    def prepare(group, implementation):
        return {}, lambda: calls.append(implementation) or seconds[implementation]

    monkeypatch.setattr(measure, "prepare", prepare)
    rows = measure.measure(replace(GROUP, implementations=("a", "b", "c")), rounds=7, seconds=1.2)
    assert [row["rounds"] for row in rows] == [7, 4, 1]
    assert "".join(calls) == "aabbc" + "abc" + "ba" + "ab" + "ab" + "aaa"


def test_plan_has_every_workload_and_operation():
    def cells(**options):
        groups = measure.plan(measure.Options(**options), True)
        assert len(groups) == len({tuple(group.key.values()) for group in groups})
        return {(g.workload.name, g.batch, g.dtype, g.name, g.direction): g.implementations for g in groups}

    whole, usual = cells(all=True), cells()
    assert set(whole) == {
        (workload.name, batch, dtype, kind, way)
        for workload in WORKLOADS.values()
        for way in ("forward", "forward+backward")[: 1 + workload.training]
        for batch in (1, 2)
        for dtype in ("float32", "bfloat16")
        for kind, operation in OPERATIONS.items()
        if operation.is_for(workload)
    }
    others = "align-adaptive", "align-max", "warp"
    skipped = {(name, kind) for name in ("FPN mask training", "FPN inference") for kind in others}
    first = {cell for cell in whole if cell[1:3] == (1, "float32") and (cell[0], cell[3]) not in skipped}
    boxes = {cell for cell in whole if cell[0] == "FPN box training" and cell[3] in ("align", "pool")}
    assert first | boxes <= set(usual) < set(whole)
    assert all(set(names) <= set(whole[cell]) for cell, names in usual.items())
    names = usual["C4", 1, "float32", "align", "forward"]
    assert names == (*OPERATIONS["align"].implementations, "torchvision")
    assert {cell[0] for cell in cells(workloads=("C4",))} == {"C4"}
    assert {cell[3] for cell in cells(operations=("warp",))} == {"warp"}


def test_empty_selection_is_refused_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "COPIED", 2**12)
    monkeypatch.setattr(measure, "torchvision", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert measure.main(["--quick", "--operations", "warp"]) == 2
    refusal = capsys.readouterr().err
    assert refusal.startswith(f"{measure.PROGRAM}: Nothing that these options select is in the plan")
    assert refusal.count("\n") == 1 and not [*tmp_path.iterdir()]


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
    assert "| GPU (Chip) | C4 |" in page and "| RoIPool | 5 / 40 (2x / 0.25x) |" in page


def test_report_refuses_other_files(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert (
        "contains no roi_ops_*.json: run `python -m benchmarks.roi.measure` first" in capsys.readouterr().err
    )
    (tmp_path / "roi_ops_cpu.json").write_text("{}")
    assert report.main([str(tmp_path)]) == 2
    assert "roi_ops_cpu.json is not a result file" in capsys.readouterr().err
    assert not (tmp_path / "ROI_OPS.md").exists()


def test_published_tables_are_made_from_the_results():
    plots = sorted(path.stem for path in RESULTS.glob("roi_ops_*.png"))
    assert (RESULTS / report.PAGE).read_text() == report.page(report.read(), plots)


def test_default_implementation_is_the_fastest_measured_on_cpu():
    """Over all workloads and directions of an operation together."""
    times = {}
    rows = [row for name in ("roi_ops_cpu", "roi_ops_parts_cpu") for row in report.read()[name]["rows"]]
    for row in rows:
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
        operation = operation.replace("ps-pool", "align").removeprefix("ps-")
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
    process = measure.torchvision()
    assert process.versions["torchvision"]
    for name in ("align", "align-adaptive", "pool", "ps-align"):
        workload = TINY_FCIS if name == "ps-align" else TINY
        group = Group(workload, 2, "float32", name, "forward+backward", ("torchvision",))
        (timed,) = measure.measure(group, rounds=2, seconds=1.0)
        assert timed["rounds"] == 2 and timed["median_ms"] > 0
        process("save", out=str(tmp_path / "theirs.npz"))
        with np.load(tmp_path / "theirs.npz") as arrays:
            theirs = [arrays[name] for name in arrays]
        default = program(group, ops.default_implementation(*group.kind.arguments, "cpu"))
        pooled, gradient = jax.jit(default)(*group.arguments)
        np.testing.assert_allclose(theirs[0].reshape(pooled.shape), pooled, atol=2e-5, rtol=0, err_msg=name)
        for level, (other, ours) in enumerate(zip(theirs[1:], gradient, strict=True)):
            if name == "ps-align":  # groups come before the channels of each here
                ours = ours.reshape(*ours.shape[:3], 4, -1).swapaxes(3, 4).reshape(ours.shape)
            np.testing.assert_allclose(other, ours, atol=1e-4, rtol=0, err_msg=f"{name}, level {level}")
    half = replace(GROUP, batch=2, dtype="bfloat16", implementations=("torchvision",))
    (row,) = measure.measure(half, rounds=2, seconds=1.0)
    assert "not implemented for 'BFloat16'" in row["unavailable"]
