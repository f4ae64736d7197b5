"""Recognition of annotation files by their first bytes: COCO, or a format that is named but not read."""

import mmap
import re
from collections import Counter
from pathlib import Path

COCO = "COCO"
_EXPORT = "export or convert it to COCO first"
_HEAD = 65536
_COCO_KEYS = (b'"images"', b'"annotations"', b'"categories"')
_JSON_KINDS = (
    ("LabelMe", (b'"shapes"', b'"imagePath"')),
    ("LabelMe", (b'"shapes"', b'"version"')),
    ("VIA project", (b'"_via_',)),
    ("VIA project", (b'"regions"', b'"region_attributes"')),
    ("Label Studio JSON", (b'"data"', b'"annotations"', b'"result"')),
    ("COCO results", (b'"image_id"', b'"category_id"', b'"score"')),
    ("CreateML", (b'"image"', b'"annotations"', b'"coordinates"')),
    ("LVIS or COCO captions", (b'"caption"',)),
    ("COCO panoptic", (b'"segments_info"',)),
    ("BDD100K or Scale", (b'"labels"', b'"box2d"')),
    ("Supervisely", (b'"objects"', b'"classTitle"')),
    ("Labelbox", (b'"data_row"',)),
    ("Darwin (V7)", (b'"annotations"', b'"slot_names"')),
    ("SuperAnnotate", (b'"instances"', b'"className"')),
)  # fmt: skip
"""JSON formats by texts that all occur at the start of the file."""


def json_kind(path: Path) -> str | None:
    """Returns "COCO" for what is or may be meant as a COCO file, another format's name, or None."""
    if not path.is_file():  # a pipe has no end
        return None
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
            if not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
                return None
            known = sum(key in head for key in _COCO_KEYS)
            name = next((name for name, keys in _JSON_KINDS if all(key in head for key in keys)), None)
            if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and known and name != "COCO panoptic":
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    images, annotations, categories = (content.find(key) >= 0 for key in _COCO_KEYS)
                    whole = content[-64:].rstrip(b" \t\r\n\0").endswith(b"}")
                if whole and not annotations:
                    return "list of images without annotations" if images and categories else name
                if images and annotations and categories:
                    return COCO
                if not whole or (images and annotations and not name):
                    return COCO  # cut short or incomplete: the reader says so
            return name
    except (OSError, ValueError):
        return None


def lists_no_image(path: Path) -> bool:
    """Returns whether a COCO file's list of images is empty."""
    if not path.is_file():
        return False
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.find(b'"images"')
            return bool(re.match(rb'"images"\s*:\s*\[\s*\]', content[start : start + 100]))
    except (OSError, ValueError):
        return False


def describe_files(files: dict[str, list[Path]]) -> str | None:
    """Returns a clause that names the annotations of a folder in another format and says what to do.

    Args:
        files: by suffix.
    """
    kinds = Counter(json_kind(path) for path in files.get(".json", [])[:1000])
    for kind, count in kinds.most_common():
        if kind not in (None, COCO):
            return f"it holds {count if count < 1000 else 'many'} JSON files of {kind}: {_EXPORT}"
    if ".jsonl" in files or ".ndjson" in files:
        return f"it holds JSON Lines, one object a line: {_EXPORT}"
    if ".csv" in files:
        return f"it holds CSV files: {_EXPORT}"
    if files.keys() & {".zip", ".gz", ".tar"}:
        return "it holds archives: unpack them"
    if ".json" in files:
        return "its JSON files lack the lists images, annotations and categories of COCO"
    return None
