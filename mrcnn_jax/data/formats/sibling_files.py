"""Files by folder and name, in any Unicode normal form, and images by their names without suffixes."""

import os
from pathlib import Path
from unicodedata import normalize

from mrcnn_jax.data.image_files import IMAGE_SUFFIXES, is_leftover


class SiblingFiles:
    """Listings of folders, read once each."""

    def __init__(self):
        self._names: dict[Path, dict[str, str]] = {}
        self._images: dict[Path, dict[str, str]] = {}

    def find(self, folder: Path, name: str) -> Path | None:
        """Returns the file of a name in a folder."""
        found = self._list(folder).get(normalize("NFC", name))
        return folder / found if found else None

    def find_image(self, folder: Path, stem: str) -> Path | None:
        """Returns the image in a folder whose name without its suffix is given; the first of several."""
        self._list(folder)
        found = self._images[folder].get(normalize("NFC", stem))
        return folder / found if found else None

    def _list(self, folder: Path) -> dict[str, str]:
        if folder not in self._names:
            try:
                with os.scandir(folder) as entries:
                    files = [entry.name for entry in entries if entry.is_file()]
                names = sorted(name for name in files if not is_leftover(name))
            except (OSError, ValueError):  # ValueError: NUL in the name
                names = []
            self._names[folder] = {normalize("NFC", name): name for name in names}
            stems = (os.path.splitext(name) for name in reversed(names))
            images = {stem: stem + suffix for stem, suffix in stems if suffix.lower() in IMAGE_SUFFIXES}
            self._images[folder] = {normalize("NFC", stem): name for stem, name in images.items()}
        return self._names[folder]
