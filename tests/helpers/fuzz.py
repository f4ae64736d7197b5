"""Harness of the fuzz tests in tests/slow/fuzz: every input ends in success or in one sentence, in bounded
time and memory.

A test draws its input with hypothesis, derandomised, so that the cases are the same in every run:

    CAMPAIGN = Campaign("coco_files", cases=5_000, cases_in_ci=300)

    @CAMPAIGN.settings
    @given(coco_files())
    def test_mutated_coco_file_is_prepared_or_refused(content):
        with CAMPAIGN.case():
            prepare(...)          # may raise InputError, or SystemExit(2); anything else fails the test

`MRCNN_FUZZ=full` runs all cases and writes the figures to tests/slow/fuzz/<name>.json.
"""

import json
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis

from mrcnn_jax.errors import InputError

FULL = os.environ.get("MRCNN_FUZZ") == "full"
RESULTS = Path(__file__).parent.parent / "slow/fuzz"


class Campaign:
    """Cases of one kind of input, and what became of them.

    Args:
        name: of the result file.
        cases: number of cases of a full run, whose figures are committed.
        cases_in_ci: number of cases of the slow tests.
        seconds: limit of a case.
        megabytes: limit of what the process's peak memory may grow by.
    """

    def __init__(self, name: str, cases: int, cases_in_ci: int, seconds: int = 30, megabytes: int = 1000):
        self.name, self.cases = name, cases if FULL else cases_in_ci
        self.seconds, self.megabytes = seconds, megabytes
        self.outcomes, self.slowest, self.memory_before = {"succeeded": 0, "refused": 0}, 0.0, None

    @property
    def settings(self) -> hypothesis.settings:
        """Settings to decorate the test with."""
        return hypothesis.settings(
            max_examples=self.cases, derandomize=True, database=None, deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink],
        )  # fmt: skip

    @contextmanager
    def case(self) -> Iterator[None]:
        """Runs one case; fails for any error but a refusal, and for one that takes too long or too much."""
        previous = signal.signal(signal.SIGALRM, self._time_is_up)
        signal.alarm(self.seconds)
        if self.memory_before is None:  # not before: other tests of this process need memory too
            self.memory_before = _peak_memory()
        start = time.monotonic()
        outcome = "succeeded"
        try:
            yield
        except InputError as error:
            message = str(error)
            assert message and "Traceback" not in message and len(message.splitlines()) == 1, message
            outcome = "refused"
        except SystemExit as error:
            assert error.code in (0, 2), error.code
            outcome = "refused" if error.code else "succeeded"
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
            self.slowest = max(self.slowest, time.monotonic() - start)
        grown = _peak_memory() - self.memory_before
        assert grown <= self.megabytes, f"peak memory grew by {grown:.0f} MB"
        self.outcomes[outcome] += 1

    def write(self) -> None:
        """Writes the figures of a full run; to be called after all cases, e.g. by a second test."""
        if FULL:
            figures = {
                "cases": sum(self.outcomes.values()), **self.outcomes,
                "slowest_seconds": round(self.slowest, 2),
                "peak_memory_growth_mb": round(_peak_memory() - self.memory_before),
                "hypothesis": hypothesis.__version__,
            }  # fmt: skip
            (RESULTS / f"{self.name}.json").write_text(json.dumps(figures, indent=1) + "\n")

    def _time_is_up(self, *_) -> None:
        raise AssertionError(f"the case takes more than {self.seconds} seconds")


def _peak_memory() -> float:
    """Returns the peak resident memory of this process in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
