"""The public API: names, lazy imports, parts that run without the heavy dependencies, and the examples of the
docs."""

import doctest
import inspect
import re
import subprocess
import sys

import pytest
from paths import REPOSITORY

import mrcnn_jax

HEAVY = (
    "PIL", "cattrs", "cv2", "etils", "grain", "matplotlib", "orbax", "pycocotools", "rich", "safetensors",
    "tensorboardX", "tensorflow_datasets", "tyro", "yaml",
)  # fmt: skip
"""Dependencies that a machine which only runs training steps need not have."""


def run_python(code: str) -> str:
    """Runs code in a process of its own and returns what it prints."""
    command = [sys.executable, "-c", code]
    finished = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=REPOSITORY, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize("name", mrcnn_jax.__all__)
def test_public_names_are_documented(name):
    value = getattr(mrcnn_jax, name)
    assert inspect.getdoc(value) and name in dir(mrcnn_jax)
    assert name in mrcnn_jax.__doc__


@pytest.mark.parametrize("name", mrcnn_jax.models.__all__)
def test_names_of_models_are_documented(name):
    assert inspect.getdoc(getattr(mrcnn_jax.models, name)) and name in dir(mrcnn_jax.models)
    assert name in mrcnn_jax.models.__doc__
    with pytest.raises(AttributeError, match="module 'mrcnn_jax.models' has no attribute 'MaskRCN'"):
        mrcnn_jax.models.MaskRCN  # noqa: B018


@pytest.mark.parametrize("package, page", [(mrcnn_jax, "api"), (mrcnn_jax.ops, "ops")])
def test_functions_are_on_the_page_of_their_package(package, page):
    listed = re.findall(r"^::: (\S+)", (REPOSITORY / f"docs/reference/{page}.md").read_text(), re.MULTILINE)
    names = {place.rpartition(".")[2] for place in listed}
    for name in package.__all__:
        value = getattr(package, name)
        if not inspect.ismodule(value) and name != "Experiment":  # whose fields are on a page of their own
            assert name in names or inspect.unwrap(value).__module__ in listed, name


def test_unknown_names_are_rejected():
    with pytest.raises(AttributeError, match="module 'mrcnn_jax' has no attribute 'trian'"):
        mrcnn_jax.trian  # noqa: B018
    assert "__version__" in dir(mrcnn_jax) and "TYPE_CHECKING" not in dir(mrcnn_jax)


def test_examples_of_the_package_run():
    failed, attempted = doctest.testmod(mrcnn_jax)
    assert failed == 0 and attempted >= 5


def test_import_sets_the_flags_of_xla_and_loads_nothing():
    code = """
        import os, sys
        os.environ.pop("XLA_FLAGS", None)
        import mrcnn_jax, mrcnn_jax.models
        print(os.environ.get("XLA_FLAGS"), {"jax", "numpy", "flax", "tyro"} & set(sys.modules))
    """
    assert run_python(inspect.cleandoc(code)) == "--xla_cpu_experimental_ynn_fusion_type= set()\n"


def test_networks_and_the_training_step_need_only_jax_flax_and_optax():
    code = f"""
        import sys
        import flax.linen, flax.struct, jaxtyping, optax  # flax itself imports rich and yaml
        for name in {HEAVY}:
            sys.modules[name] = None
            for loaded in [module for module in sys.modules if module.startswith(name + ".")]:
                del sys.modules[loaded]
        import mrcnn_jax.config, mrcnn_jax.models.mask_rcnn, mrcnn_jax.ops, mrcnn_jax.presets
        import mrcnn_jax.training.step, mrcnn_jax.training.optimizer
        mrcnn_jax.presets.get("demo")
    """
    run_python(inspect.cleandoc(code))
