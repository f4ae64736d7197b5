"""Elements of XML files, one at a time; entities are refused, as they may expand without bounds."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from xml.parsers import expat

from mrcnn_jax.errors import InputError

_BLOCK = 1 << 16  # bytes read at a time
_DEPTH = 50  # of elements in elements


def root_tag(path: Path) -> str | None:
    """Returns the tag of a file's root element; None if it cannot be read, or declares entities."""
    tags: list[str] = []
    reader = _Reader(path, ())
    reader.parser.StartElementHandler = lambda tag, _: tags.append(tag)
    try:
        with open(path, "rb") as file:
            while not tags and (block := file.read(_BLOCK)):
                reader.parser.Parse(block, False)
    except (OSError, ValueError, LookupError, expat.ExpatError):
        pass  # the root's tag may precede what is wrong
    return tags[0] if tags else None


def read_elements(path: Path, *tags: str) -> Iterator[ElementTree.Element]:
    """Yields the outermost elements of some tags, complete, while the file is being read.

    Raises:
        InputError: the file cannot be read, is not well-formed, declares entities or nests too deeply.
    """
    reader = _Reader(path, tags)
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                reader.parser.Parse(block, False)
                yield from reader.take()
            reader.parser.Parse(b"", True)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except InputError:
        raise
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two: of the encoding
        raise InputError(f"{path} is not valid XML: {error}; it may have been cut short") from None


class _Reader:
    """Builds the elements of some tags from the events of a parser."""

    def __init__(self, path: Path, tags: tuple[str, ...]):
        self._path, self._tags, self._depth = path, tags, 0
        self._builder: ElementTree.TreeBuilder | None = None
        self._since, self._done = 0, list[ElementTree.Element]()
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.EntityDeclHandler = self._refuse_entities
        self.parser.StartElementHandler, self.parser.EndElementHandler = self._start, self._end
        self.parser.CharacterDataHandler = self._data

    def take(self) -> list[ElementTree.Element]:
        """Returns the elements that were completed since the last call."""
        done, self._done = self._done, []
        return done

    def _refuse_entities(self, *_: object) -> None:
        raise InputError(f"{self._path} declares XML entities, which annotations do not need: it is not read")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _DEPTH:
            raise InputError(f"{self._path} nests XML elements deeper than {_DEPTH} levels: it is not read")
        if self._builder is None and tag in self._tags:
            self._builder, self._since = ElementTree.TreeBuilder(), self._depth
        if self._builder is not None:
            self._builder.start(tag, attributes)

    def _end(self, tag: str) -> None:
        if self._builder is not None:
            self._builder.end(tag)
            if self._depth == self._since:
                self._done.append(self._builder.close())
                self._builder = None
        self._depth -= 1

    def _data(self, text: str) -> None:
        if self._builder is not None:
            self._builder.data(text)
