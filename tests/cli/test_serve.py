"""`mrcnn serve`: what is refused before the model is loaded. Served answers are tested in tests/slow."""

import pytest


@pytest.mark.parametrize(
    "words, message",
    [
        ("--score-threshold 2", "--score-threshold must lie between 0 and 1, not 2"),
        ("--batch-size 0", "--batch-size must be a whole number from 1 to 4,096, not 0"),
        ("--port 65536", "--port must be a whole number from 0 to 65,535, not 65536"),
        ("--max-requests 0", "--max-requests must be a whole number from 1 to 10,000, not 0"),
        ("--max-megapixels nan", "--max-megapixels must be greater than 0 and at most 1,000, not nan"),
        ("--host 192.0.2.1", "cannot serve at --host 192.0.2.1 --port 8000: "),
    ],
)
def test_wrong_options_are_one_sentence(rejected, words, message):
    assert message in rejected("serve", "run", *words.split())


def test_missing_packages_are_named_with_the_command_that_installs_them(rejected, monkeypatch):
    monkeypatch.setattr("mrcnn_jax.cli.serve.find_spec", lambda name: None if name == "uvicorn" else name)
    message = 'mrcnn serve needs packages that are missing: pip install "mrcnn_jax[serve]"'
    assert rejected("serve", "run") == message


def test_experiments_have_no_weights_to_serve(rejected):
    assert rejected("serve", "demo") == (
        "demo is an experiment and has no weights: `mrcnn train demo` trains it in runs/demo")  # fmt: skip
