"""Local paths and addresses, told apart; only regular files are read."""

import os
from pathlib import Path

import pytest

from mrcnn_jax.atomic_io import require_writable
from mrcnn_jax.errors import InputError
from mrcnn_jax.paths import read_bytes, require_local, require_place, scheme_of


@pytest.mark.parametrize(
    "place, scheme",
    [
        ("s3://b/x", "s3"), (Path("s3://b/x"), "s3"), ("GS://b/x", "gs"), ("https://b/x", "https"),
        ("hf:/a/b", "hf"), ("file:///tmp", "file"),
        ("C:/runs", None), ("C:\\runs", None), ("runs/a:b/c", None),
        ("run:1", None), ("", None),
    ],
)  # fmt: skip
def test_schemes_of_addresses(place, scheme):
    assert scheme_of(place) == scheme


def test_a_folder_that_is_there_is_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s3:/b").mkdir(parents=True)
    require_local(Path("s3:/b"), "the data set")
    require_place("s3:/b", "the data set")


@pytest.mark.parametrize("place", ["s3://b/x", Path("s3://b/x")])
def test_addresses_are_named_as_given(place):
    with pytest.raises(InputError, match=r"^the output s3://b/x is an address: it must be a path on this ma"):
        require_writable(place)
    with pytest.raises(InputError, match=r"^the data set s3://b/x is an address: .* this machine$"):
        require_local(place, "the data set")


def test_no_path_object_is_in_a_bucket():
    with pytest.raises(InputError, match=r"^the output gs://b/x is an address: .* this machine$"):
        require_writable(Path("gs://b/x"))


@pytest.mark.parametrize("name, fault", [("", "empty name"), ("a\0b", "NUL")])
def test_names_of_no_file(name, fault):
    with pytest.raises(InputError, match=f"^the model has an? .*{fault}"):
        require_place(name, "the model")


def test_only_regular_files_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link_to_pipe").symlink_to("pipe")
    assert read_bytes(tmp_path / "link") == b"mine"
    for name in ("pipe", "link_to_pipe", "/dev/zero"):
        with pytest.raises(OSError, match="pipe or a device"):
            read_bytes(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none")
