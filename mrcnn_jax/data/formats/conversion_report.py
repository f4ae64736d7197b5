"""Report of what a format's reader kept, left out and mended."""

import math
from collections import defaultdict
from collections.abc import Iterable

from mrcnn_jax.errors import InputError, printable
from mrcnn_jax.messages import listed

Label = int | str
"""Id of an annotation, or its place in the file where it has none."""


class ConversionReport:
    """Annotations and images of a split that were left out or mended, by kind, and what looks wrong.

    Attributes:
        name: what the report calls the split.
        source: format and path of the annotations; "" if omitted.
        images: number of images, used or not.
        annotations: number of annotations, used or not.
        left_out, mended: annotations by fault; sets, so that reading a record twice counts it once.
        dropped: annotations of which one part, such as the mask, is not used, by fault.
        images_left_out, images_mended, image_notes: file names by fault and by what was done.
        warnings: suspicions, a sentence each.
    """

    def __init__(self, name: str, images: int, annotations: int):
        self.name, self.images, self.annotations, self.source = name, images, annotations, ""
        self.left_out: dict[str, set[Label]] = defaultdict(set)
        self.dropped: dict[str, set[Label]] = defaultdict(set)
        self.mended: dict[str, set[Label]] = defaultdict(set)
        self.images_left_out: dict[str, list[str]] = defaultdict(list)
        self.images_mended: dict[str, list[str]] = defaultdict(list)
        self.image_notes: dict[str, list[str]] = defaultdict(list)
        self.warnings: list[str] = []

    @property
    def kept(self) -> int:
        """Number of annotations that became objects."""
        return self.annotations - sum(map(len, self.left_out.values()))

    def require_few_bad_images(self, path: object, max_bad: float) -> None:
        """Raises InputError, which names the images, if more are left out than ``max_bad`` allows.

        Args:
            path: the annotation file.
            max_bad: largest share of images, rounded up to a whole image.
        """
        bad = [f"{name}: {kind}" for kind, names in self.images_left_out.items() for name in names]
        if len(bad) > math.ceil(max_bad * self.images) or len(bad) == self.images:
            count = f"{len(bad)} of {self.images} images cannot be used"
            allowed = f"--max-bad {max_bad:g} allows {math.ceil(max_bad * self.images)}"
            allowed = allowed if len(bad) < self.images else "none is left"
            raise InputError(printable(f"{path}: {count}, {allowed} ({listed(bad, 20, '; ')})"))

    def require_an_object(self, path: object) -> None:
        """Raises InputError, which lists the reasons, if there are annotations but all are left out."""
        if self.annotations and not self.kept:
            count = f"none of its {self.annotations:,} annotations of {self.name} can be used"
            reasons = "; ".join(_annotation_lines(self.left_out))
            raise InputError(printable(f"{path}: {count}, so that nothing can be learned: {reasons}"))

    def require_no_flaw(self, path: object) -> None:
        """Raises InputError, which lists the kinds of flaws, if anything was mended or left out."""
        if flaws := [line for _, line in self._flaws()]:
            raise InputError(printable(f"{path} is refused, as --strict asks: {'; '.join(flaws)}"))

    def warn_of_share_left_out(self, max_bad: float) -> list[str]:
        """Returns a warning if more than this share of the annotations is left out."""
        left_out = self.annotations - self.kept
        count = f"{left_out:,} of {self.annotations:,} annotations are left out"
        advice = "if that is more than you expected, mend the file first"
        return [f"{count}: {advice}"] if left_out > max_bad * self.annotations else []

    def __str__(self) -> str:
        kept = f"{self.kept:,} of {self.annotations:,} annotations kept"
        source = f" ({self.source})" if self.source else ""
        lines = [f"{self.name}: {self.images:,} images, {kept}{source}"]
        lines += [f"  {heading}: {line}" for heading, line in self._flaws()]
        lines += [f"  note: {line}" for line in _image_lines(self.image_notes)]
        lines += [f"  warning: {warning}" for warning in self.warnings]
        return "\n".join(map(printable, lines))

    def _flaws(self) -> list[tuple[str, str]]:
        """Returns heading and text of each kind of flaw."""
        images = [("left out", line) for line in _image_lines(self.images_left_out)]
        images += [("mended", line) for line in _image_lines(self.images_mended)]
        headings = {"left out": self.left_out, "not used": self.dropped, "mended": self.mended}
        return images + [
            (heading, line) for heading, kinds in headings.items() for line in _annotation_lines(kinds)
        ]


def _image_lines(kinds: dict[str, list[str]]) -> list[str]:
    return [f"{len(names):,} x image {kind} ({listed(names, 5)})" for kind, names in sorted(kinds.items())]


def _annotation_lines(kinds: dict[str, set[Label]]) -> list[str]:
    return [
        f"{len(labels):,} x {kind} (annotation {listed(_in_order(labels), 5)})"
        for kind, labels in sorted(kinds.items())
    ]


def _in_order(labels: Iterable[Label]) -> list[Label]:
    return sorted(labels, key=lambda label: (isinstance(label, str), label))
