"""Categories of COCO files: names, keypoints and skeletons, and the classes of a data set made from them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mrcnn_jax.data.coco_keypoints import PERSON_KEYPOINTS, PERSON_SIGMAS, flip_indices
from mrcnn_jax.data.formats.coco_numbers import is_empty, parse_text, to_whole
from mrcnn_jax.errors import InputError
from mrcnn_jax.messages import listed
from mrcnn_jax.structures import DatasetInfo

Edges = tuple[tuple[int, int], ...]
_ONE_LIST = "a model has one list"


class Category(NamedTuple):
    """A category of an annotation file."""

    id: int
    name: str
    parent: str
    keypoints: tuple[str, ...]
    skeleton: Edges  # counted from 0


def read_category(id_: int, entry: dict, notes: dict[str, list[str]]) -> Category:
    """Reads a category, mends what is unambiguous, and adds its name to the notes of each flaw."""
    name = _text(entry.get("name"))
    if not name:
        name = f"class {id_}"
        notes.setdefault("categories without a name are called by their ids", []).append(name)
    keypoints, flaw = _keypoint_names(entry.get("keypoints"))
    if flaw:
        notes.setdefault(flaw, []).append(name)
    edges, dropped = _skeleton(entry.get("skeleton"), keypoints) if keypoints else ((), 0)
    if dropped:
        edges_ = f"{dropped} edges of the skeleton are no pairs of keypoints 1..{len(keypoints)}"
        flaw = f"{edges_}, so they are not drawn"
        notes.setdefault(flaw, []).append(name)
    return Category(id_, name, _text(entry.get("supercategory")), keypoints, edges)


def _text(value: Any) -> str:
    """Returns a name that can be stored as UTF-8; "" for what is none."""
    text = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    return text.encode("utf-8", "backslashreplace").decode()


def _keypoint_names(given: Any) -> tuple[tuple[str, ...], str | None]:
    """Returns the names of keypoints, and the flaw that was mended, if any."""
    if is_empty(given):
        return (), None
    value = given
    if isinstance(value, str):
        value = parse_text(value) if value.lstrip().startswith("[") else value.replace(";", ",").split(",")
    if isinstance(value, dict):
        numbered = all(to_whole(number) is not None for number in value.values())
        value = sorted(value, key=lambda name: to_whole(value[name])) if numbered else list(value)
    if not isinstance(value, list):
        return (), "keypoints that are no list of names are not used"
    names = [_text(item.get("name") if isinstance(item, dict) else item).strip() for item in value]
    names = [name or f"keypoint {i}" for i, name in enumerate(names, start=1)]
    repeated = [name for name, times in Counter(names).items() if times > 1]
    taken: Counter[str] = Counter()
    for i, name in enumerate(names if repeated else ()):
        taken[name] += 1
        names[i] = name if taken[name] == 1 else f"{name} {taken[name]}"
    flaw = f"keypoints of the same name ({some(repeated)}) are numbered" if repeated else None
    return tuple(names), flaw


def _skeleton(given: Any, names: Sequence[str]) -> tuple[Edges, int]:
    """Returns the edges of a skeleton, counted from 0, and how many entries are none.

    Entries are pairs of numbers or names; numbers count from 1, as COCO's do, unless there is a 0.
    """
    value = parse_text(given)
    if is_empty(value):
        return (), 0
    if not isinstance(value, list):
        return (), 1
    if not any(isinstance(item, list | dict) for item in value) and not len(value) % 2:
        value = [value[i : i + 2] for i in range(0, len(value), 2)]
    number = {name: i for i, name in reversed(list(enumerate(names, start=1)))}
    ends = [
        [number.get(end) if isinstance(end, str) and end in number else to_whole(end) for end in item]
        if isinstance(item, list) and len(item) == 2 else [None]
        for item in value
    ]  # fmt: skip
    first = 0 if any(0 in pair for pair in ends) else 1
    edges = [(a - first, b - first) for a, b in (pair for pair in ends if None not in pair)]
    usable = tuple(edge for edge in edges if all(0 <= end < len(names) for end in edge))
    return usable, len(value) - len(usable)


class Classes(NamedTuple):
    """Classes of a data set, and what the categories of each split are among them."""

    info: DatasetInfo
    class_of: dict[str, dict[int, int]]  # class by category id, of each split
    keypoints_of: dict[str, set[int]]  # category ids whose objects have the data set's keypoints
    warnings: dict[str, list[str]]


def unite(
    name: str,
    splits: Mapping[str, Mapping[int, Category]],
    with_keypoints: Mapping[str, Mapping[int, int]],
    strict: bool = False,
) -> Classes:
    """Unites the categories of the splits by name; those of the first split keep their ids.

    Args:
        name: of the data set.
        splits: the categories of each split by id.
        with_keypoints: number of annotations with keypoints of each category.
        strict: refuse categories that differ.

    Raises:
        InputError: a split has no class in common with the first, or differs though ``strict``.
    """
    (first, categories), *others = splits.items()
    united = {id_: category.name for id_, category in categories.items()}
    warnings: dict[str, list[str]] = {split: [] for split in splits}
    ids = {first: {id_: id_ for id_ in categories}}
    for split, categories in others:
        ids[split], sentences = _match(first, united, split, categories)
        warnings[split] += sentences
        if sentences and strict:
            raise InputError(f"the categories of {first} and {split} differ: {'; '.join(sentences)}")
    order = sorted(united)
    class_of = {s: {id_: order.index(target) for id_, target in ids[s].items()} for s in splits}
    keypoints, skeleton = _choose_keypoints(splits, with_keypoints, warnings)
    keypoints_of, classes = {}, set()
    for split, categories in splits.items():
        own = {id_ for id_, category in categories.items() if keypoints and category.keypoints == keypoints}
        classes |= {class_of[split][id_] for id_ in own}
    for split, categories in splits.items():
        unlisted = {id_ for id_, c in categories.items() if c.keypoints in ((), keypoints)}
        keypoints_of[split] = {id_ for id_ in unlisted if class_of[split][id_] in classes}
    info = DatasetInfo(
        name=name,
        category_ids=tuple(order),
        category_names=tuple(united[id_] for id_ in order),
        keypoint_names=keypoints,
        keypoint_flip=flip_indices(keypoints),
        skeleton=skeleton,
        keypoint_classes=tuple(sorted(classes)),
        keypoint_sigmas=PERSON_SIGMAS if keypoints == PERSON_KEYPOINTS else (),
    )
    if len(keypoints) > 1 and info.keypoint_flip == tuple(range(len(keypoints))):
        sides = "left and right do not trade places when images are mirrored"
        advice = "name the sides, as in left_eye and right_eye, or train with --data.augment.flip 0"
        warnings[first].append(f"no keypoint has a mirror partner by its name: {sides}; {advice}")
    return Classes(info, class_of, keypoints_of, warnings)


def _match(
    first: str, united: dict[int, str], split: str, categories: Mapping[int, Category]
) -> tuple[dict[int, int], list[str]]:
    """Returns the united id of each category of a split, and what differs; adds new classes to ``united``."""
    exact = dict(_numbered(united))
    loose = {(name.strip().casefold(), i): id_ for (name, i), id_ in exact.items()}
    ids: dict[int, int] = {}
    new: list[Category] = []
    for key, id_ in _numbered({id_: category.name for id_, category in categories.items()}):
        target = exact.get(key, loose.get((key[0].strip().casefold(), key[1])))
        if target is None or target in ids.values():
            new.append(categories[id_])
        else:
            ids[id_] = target
    if not ids:
        given = some(list(united.values())), some([category.name for category in new])
        raise InputError(f"{first} ({given[0]}) and {split} ({given[1]}) have no class name in common")
    lacking = [name for id_, name in united.items() if id_ not in ids.values()]
    for category in new:
        ids[category.id] = category.id if category.id not in united else max(united) + 1
        united[ids[category.id]] = category.name
    sentences = []
    if moved := [c for c in categories.values() if ids[c.id] != c.id and c not in new]:
        example = f"{moved[0].name!r} is {moved[0].id} there and {ids[moved[0].id]} in {first}"
        sentences.append(f"{len(moved)} classes have other ids than in {first}, matched by name ({example})")
    if new:
        added = some([category.name for category in new])
        sentences.append(f"classes that {first} lacks are added, though none can be learned: {added}")
    if lacking:
        sentences.append(f"classes of {first} are not listed in {split}: {some(lacking)}")
    return ids, sentences


def _numbered(names: Mapping[int, str]) -> Iterator[tuple[tuple[str, int], int]]:
    """Yields ids by name and by how often the name occurred before."""
    seen: Counter[str] = Counter()
    for id_, name in names.items():
        yield (name, seen[name]), id_
        seen[name] += 1


def _choose_keypoints(
    splits: Mapping[str, Mapping[int, Category]],
    with_keypoints: Mapping[str, Mapping[int, int]],
    warnings: dict[str, list[str]],
) -> tuple[tuple[str, ...], Edges]:
    """Returns the keypoint names that most annotations have, the first of equals, and their skeleton."""
    lists: Counter[tuple[str, ...]] = Counter()
    for split, categories in splits.items():
        for id_, category in categories.items():
            if category.keypoints:
                lists[category.keypoints] += with_keypoints[split].get(id_, 0)
    if not lists:
        return (), ()
    chosen = max(lists, key=lambda names: lists[names])
    for split, categories in splits.items():
        if others := [c for c in categories.values() if c.keypoints and c.keypoints != chosen]:
            lost = sum(with_keypoints[split].get(c.id, 0) for c in others)
            kept = f"{_ONE_LIST}: the {len(chosen)} that most objects have are used ({some(chosen)})"
            left = f"the keypoints of {lost} objects of {some([c.name for c in others])} are not"
            warnings[split].append(f"classes have different keypoints, but {kept}, {left}")
    same = [c for categories in splits.values() for c in categories.values() if c.keypoints == chosen]
    return chosen, next((category.skeleton for category in same if category.skeleton), ())


def some(names: Sequence[str]) -> str:
    """Returns the first names, quoted."""
    return listed(list(map(repr, names)), 5)
