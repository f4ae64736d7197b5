"""Phrases of messages."""

import pytest

from mrcnn_jax.messages import listed


@pytest.mark.parametrize("names, options, text", [
    ("ab", {}, "a, b"), ("abc", {}, "a, b, c"), ("abcd", {}, "a, b, c, ..."), ("", {}, ""),
    ("abcd", {"separator": "; "}, "a; b; c; ..."), ("abcde", {"counted": True}, "a, b, c and 2 more"),
    ("abc", {"counted": True}, "a, b, c"), (range(4), {}, "0, 1, 2, ..."),
])  # fmt: skip
def test_listed_names(names, options, text):
    assert listed(names, 3, **options) == text
