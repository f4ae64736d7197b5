"""Contents of a listing by id: images, categories and the annotations of each image.

Ids are whole numbers, also as floats or in the plain decimal spelling of a text; other texts are names, which
get numbers of their own. Entries that cannot be placed are left out and kept as flaws for the report.
"""

import itertools
import unicodedata
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from mrcnn_jax.data.formats.coco_categories import read_category, some
from mrcnn_jax.data.formats.coco_numbers import MAX_WHOLE, to_id
from mrcnn_jax.data.formats.conversion_report import Label
from mrcnn_jax.data.formats.listing import Flaw, Listing, place_of
from mrcnn_jax.errors import InputError

_PARTS = "bbox", "segmentation", "keypoints", "iscrowd"
"""Fields in which copies of an annotation agree, besides image and category."""
_NO_ID = "id is neither a whole number of 64 bits nor a text"
OF_A_BAD_IMAGE = "annotation of an image that is left out"


class ListingContents:
    """Images, categories and annotations of a listing.

    Attributes:
        images: usable images by id, in the order of ids.
        categories: by id, in the order of ids.
        annotations: of each usable image, with usable ids.
        flaws: what was left out and mended.
        warnings: a sentence each.
        source: format and path.
        drawn_upright: as in ``Listing``.

    Raises:
        InputError: nothing in it can be used, or two names share a category id.
    """

    def __init__(self, listing: Listing):
        self.path, self.flaws, self.warnings = listing.path, listing.flaws, listing.warnings
        self.source, self.drawn_upright = f"{listing.format}: {listing.path}", listing.drawn_upright
        images, self._image_ids = self._by_id("image", listing.images)
        categories, self._category_ids = self._by_id("category", listing.categories)
        self.images = dict(self._usable_images(images))
        notes: dict[str, list[str]] = {}
        self.categories = {
            id_: read_category(id_, self._only_category(id_, group), notes)
            for id_, group in sorted(categories.items())
        }
        self.warnings += [f"{some(names)}: {note}" for note, names in notes.items()]
        if not self.categories:
            raise InputError(f"{self.path}: none of its {len(listing.categories)} categories has an id")
        self._warn_of_categories()
        self.annotations: dict[int, list[dict]] = {id_: [] for id_ in self.images}
        self._unusable_images = images.keys() - self.images.keys()
        self._group(listing.annotations)
        self._drop_copies()

    def count_keypoints(self) -> dict[int, int]:
        """Returns the number of annotations with keypoints of each category."""
        counts = dict.fromkeys(self.categories, 0)
        if any(category.keypoints for category in self.categories.values()):
            for annotation in itertools.chain.from_iterable(self.annotations.values()):
                counts[annotation["category_id"]] += bool(annotation.get("keypoints"))
        return counts

    def _by_id(self, kind: str, entries: list) -> tuple[dict[int, list[dict]], "_Ids"]:
        """Returns the entries of each id, and the reader of these ids."""
        groups: dict[int, list[dict]] = {}
        texts: dict[str, list[dict]] = {}
        for position, entry in enumerate(entries):
            given = entry.get("id") if isinstance(entry, dict) else None
            id_, name = to_id(given), _name(entry, f"number {position}, from 0")
            if id_ is not None:
                groups.setdefault(id_, []).append(entry)
            elif isinstance(given, str) and given.strip():
                texts.setdefault(given, []).append(entry)
            elif kind == "image":
                flaw = "without an id" if _is_blank(given) else f"whose {_NO_ID}"
                self.flaws.append(Flaw("images_left_out", flaw, name))
            else:
                flaw = "it has no id" if _is_blank(given) else f"its {_NO_ID}"
                self.warnings.append(f"category {name} is left out: {flaw}")
            if isinstance(given, str | float) and kind == "image":
                self.flaws.append(Flaw("images_mended", "whose id is written as text or float", name))
        first = max((id_ for id_ in groups if id_ < MAX_WHOLE), default=0) + 1
        free = (number for number in itertools.count(first) if number not in groups)
        numbers = dict(zip(texts, free, strict=False))
        return groups | {numbers[text]: group for text, group in texts.items()}, _Ids(numbers)

    def _usable_images(self, groups: dict[int, list[dict]]) -> Iterator[tuple[int, dict]]:
        for id_, (image, *others) in sorted(groups.items()):
            name = _name(image, f"id {id_}")
            for one in (image, *others):
                if not one.get("file_name") and isinstance(one.get("coco_url"), str):  # as LVIS has it
                    one["file_name"] = urlsplit(one["coco_url"]).path.lstrip("/")
            if not isinstance(image.get("file_name"), str) or not image["file_name"]:
                self.flaws.append(Flaw("images_left_out", "without a file_name", name))
            elif any(other.get("file_name") != image["file_name"] for other in others):
                kind = "whose id is given to several images"
                names = [_name(one, f"id {id_}") for one in (image, *others)]
                self.flaws += [Flaw("images_left_out", kind, name) for name in names]
            else:
                if others:
                    self.flaws.append(Flaw("images_mended", "listed more than once", name))
                yield id_, image

    def _only_category(self, id_: int, group: list[dict]) -> dict:
        names = {str(entry.get("name")) for entry in group}
        if len(names) > 1:
            shown = " and ".join(map(repr, sorted(names)))
            raise InputError(f"{self.path}: category id {id_} is given more than once, to {shown}")
        return group[0]

    def _warn_of_categories(self) -> None:
        ids: dict[str, list[int]] = {}
        for id_, category in self.categories.items():
            ids.setdefault(_spelling(category.name), []).append(id_)
        for repeated in ids.values():
            if len(repeated) > 1:
                names = list(dict.fromkeys(self.categories[id_].name for id_ in repeated))
                alike = "" if len(names) == 1 else ", which may be the same name"
                quoted = repr(names[0]) if len(names) == 1 else " and ".join(map(ascii, names))
                numbers = ", ".join(map(str, repeated))
                given = f"{len(repeated)} categories are named {quoted} (ids {numbers}){alike}"
                self.warnings.append(f"{given}: they compete as classes; merge them if they are one")

    def _group(self, entries: list) -> None:
        """Places annotations under their images and gives them ids that are unique and positive."""
        plain = not (self._image_ids.texts or self._category_ids.texts)
        seen, renumbered = set[int](), list[tuple[dict, int]]()
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict):
                label = f"number {position}, from 0"
                self.flaws.append(Flaw("left_out", "annotation that is not an object", label))
                continue
            image_id, category_id, id_ = entry.get("image_id"), entry.get("category_id"), entry.get("id")
            if not (plain and type(image_id) is type(category_id) is type(id_) is int):
                image_id, category_id, id_ = self._read_ids(entry)
            if image_id not in self.annotations or category_id not in self.categories:
                label = id_ if id_ is not None else f"number {position}, from 0"
                self.flaws.append(Flaw("left_out", self._why_unplaced(image_id), label))
                continue
            self.annotations[image_id].append(entry)
            if id_ is None or not 0 < id_ < 2**53 or id_ in seen:
                renumbered.append((entry, image_id))
            else:
                seen.add(id_)
        kind = "id missing, repeated or not a positive number: new id given"
        for id_, (entry, image_id) in enumerate(renumbered, start=max(seen, default=0) + 1):
            entry["id"] = id_
            self.flaws.append(Flaw("mended", kind, id_, image_id))

    def _drop_copies(self) -> None:
        """Leaves out annotations that repeat another one of their image, but for the id."""
        for image_id, annotations in self.annotations.items():
            first: dict[Any, dict] = {}
            copies: dict[int, Label] = {}
            for annotation in annotations:
                box, mask = annotation.get("bbox"), annotation.get("segmentation")
                if not (box or mask):
                    continue
                key = annotation["category_id"], tuple(box) if type(box) is list else repr(mask)
                try:
                    other = first.setdefault(key, annotation)
                except TypeError:  # lists within the box
                    continue
                same = all(other.get(part) == annotation.get(part) for part in _PARTS)
                if same and other is not annotation:
                    copies[annotation["id"]] = place_of(annotation)
            if copies:
                self.annotations[image_id] = [each for each in annotations if each["id"] not in copies]
                kind = "copy of another annotation"
                self.flaws += [Flaw("left_out", kind, place, image_id) for place in copies.values()]

    def _read_ids(self, entry: dict) -> tuple[int | None, int | None, int | None]:
        """Returns the ids of an annotation that are written as text or float, and stores them in it."""
        found, plain = [], True
        readers = {"image_id": self._image_ids, "category_id": self._category_ids, "id": _Ids({})}
        for key, ids in readers.items():
            given = entry.get(key)
            number = ids.read(given)
            found.append(number)
            entry[key] = number if number is not None else given
            plain &= type(given) is int
        image_id, category_id, id_ = found
        usable = image_id in self.annotations and category_id in self.categories and id_ is not None
        if usable and not plain:
            self.flaws.append(Flaw("mended", "ids written as text or float", id_, image_id))
        return image_id, category_id, id_

    def _why_unplaced(self, image_id: int | None) -> str:
        if image_id in self._unusable_images:
            return OF_A_BAD_IMAGE
        unlisted = "a category" if image_id in self.annotations else "an image"
        return f"annotation of {unlisted} that is not listed"


class _Ids:
    """Reader of ids as numbers.

    Args:
        texts: numbers of the ids that are names.
    """

    def __init__(self, texts: dict[str, int]):
        self.texts, self._given = texts, set(texts.values())

    def read(self, value: Any) -> int | None:
        """Returns the number of an id; None if it is none, or the number that a name was given."""
        if isinstance(value, str) and value in self.texts:
            return self.texts[value]
        number = to_id(value)
        return None if number in self._given else number


def _spelling(name: str) -> str:
    """Returns a name in one Unicode form, without surrounding and repeated spaces."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def _is_blank(id_: Any) -> bool:
    return id_ is None or (isinstance(id_, str) and not id_.strip())


def _name(entry: Any, otherwise: str) -> str:
    """Returns what the report calls an image or category."""
    names = (entry.get(key) for key in ("file_name", "name")) if isinstance(entry, dict) else ()
    return next((name for name in names if isinstance(name, str) and name), otherwise)

