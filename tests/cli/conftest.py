"""Fixtures that call the command line in this process, in an empty working directory."""

import pytest
from cli_inputs import listing

from mrcnn_jax.cli.main import main


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    """Changes to an empty directory (data/, runs/ and predictions/ lie below it) and a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def mrcnn(capsys):
    """``mrcnn(*arguments)``: exit status, stdout, stderr."""

    def call(*arguments) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as exit:  # raised by the argument parser
            status = exit.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def rejected(mrcnn):
    """``rejected(*arguments)``: the message of a call that fails and leaves the working directory as it was.

    A progress bar may precede the message.
    """

    def call(*arguments) -> str:
        before = listing()
        status, out, err = mrcnn(*arguments)
        assert status == 2 and out.strip() == "" and "Traceback" not in err
        assert listing() | {"data": None} == before | {"data": None}
        *_, message = err.splitlines()
        assert message.startswith("mrcnn: ") and err.count("mrcnn: ") == 1
        return message.removeprefix("mrcnn: ")

    return call
