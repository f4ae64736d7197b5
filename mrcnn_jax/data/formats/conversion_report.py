"""Report of what a format's reader kept, left out and mended."""

from collections import defaultdict


class Report:
    """Annotations of a split that were left out or mended, by kind.

    Attributes:
        name: what the report calls the split.
        images: number of images.
        annotations: number of annotations, used or not.
        left_out, mended: ids of annotations by fault; sets, so that reading a record twice counts it once.
    """

    def __init__(self, name: str, images: int, annotations: int):
        self.name, self.images, self.annotations = name, images, annotations
        self.left_out: dict[str, set[int]] = defaultdict(set)
        self.mended: dict[str, set[int]] = defaultdict(set)

    @property
    def kept(self) -> int:
        """Number of annotations that became objects."""
        return self.annotations - sum(map(len, self.left_out.values()))

    def __str__(self) -> str:
        kept = f"{self.kept:,} of {self.annotations:,} annotations kept"
        lines = [f"{self.name}: {self.images:,} images, {kept}"]
        for heading, kinds in (("left out", self.left_out), ("mended", self.mended)):
            for kind, ids in sorted(kinds.items()):
                shown = ", ".join(map(str, sorted(ids)[:5])) + (", ..." if len(ids) > 5 else "")
                lines.append(f"  {heading}: {len(ids):,} x {kind} (annotation {shown})")
        return "\n".join(lines)
