"""Recognition of annotation files by their first bytes: COCO, or a format that is named but not read."""

import mmap
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from mrcnn_jax.data.image_files import walk

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


def describe_folder(folder: Path) -> str | None:
    """Returns a clause that names the annotations of a folder without COCO files and says what to do."""
    files = [path for path, _ in zip(walk(folder), range(100_000), strict=False) if path.is_file()]
    by_suffix = Counter(path.suffix.lower() for path in files)
    kinds = Counter(json_kind(path) for path in _some(files, ".json"))
    for kind, count in kinds.most_common():
        if kind not in (None, COCO):
            return f"it holds {count if count < 1000 else 'many'} JSON files of {kind}: {_EXPORT}"
    if by_suffix[".jsonl"] or by_suffix[".ndjson"]:
        return f"it holds JSON Lines, one object a line: {_EXPORT}"
    named = {path.name.lower() for path in files}
    texts = [path for path in _some(files, ".txt") if path.name.lower() not in ("classes.txt", "readme.txt")]
    if any(map(_is_yolo, texts[:20])):
        return f"it holds label files of YOLO (*.txt, a line an object): {_EXPORT}"
    if by_suffix[".xml"]:
        head = next(_some(files, ".xml")).read_bytes()[:2000]
        voc = b"<annotation" in head and b"<annotations" not in head
        kind = "Pascal VOC" if voc else "CVAT or another tool"
        return f"it holds XML files of {kind}: {_EXPORT}"
    if by_suffix[".csv"]:
        return f"it holds CSV files: {_EXPORT}"
    if {"data.yaml", "dataset.yaml"} & named:
        return f"it holds a description for YOLO: {_EXPORT}"
    if by_suffix[".zip"] or by_suffix[".gz"] or by_suffix[".tar"]:
        return "it holds archives: unpack them"
    if by_suffix[".json"]:
        return "its JSON files lack the lists images, annotations and categories of COCO"
    return None


def _some(files: Iterable[Path], suffix: str, number: int = 1000) -> Iterator[Path]:
    chosen = (path for path in files if path.suffix.lower() == suffix)
    return (path for path, _ in zip(chosen, range(number), strict=False))


def _is_yolo(path: Path) -> bool:
    try:
        line = path.read_bytes()[:2000].split(b"\n")[0].split()
        return len(line) >= 5 and line[0].isdigit() and all(0 <= float(number) <= 1 for number in line[1:5])
    except (OSError, ValueError):
        return False
