"""Models as folders and on the Hugging Face Hub, with a stand-in for its package."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import numpy as np
import pytest
import saved_runs
from cli_inputs import call_cli

from mrcnn_jax import presets
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import load, read_weights
from mrcnn_jax.weights import hub
from mrcnn_jax.weights.locate import is_local, locate, short_name

FILES = ["README.md", "dataset.json", "experiment.json", "model.safetensors"]


def names(folder) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The files of a finished run, with metrics."""
    base = tmp_path_factory.mktemp("hub")
    data = saved_runs.write(base / "set")
    saved_runs.saved_run(base / "run", data)
    (base / "run" / "metrics.json").write_text(json.dumps(saved_runs.METRICS | {"segm": {"AP": 2.25}}))
    return base / "run"


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shared") / 'my "müll" model'
    status, printed = call_cli("push", run, "--out", out, "--licence", "apache-2.0")
    assert (status, printed) == (0, f"The model and its card are in {out}.\n")
    return out


@pytest.fixture
def package(monkeypatch, folder):
    """Stands in for huggingface_hub; what is asked of it is in ``calls``."""
    calls = []

    class HfApi:
        def __init__(self, library_name):
            assert library_name == "mrcnn_jax"

        def create_repo(self, repository, *, private, exist_ok):
            calls.append(("create_repo", repository, private, exist_ok))
            return f"https://hub.example/{repository}"

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            calls.append(("upload_folder", repo_id, names(folder_path)))

    def snapshot_download(repository, *, revision, allow_patterns):
        calls.append(("snapshot_download", repository, revision))
        if repository == "someone/private":
            raise OSError("401 Client Error: log in\nmore lines")
        return str(folder if repository == "me/letters" else folder.parent)

    stand_in = SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download, calls=calls)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    return stand_in


def test_a_folder_holds_the_same_model(run, folder):
    ours, theirs = read_weights(run), read_weights(folder)
    assert names(folder) == FILES
    assert theirs.info == ours.info and theirs.experiment.model == ours.experiment.model
    assert jax.tree.structure(theirs.variables) == jax.tree.structure(ours.variables)
    assert all(map(np.array_equal, jax.tree.leaves(theirs.variables), jax.tree.leaves(ours.variables)))
    assert load(folder).class_names == ("a", "b")
    texts = [(folder / name).read_text() for name in ("experiment.json", "README.md")]
    assert not any(str(run.parent) in text or str(folder) in text for text in texts)


def test_a_folder_is_fine_tuned_not_continued(folder):
    assert presets.stored_run(folder) is None
    experiment, name = presets.resolve(str(folder))
    assert name == f"{folder.name}_tuned" and experiment.train.init_from == str(folder)


def test_the_card_has_metrics_classes_and_an_example(folder):
    card = (folder / "README.md").read_text()
    fields = "license: apache-2.0\nlibrary_name: mrcnn_jax\npipeline_tag: image-segmentation\n"
    assert card.startswith(f"---\n{fields}")
    assert "of 2 classes: a, b." in card and "trained on set." in card
    assert "| bbox | 1.0 | 2.0 | - |\n| segm | 2.2 | - | - |\n\nCOCO metrics of its evaluation, in" in card
    loading = r'detector = mrcnn_jax.load("my \"müll\" model")'
    assert f"{loading}\ndetections = detector(image)" in card


def test_metrics_that_are_not_defined_are_left_out(tmp_path):
    metrics = {"bbox": {"AP": 1.5, "AP50": float("nan")}, "segm": {"AP": float("nan")}, "keypoints": {}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert list(hub._read_metrics(str(tmp_path))) == ["bbox"]


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[1]", b"[" * 99_999])
def test_damaged_metrics_are_refused_before_anything_is_written(tmp_path, content, monkeypatch):
    monkeypatch.setattr(hub, "load", None)  # must not be reached
    (tmp_path / "metrics.json").write_bytes(content)
    with pytest.raises(InputError, match=r"metrics\.json .*: evaluate again, or delete it$") as caught:
        hub.write_shared_model(str(tmp_path), tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_run_is_pushed(run, package):
    status, printed = call_cli("push", run, "hf://me/letters", "--private")
    assert status == 0, printed
    assert printed == "The model is at https://hub.example/me/letters; its name is hf://me/letters.\n"
    created, uploaded = package.calls
    assert created == ("create_repo", "me/letters", True, True)
    assert uploaded == ("upload_folder", "me/letters", FILES)


def test_a_push_without_a_login_can_be_repeated(run, package, tmp_path):
    def refuse(*_, **__):
        raise OSError("401 Client Error: log in")

    arguments = "push", run, "hf://me/letters", "--out", tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package.HfApi, "create_repo", refuse)
        assert call_cli(*arguments) == (2, "mrcnn: hf://me/letters: 401 Client Error: log in\n")
    assert not (tmp_path / "out").exists()
    assert call_cli(*arguments)[0] == 0 and names(tmp_path / "out") == FILES


def test_nothing_is_made_on_the_hub_for_what_cannot_be_shared(run, package, folder, tmp_path):
    for directory, options in ((run, ["--out", folder]), (run, ["--licence", "a:b"]), (tmp_path / "no", [])):
        status, printed = call_cli("push", directory, "hf://me/letters", *options)
        assert status == 2 and len(printed.splitlines()) == 1, printed
    assert package.calls == []


def test_a_model_of_the_hub_is_loaded_by_name(package, folder):
    assert load("hf://me/letters@v1").class_names == ("a", "b")
    assert ("snapshot_download", "me/letters", "v1") in package.calls
    assert not is_local("hf://me/letters") and short_name("hf://me/letters@v1") == "letters"
    assert presets.stored_run("hf://me/letters") is None
    assert presets.resolve("hf://me/letters")[1] == "letters_tuned"


@pytest.mark.parametrize(
    "name, message",
    [
        ("hf://me/other", "hf://me/other is no model that `mrcnn push` has written: it has no model"),
        ("hf://someone/private", "hf://someone/private: 401 Client Error: log in$"),
        ("hf://letters", r"is named hf://owner/name\[@revision\], not 'hf://letters'"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(package, name, message):
    with pytest.raises(InputError, match=message):
        locate(name)


def test_the_missing_package_is_named(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r'needs a package: pip install "mrcnn_jax\[hub\]"$'):
        locate("hf://me/letters")
    with pytest.raises(InputError, match="needs a package"):
        hub.push(str(run), "hf://me/letters", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_of_a_model(run, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "write_text", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device"):
        hub.write_shared_model(str(run), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_found_before_work(run, folder, tmp_path):
    message = "mrcnn: give a name on the Hub, hf://owner/name, or a folder, --out DIR\n"
    assert call_cli("push", run) == (2, message)
    with pytest.raises(InputError, match="is not an empty folder: choose another one$"):
        hub.write_shared_model(str(run), folder)
    for licence in ("no licence\n---\nx: y", "my licence", "-", "a:b"):
        with pytest.raises(InputError, match="the licence must be an identifier of letters, digits, dots, "):
            hub.write_shared_model(str(run), tmp_path / "out", licence)
    (tmp_path / "dataset.json").write_text("{")
    for name in ("experiment.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(InputError, match="dataset.json cannot be read: Expecting"):
        load(tmp_path)
