"""Text in pictures: on one line, of bounded length, in a font that has its characters or as escapes."""

import functools
import unicodedata
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

DEFAULT_FONT = Path(find_spec("matplotlib").origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
"""The font that Matplotlib brings along: Latin, Greek, Cyrillic, Arabic, Hebrew and more, but not Chinese."""
_ASCII = frozenset(range(128))  # which the default font has
_USELESS = "emoji", "lastresort", "blank"  # fonts of pictures, or of a box for every character


def legible(text: str, longest: int = 40) -> str:
    """Returns text that can be drawn on one line.

    Control characters, lone surrogates, and characters that no font of this machine has, become escapes such
    as ``\\u4e2d``; invisible ones are dropped.

    Args:
        text: any, such as a class name or the name of a file.
        longest: number of characters, of which the middle is left out beyond.
    """
    text = unicodedata.normalize("NFC", text)
    text = "".join(" " if c == "\xa0" else c for c in text if unicodedata.category(c) != "Cf")
    known = _ASCII if text.isascii() else _characters(_font_file(text))
    shown = "".join(c if c.isprintable() and ord(c) in known else ascii(c)[1:-1] for c in text)
    if len(shown) <= longest:
        return shown
    return f"{shown[: longest // 2]}…{shown[len(shown) - (longest - 1) // 2 :]}"


def load_font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """Loads a font that has all characters of ``text``, or else the default font."""
    return _load(_font_file(text), size)


def fit(text: str, size: int, width: float) -> str:
    """Returns legible text within a width in pixels, in the font ``load_font(size, text)``."""
    for longest in (200, 120, 80, 60, 40, 30, 20, 12, 6):
        shown = legible(text, longest)
        if load_font(size, shown).getlength(shown) <= width:
            break
    return shown


@functools.lru_cache(maxsize=1000)
def _font_file(text: str) -> Path:
    needed = {ord(character) for character in text if character.isprintable()}
    if needed <= _ASCII or needed <= _characters(DEFAULT_FONT):
        return DEFAULT_FONT
    return next((file for file in _system_fonts() if needed <= _characters(file)), DEFAULT_FONT)


@functools.cache
def _system_fonts() -> list[Path]:
    from matplotlib import font_manager

    files = sorted(map(Path, font_manager.findSystemFonts()))
    return [file for file in files if not any(word in file.name.lower() for word in _USELESS)]


@functools.cache
def _characters(file: Path) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font  # an import that English labels save

    try:
        _load(file, 12)
        return frozenset(FT2Font(str(file)).get_charmap())
    except (OSError, RuntimeError):  # a damaged font, or one of fixed sizes
        return frozenset()


@functools.lru_cache(maxsize=100)
def _load(file: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)
