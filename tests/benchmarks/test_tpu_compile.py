"""Compiling for TPUs without one: figures, FLOPs of products, the result file of RoI operations, refusals."""

import json
import os
from dataclasses import replace
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.roi import compile_for_tpu
from benchmarks.roi._rows import FORWARD
from benchmarks.roi._workloads import TINY
from benchmarks.tpu._product_flops import product_flops
from benchmarks.tpu._programs import CHIPS, compile_for, estimate, figures, first_sentence, topology
from mrcnn_jax import ops
from mrcnn_jax.errors import InputError
from mrcnn_jax.runtime import target_platform

MATRIX = jnp.ones((8, 8))
PRODUCT = 2 * 8**3  # FLOPs
OUT_OF_MEMORY = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 20.01G of 15.75G hbm. Exceeded by 4.26G.\n\nTotal"
)


class Refused:
    """A program that a compiler refuses."""

    def lower(self, *_):
        raise RuntimeError(OUT_OF_MEMORY)


def test_figures_of_a_product():
    result = figures(compile_for(lambda x, y: x @ y, [MATRIX, MATRIX]))
    assert result["flops"] == PRODUCT
    assert (result["argument_bytes"], result["output_bytes"]) == (2 * MATRIX.nbytes, MATRIX.nbytes)


def test_estimate_is_the_longer_of_computation_and_memory():
    assert estimate(197e12, 0, CHIPS["v5e"]) == 1000
    assert estimate(197e9, 8.19e9, CHIPS["v5e"]) == 10


def test_errors_are_cut_to_the_first_sentence():
    with pytest.raises(RuntimeError) as error:
        compile_for(Refused(), [])
    assert first_sentence(error.value) == "Ran out of memory in memory space hbm. Used 20.01G of 15.75G hbm"
    long = ValueError("UNIMPLEMENTED: Cannot lower 1.5 bits. Please report.\nTrace")
    assert first_sentence(long) == "Cannot lower 1.5 bits"
    assert first_sentence(KeyError()) == "KeyError"


@pytest.mark.parametrize("name", ["v5e", "v5e:3x3", "v9:2x2", "v4:2x2", ""])
def test_unknown_topology_is_refused_with_the_known_ones(name):
    with pytest.raises(InputError, match="v5e:2x2") as error:
        topology(name)
    assert repr(name) in str(error.value) and "\n" not in str(error.value)


def test_missing_libtpu_is_refused_with_the_package(monkeypatch):
    def refuse(**_):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", refuse)
    with pytest.raises(InputError, match=r'pip install "jax\[tpu\]"'):
        topology("v5e:2x2")


def test_product_flops_count_every_iteration_and_the_branch_taken():
    offset = np.float32(1)  # a constant of the program

    def program(matrix, number):
        matrix = matrix + offset if target_platform() == "cpu" else matrix @ matrix

        def iterate(state):
            return state[0] + 1, jax.lax.fori_loop(0, 3, lambda _, x: x @ x, state[1])

        def choose(total, branch):
            return total, jax.lax.switch(branch, [lambda x: x, lambda x: x @ x @ x], total)

        _, matrix = jax.lax.while_loop(lambda state: state[0] < number, iterate, (0, matrix))
        return jax.lax.scan(choose, matrix, jnp.asarray([0, 1, 1]), reverse=True)[1]

    assert product_flops(program, [MATRIX, 5], "tpu") == (1 + 5 * 3 + 2 * 2) * PRODUCT
    assert product_flops(program, [MATRIX, 2], "cpu") == (2 * 3 + 2 * 2) * PRODUCT
    assert product_flops(lambda x: jax.vjp(lambda x: x @ x, x)[1](x), [MATRIX], "tpu") == 2 * PRODUCT
    assert product_flops(lambda x: (x @ x, x + 1)[1], [MATRIX], "tpu") == 0


@pytest.fixture
def cpu_for_tpu(monkeypatch):
    """Replaces libtpu by this machine's own compiler."""
    monkeypatch.setattr(compile_for_tpu, "topology", lambda _: jax.devices("cpu"))
    monkeypatch.setattr(compile_for_tpu, "version", lambda _: "none")


