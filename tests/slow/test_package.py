"""The package as users install it: wheel and sdist, in an environment of its own, in a folder of the user's
own."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from paths import REPOSITORY

import mrcnn_jax

FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
SOURCES = (
    "pyproject.toml", "requirements.txt", "README.md", "LICENSE", "mrcnn_jax", "experiments", "benchmarks",
)  # fmt: skip


def run(*command: str | Path, cwd: Path, timeout: int = 300, **environment: str) -> str:
    """Runs a command without the checkout on Python's path and returns its output."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    finished = subprocess.run(
        list(map(str, command)), cwd=cwd, env=kept | environment, check=False, timeout=timeout,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        source, target = REPOSITORY / name, folder / "checkout" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "results"))
        else:
            shutil.copy(source, target)
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist")
    run(*build, folder / "checkout", cwd=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def environment(distributions, tmp_path_factory) -> Path:
    """The binaries of a new environment with the wheel; its dependencies are those of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    packages = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    before = set(packages.iterdir())
    (wheel,) = distributions.glob("*.whl")
    run(folder / "bin" / "pip", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    added = {path.name for path in set(packages.iterdir()) - before}
    assert added == {"mrcnn_jax", f"mrcnn_jax-{mrcnn_jax.__version__}.dist-info"}
    # a .pth file adds the folder alone, not the editable installation that is registered in it
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A user's folder, with packages named as folders of the checkout that must not be imported."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("experiments", "benchmarks"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise AssertionError('a folder of the user is imported')")
    return folder


def test_distributions_hold_the_library_alone(distributions):
    (wheel,), (sdist,) = distributions.glob("*.whl"), distributions.glob("*.tar.gz")
    files = zipfile.ZipFile(wheel).namelist()
    info = f"mrcnn_jax-{mrcnn_jax.__version__}.dist-info"
    assert {Path(name).parts[0] for name in files} == {"mrcnn_jax", info}
    kinds = ("*.py", "*.html", "py.typed")
    paths = (path for kind in kinds for path in (REPOSITORY / "mrcnn_jax").rglob(kind))
    sources = {path.relative_to(REPOSITORY).as_posix() for path in paths}
    assert {"mrcnn_jax/py.typed", "mrcnn_jax/serving/page.html"} <= sources
    assert sources | {f"{info}/licenses/LICENSE"} <= set(files)
    packed = {Path(name).parts[1] for name in tarfile.open(sdist).getnames() if len(Path(name).parts) > 1}
    assert "mrcnn_jax" in packed and not packed & {"experiments", "benchmarks", "tests"}


def test_metadata_is_ready_for_an_index(distributions):
    files = sorted(distributions.iterdir())
    assert "PASSED" in run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=distributions)
    (wheel,) = distributions.glob("*.whl")
    metadata = zipfile.ZipFile(wheel).read(f"mrcnn_jax-{mrcnn_jax.__version__}.dist-info/METADATA").decode()
    for line in (REPOSITORY / "requirements.txt").read_text().split():
        assert f"Requires-Dist: {line.partition('[')[0].partition('>')[0]}" in metadata
    assert "License-Expression: Apache-2.0" in metadata and "Typing :: Typed" in metadata


def test_the_installed_command_trains_and_predicts(environment, project):
    assert "usage: mrcnn COMMAND" in run(environment / "mrcnn", "--help", cwd=project)
    small = (
        "--train.steps", "20", "--train.decay-steps", "--train.images-per-device", "2",
        "--model.backbone.width", "8", "--model.backbone.pyramid-channels", "32",
        "--model.box.channels", "32", "--model.mask.channels", "16", "--model.mask.layers", "1",
        "--data.short-edge", "64", "--data.short-edge-test", "64", "--data.long-edge", "96",
        "--evaluation.pictures", "2",
    )  # fmt: skip
    train = (environment / "mrcnn", "train", "demo")
    out = run(*train, *small, cwd=project, timeout=900, XLA_FLAGS=FAST_COMPILATION)
    assert (project / "runs/demo/metrics.json").exists(), out
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    cv2.imwrite(str(project / "photo.png"), image)
    out = run(environment / "mrcnn", "predict", "runs/demo", "photo.png", cwd=project, timeout=900)
    assert "detections in 1 images" in out and (project / "predictions/0001_photo.png").exists()
    assert (project / "predictions/results.json").exists()
    code = (
        "import mrcnn_jax, numpy, sys\n"
        "detections = mrcnn_jax.load('runs/demo')(numpy.zeros((96, 128, 3), numpy.uint8))\n"
        "assert isinstance(detections, mrcnn_jax.Detections)\n"
        "assert mrcnn_jax.evaluate('runs/demo').metrics['bbox']\n"
        f"assert not mrcnn_jax.__file__.startswith({str(REPOSITORY)!r})\n"
        "assert not {'experiments', 'benchmarks'} & set(sys.modules)\n"
    )
    run(environment / "python", "-c", code, cwd=project, timeout=900)
