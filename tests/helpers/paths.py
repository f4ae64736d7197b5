"""Folders that tests read."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TESTS = REPOSITORY / "tests"
GOLDEN = TESTS / "golden"
"""Recorded results of other libraries (golden/README.md)."""