def test_every_implementation_has_a_row_and_add_keeps_others(tmp_path, cpu_for_tpu, monkeypatch):
    monkeypatch.setitem(compile_for_tpu.BY_NAME, "tiny", replace(TINY, training=False))
    out, names = tmp_path / "out.json", ["gather", "matmul"]
    selection = ["--workloads", "tiny", "--operations", "align", "--out", str(out), "--topologies"]
    assert compile_for_tpu.main([*selection, "v5e:2x2", "--implementations", *names]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["implementation"], row["direction"]) for row in rows] == [(name, FORWARD) for name in names]
    default = ops.default_implementation("align", "average", 2, "tpu")
    assert [row["is_default"] for row in rows] == [name == default for name in names]
    pooled, pyramid = 2 * TINY.rois * 9 * 8, 2 * (12 * 16 + 6 * 8) * 8  # bytes of bfloat16
    assert all((row["output_bytes"], row["bound_bytes"]) == (pooled, 2 * pooled + pyramid) for row in rows)
    # each level's columns into bins, then its rows, of the levels that have RoIs; nothing by "gather"
    products = [2 * TINY.rois * 3 * 8 * (height * width + 3 * height) for height, width in TINY.maps]
    visited = set(TINY.levels(TINY.boxes(1)).flat)
    expected = [0, sum(products[level] for level in visited)]
    assert [row["product_flops"] for row in rows] == expected

    for _ in range(2):
        again = [*selection, "v4:2x2x1", "--implementations", "gather", "--add"]
        assert compile_for_tpu.main(again) == 0
    content = json.loads(out.read_text())
    assert content["rows"][:2] == rows and len(content["rows"]) == 3
    assert content["machine"]["device_kind"] == "v5e:2x2, v4:2x2x1"


def test_refused_program_has_the_reason_in_its_row(tmp_path, cpu_for_tpu, monkeypatch):
    monkeypatch.setattr(compile_for_tpu, "compile_for", lambda *_: Refused().lower())
    out = tmp_path / "out.json"
    selection = ["--workloads", "tiny", "--operations", "pool", "--implementations", "gather"]
    assert compile_for_tpu.main([*selection, "--topologies", "v5e:2x2", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 2 and not any("flops" in row for row in rows)
    assert all(row["unavailable"].startswith("Ran out of memory") for row in rows)


def test_empty_selection_gets_a_sentence_and_leaves_no_file(tmp_path, capsys, cpu_for_tpu):
    assert compile_for_tpu.main(["--implementations", "x", "--out", str(tmp_path / "out.json")]) == 2
    message = capsys.readouterr().err
    assert "Nothing is selected" in message and message.count("\n") == 1 and not list(tmp_path.iterdir())


def test_other_files_are_not_overwritten(tmp_path, capsys, cpu_for_tpu):
    (tmp_path / "out.json").write_text("{}")
    assert compile_for_tpu.main(["--add", "--out", str(tmp_path / "out.json")]) == 2
    assert "is not a result file" in capsys.readouterr().err
    assert (tmp_path / "out.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["v5e:2x2", "v4:2x2x1"])
@pytest.mark.skipif(
    not (os.environ.get("MRCNN_TPU_TOPOLOGY") and find_spec("libtpu")),
    reason="needs MRCNN_TPU_TOPOLOGY=1 and libtpu",
)
def test_programs_are_compiled_for_tpus(name):
    devices = topology(name)
    assert len(devices) == 4
    struct = jax.ShapeDtypeStruct((512, 512), jnp.bfloat16)
    result = figures(compile_for(lambda x: x @ x, [struct], devices[0]))
    assert result["flops"] == 2 * 512**3
    assert result["argument_bytes"] == result["output_bytes"] == 2 * 512**2
    large = jax.ShapeDtypeStruct((10, 2**32), jnp.float32)
    with pytest.raises(Exception) as error:
        compile_for(lambda x: (jnp.sin(x)[::-1], x.sum()), [large], devices[0])
    assert first_sentence(error.value).startswith("Ran out of memory")
