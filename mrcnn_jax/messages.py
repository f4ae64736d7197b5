"""Phrases of messages."""

from collections.abc import Collection
from itertools import islice


def listed(names: Collection[object], limit: int, separator: str = ", ", counted: bool = False) -> str:
    """Lists the first names and indicates the others: "a, b, ..." or "a, b and 3 more".

    Args:
        names: of what the message is about.
        limit: the most names that are listed.
        separator: of the names.
        counted: give the number of the others.
    """
    shown, others = list(map(str, islice(names, limit))), len(names) - limit
    if others > 0 and not counted:
        shown.append("...")
    return separator.join(shown) + (f" and {others} more" if others > 0 and counted else "")
