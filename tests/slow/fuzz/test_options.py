"""Random options and values of every subcommand: help, success, or one sentence and status 2."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from fuzz import Campaign
from hypothesis import example, given
from hypothesis import strategies as st
from small_sets import write_set

from mrcnn_jax import presets
from mrcnn_jax.cli.foreign_options import _OURS
from mrcnn_jax.cli.main import COMMANDS, main
from mrcnn_jax.cli.terminal import _known_options

pytestmark = pytest.mark.slow
CAMPAIGN = Campaign("options", cases=500, cases_in_ci=120)
VALUES = (
    "0", "1", "-1", "5", "0.5", "-0.0", "1e400", "-1e400", "1" + "0" * 400, "9" * 5000, "nan", "inf", "0x10",
    "١٢", "1_000", "", " ", "true", "None", "none", "[bold]", "[/bold]", "[link=x]", "\udce9",
    "caf\udce9.jpg", "日本", "\x1b[31m", "a\nb", "a\tb", "\u202e", "x" * 300, "x" * 5000, "..", "/", "~",
    "~nobody", "/dev/null", "/nonexistent/x", "file.txt", "folder", "set", "data/set", "missing", "a.png",
    "gs:/bucket", "a:1", "-", "--", "-x", "--=", "--help", "=", "{}", "null", "resnet18", "fpn",
    "boxes", "masks", "shapes", "torchvision",
)  # fmt: skip
FIRST = (*presets.PRESETS, "set", "data/set", "folder", "file.txt", "missing")


@cache
def options_of(command: str) -> list[str]:
    """Returns the options of a command, the foreign ones and some that nothing has."""
    module = import_module(f"mrcnn_jax.cli.{command.replace('-', '_')}")
    default = {"default": module.Options(presets.get("demo"), "run")} if command == "train" else {}
    known = sorted(_known_options(module.Options, {"prog": "mrcnn", **default}))
    foreign = [f"--{name}" for names in _OURS for name in names.split()]
    return [*known, *foreign, "--", "--train.stepz", "--a.b.c", "--\udce9", "--[bold]", "-q", "--help-all"]


@st.composite
def command_lines(draw) -> list[str]:
    """Draws a subcommand, positional arguments, options and values, every third time plausible ones."""
    command = draw(st.sampled_from(list(COMMANDS)))
    if draw(st.integers(0, 2)) == 0:
        words = [draw(st.sampled_from(FIRST[:5] if command == "train" else FIRST[-5:]))]
        names = st.sampled_from([name for name in options_of(command) if name.startswith("--t")])
        for option in draw(st.lists(names, max_size=1)):
            words += [option, draw(st.sampled_from(("1", "2", "30")))]
        return [command, *words]
    words = [draw(st.sampled_from(FIRST)) for _ in range(draw(st.integers(0, 3)))]
    numbers = st.one_of(st.integers(), st.floats()).map(str)
    texts = st.text(st.characters(exclude_characters="\0"), max_size=8)  # no argument can hold a zero
    values = st.one_of(st.sampled_from(VALUES), texts, numbers)
    for option in draw(st.lists(st.sampled_from(options_of(command)), max_size=4)):
        given = draw(st.lists(values, max_size=3))
        words += [f"{option}={given[0]}"] if given and draw(st.booleans()) else [option, *given]
    return [draw(st.sampled_from(VALUES)) if draw(st.integers(0, 19)) == 0 else command, *words]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """A working directory with a set, a prepared set, a folder and a file; training itself does nothing."""
    place = tmp_path_factory.mktemp("options") / "a/b/c"
    place.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("COLUMNS", "80")
        patch.setattr("mrcnn_jax.training.loop.train", lambda *arguments, **_: None)
        patch.setattr("mrcnn_jax.distributed.initialize", lambda *arguments: None)
        write_set(Path("set"), count=2)
        Path("folder").mkdir()
        for command in COMMANDS:
            options_of(command)  # remembered, as imports must not happen while cases are drawn
        Path("file.txt").write_text("no image")
        yield place


@CAMPAIGN.settings
@given(command_lines())
@example(["train", "demo", "--data.dataset", "caf\udce9"])
@example(["train", "demo", "--train.learning-rate", "1e400"])
@example(["predict", "set", "a.png", "--score", "5"])
@example(["dataset", "data/set", "--draw", "[bold]"])
def test_every_command_line_succeeds_or_is_refused_in_one_sentence(words):
    out, err = io.StringIO(), io.StringIO()
    with CAMPAIGN.case():
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status = main(words)
            except SystemExit as exit:  # after the help
                status = exit.code or 0
        lines = [line for line in err.getvalue().splitlines() if line.startswith("mrcnn: ")]
        assert status in (0, 2), (status, err.getvalue())
        usage = out.getvalue().startswith("usage: ")  # shown without arguments, with status 2
        assert len(lines) == (1 if status and not usage else 0), (status, err.getvalue())
        assert "Traceback" not in err.getvalue() and len("".join(lines)) < 7000
        out.getvalue().encode("utf-8", "backslashreplace")
        err.getvalue().encode()
        sys.exit(status)


def test_figures_are_written():
    CAMPAIGN.write()
