"""Names of splits in the names of files and folders."""

import re
from collections.abc import Iterable
from pathlib import Path

SPLITS = {
    "train": re.compile("train"),
    "validation": re.compile("(?<![a-z])e?val(id|idation|set)?(?![a-z])|trainval"),
    "test": re.compile("(?<![a-z])test(ing|set)?(?![a-z])"),
}


def split_of(folder: Path, path: Path) -> str | None:
    """Returns the split named by a file, or else by its subfolder; None for none or several ("trainval")."""
    for name in reversed(path.relative_to(folder).with_suffix("").parts):
        if (named := splits_in(name)) != ():
            return named[0] if len(named) == 1 else None
    return None


def splits_in(name: str) -> tuple[str, ...]:
    """Returns the splits that a name mentions."""
    words = re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return tuple(split for split, pattern in SPLITS.items() if pattern.search(words))


def group_by_folder(folder: Path, files: Iterable[Path]) -> dict[str, list[Path]]:
    """Groups files by the split that their folders below ``folder`` name, those of none under "train"."""
    groups: dict[str, list[Path]] = {split: [] for split in SPLITS}
    splits: dict[Path, str] = {}
    for file in files:
        if file.parent not in splits:
            below = file.parent != folder
            splits[file.parent] = (split_of(folder, file.parent) if below else None) or "train"
        groups[splits[file.parent]].append(file)
    return {split: found for split, found in groups.items() if found}
