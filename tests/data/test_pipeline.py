"""Order, sharding and resuming of batches; evaluation sees every image once."""

import dataclasses
import re
import shutil
from collections import Counter

import cv2
import jax
import numpy as np
import pytest

from mrcnn_jax.config import DataConfig
from mrcnn_jax.data.dataset import Objects, Record, open_dataset
from mrcnn_jax.data.dataset_writer import write_dataset
from mrcnn_jax.data.pipeline import BatchPlan, UnreadableImages, evaluation_batches, training_batches
from mrcnn_jax.data.resize import resized_size
from mrcnn_jax.data.transforms import inference_sizes, padded_size, resize_and_pad
from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import DatasetInfo

CONFIG = DataConfig(short_edge=(16, 24), short_edge_test=20, long_edge=40, max_objects=3, mask_size=4, threads=2)
INFO = DatasetInfo("things", (1, 2), ("a", "b"))
LANDSCAPE, PORTRAIT = (12, 18), (18, 12)


class Source(list):
    """Records in memory, like a DatasetSplit."""

    info = INFO

    @property
    def sizes(self):
        return np.array([(record.height, record.width) for record in self])


def source(*sizes: tuple[int, int]) -> Source:
    """Images of noise of these sizes with ids 100, 101, ... and 0 to 3 objects."""
    made = Source()
    for i, (height, width) in enumerate(sizes):
        rng, count = np.random.default_rng(i), i % 4
        data = cv2.imencode(".png", rng.integers(0, 255, (height, width, 3), np.uint8))[1].tobytes()
        corners = rng.uniform(0, 8, (count, 2))
        objects = Objects(
            ids=np.arange(count) + 1, boxes=np.concatenate([corners, corners + rng.uniform(1, 4, (count, 2))], axis=1),
            classes=rng.integers(0, 2, count).astype(np.int32), areas=rng.uniform(1, 9, count), crowd=np.zeros(count, bool), rles=[""] * count,
            keypoints=np.zeros((count, 0, 3), np.float32),
        )  # fmt: skip
        made.append(Record(data, 100 + i, f"{i}.png", height, width, objects))
    return made


MIXED = source(*[LANDSCAPE, PORTRAIT, LANDSCAPE, (15, 15), LANDSCAPE, PORTRAIT, LANDSCAPE] * 2)  # 10 landscape (2 square), 4 portrait


def batches(given=MIXED, config=CONFIG, **options):
    return list(training_batches(given, config, **{"steps": 9, "images_per_process": 4, "seed": 5, **options}))


def ids(made) -> list[list[int]]:
    return [info.image_ids.tolist() for _, info in made]


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


# ---- one order for a seed


def test_a_seed_fixes_every_batch():
    first = batches()
    assert_same(first, batches())
    other = batches(seed=6)
    assert ids(first) != ids(other)
    with pytest.raises(AssertionError):
        assert_same(first, other)


def test_a_seed_decides_who_meets_whom_and_how_they_are_augmented():
    def meetings(seed, steps):
        plan = BatchPlan(np.array([LANDSCAPE] * 12 + [PORTRAIT] * 8), batch=4, seed=seed)
        return {frozenset(plan.record_index(step, position) for position in range(4)) for step in steps}

    assert not meetings(0, range(5)) & meetings(1, range(5))
    assert not meetings(0, range(5)) & meetings(0, range(5, 10))  # nor do the same meet in the next epoch
    one = source(LANDSCAPE)
    first, second = ([batch.images.tobytes() for batch, _ in batches(one, images_per_process=1, steps=20, seed=seed)] for seed in (5, 6))
    assert first != second


def test_batches_do_not_depend_on_the_number_of_threads():
    first = batches(config=dataclasses.replace(CONFIG, threads=1), steps=20)
    assert_same(first, batches(config=dataclasses.replace(CONFIG, threads=8), steps=20))


@pytest.mark.parametrize("start", [1, 4, 8, 9])
def test_starting_later_equals_skipping(start):
    assert_same(batches(start=start), batches()[start:])


def test_a_step_does_not_depend_on_how_many_follow():
    assert_same(batches(steps=3), batches(steps=20)[:3])


def test_processes_share_the_batch_of_one():
    whole = batches(images_per_process=4)
    first, second = (batches(images_per_process=2, process=process, processes=2) for process in range(2))
    assert_same([jax.tree.map(lambda *parts: np.concatenate(parts), *pair) for pair in zip(first, second, strict=True)], whole)
    quarters = [ids(batches(images_per_process=1, process=process, processes=4)) for process in range(4)]
    assert [sum(parts, []) for parts in zip(*quarters, strict=True)] == ids(whole)


def test_a_run_resumes_on_another_number_of_processes():
    resumed = [ids(batches(images_per_process=2, process=process, processes=2, start=5)) for process in range(2)]
    assert [a + b for a, b in zip(*resumed, strict=True)] == ids(batches())[5:]


# ---- what is in a batch


def test_a_batch_belongs_to_its_record():
    plain = dataclasses.replace(CONFIG, flip=False, short_edge=(20,))
    for batch, info in batches(config=plain):
        assert batch.images.shape[0] == batch.boxes.shape[0] == 4 and batch.images.dtype == np.uint8
        assert info.valid.all()
        for slot, image_id in enumerate(info.image_ids):
            record = MIXED[image_id - 100]
            image = cv2.imdecode(np.frombuffer(record.image, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
            size = resized_size(record.height, record.width, 20, plain.long_edge)
            assert tuple(batch.sizes[slot]) == size
            np.testing.assert_array_equal(batch.images[slot], resize_and_pad(image, size, batch.images.shape[1:3]))
            np.testing.assert_array_equal(info.original_sizes[slot], [record.height, record.width])
            assert batch.valid[slot].sum() == len(record.objects.ids)
            scale = np.tile([size[1] / record.width, size[0] / record.height], 2)
            np.testing.assert_allclose(batch.boxes[slot][batch.valid[slot]], record.objects.boxes * scale, rtol=1e-6)


def test_an_image_is_augmented_anew_each_time():
    given = source(LANDSCAPE)
    seen = {batch.images[0].tobytes() for batch, _ in batches(given, images_per_process=1, steps=40)}
    assert len(seen) == 4  # two sizes, mirrored or not


def test_a_batch_has_one_orientation_and_only_two_shapes_exist():
    made = batches(steps=60)
    shapes = {batch.images.shape[1:3] for batch, _ in made}
    assert shapes == {padded_size(CONFIG, False), padded_size(CONFIG, True)} == {(32, 64), (64, 32)}
    for batch, info in made:
        portrait = info.original_sizes[:, 0] > info.original_sizes[:, 1]
        assert portrait.all() or not portrait.any()
        assert batch.images.shape[1:3] == padded_size(CONFIG, bool(portrait[0]))


@pytest.mark.parametrize("size", [LANDSCAPE, PORTRAIT])
def test_one_orientation_alone(size):
    given = source(*[size] * 5)
    made = batches(given, steps=10, images_per_process=2)
    assert Counter(sum(ids(made), [])) == dict.fromkeys(range(100, 105), 4)
    assert {batch.images.shape[1:3] for batch, _ in made} == {padded_size(CONFIG, size == PORTRAIT)}


# ---- every image as often as every other


@pytest.mark.parametrize(
    "landscape, portrait, batch",
    [(10, 4, 4), (50, 1, 4), (1, 50, 3), (49, 1, 16), (7, 0, 3), (0, 5, 2), (2, 1, 8), (1, 0, 5), (0, 1, 1), (5, 5, 5), (13, 11, 7)],
)
def test_every_image_is_seen_equally_often(landscape, portrait, batch):
    sizes = np.array([LANDSCAPE] * landscape + [PORTRAIT] * portrait)
    plan, images = BatchPlan(sizes, batch, seed=3), landscape + portrait
    seen, by_step = np.zeros(images, int), []
    for step in range(3 * images):  # 3 * batch epochs, the first moment at which no batch is cut by the end of an epoch of either stream
        indices = [plan.record_index(step, position) for position in range(batch)]
        assert len(np.unique(np.array(indices) >= landscape)) == 1
        np.add.at(seen, indices, 1)
        by_step.append(seen.copy())
    np.testing.assert_array_equal(seen, 3 * batch)
    for step, seen in enumerate(by_step, start=1):
        # on the way each keeps to the average, give or take the epoch under way and a batch of its own orientation
        of_its_orientation = np.repeat([landscape, portrait], [landscape, portrait])
        assert (np.abs(seen - step * batch / images) <= 2 + batch / of_its_orientation).all()


def test_an_epoch_shows_each_image_once_where_batches_fit():
    plan = BatchPlan(np.array([LANDSCAPE] * 12 + [PORTRAIT] * 8), batch=4, seed=0)
    epochs = [[plan.record_index(step, position) for step in range(start, start + 5) for position in range(4)] for start in range(0, 40, 5)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # and each is shuffled anew
    orientations = {tuple(index >= 12 for index in epoch[::4]) for epoch in epochs}
    assert len(orientations) > 1  # also which orientation comes when


def test_any_step_can_be_asked_for_first():
    sizes = MIXED.sizes
    late, walked = BatchPlan(sizes, 4, seed=1), BatchPlan(sizes, 4, seed=1)
    in_order = [[walked.record_index(step, position) for position in range(4)] for step in range(400)]
    for step in (399, 0, 200, 7):
        assert [late.record_index(step, position) for position in range(4)] == in_order[step]


# ---- evaluation


@pytest.mark.parametrize("size", [1, 3, 4, 20])
def test_evaluation_sees_every_image_once_in_a_known_order(size):
    made = list(evaluation_batches(MIXED, CONFIG, size))
    real = [image_id for batch in made for image_id in batch.info.image_ids[batch.info.valid]]
    landscape = [100 + i for i in (0, 2, 3, 4, 6, 7, 9, 10, 11, 13)]
    assert real == landscape + [101, 105, 108, 112]
    assert {batch.images.shape for batch in made} == {(size, *padded_size(CONFIG, portrait), 3) for portrait in (False, True)}
    assert [batch.info.valid.all() for batch in made] == ([True] * (10 // size) + [False] * (10 % size > 0)) + (
        [True] * (4 // size) + [False] * (4 % size > 0)
    )
    for batch in made:
        fill = ~batch.info.valid
        assert (np.diff(fill.astype(int)) >= 0).all() and not fill[0]  # the real ones come first
        assert not batch.images[fill].any() and (batch.sizes[fill] == batch.images.shape[1:3]).all()


def test_evaluation_images_are_those_of_the_data_set():
    for batch in evaluation_batches(MIXED, CONFIG, 3):
        for slot in np.flatnonzero(batch.info.valid):
            record = MIXED[batch.info.image_ids[slot] - 100]
            image = cv2.imdecode(np.frombuffer(record.image, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
            size, padded = inference_sizes(*image.shape[:2], CONFIG)
            np.testing.assert_array_equal(batch.images[slot], resize_and_pad(image, size, padded))
            assert tuple(batch.sizes[slot]) == size and tuple(batch.info.original_sizes[slot]) == image.shape[:2]


@pytest.mark.parametrize("processes", [2, 3, 9])
def test_evaluation_is_shared_among_processes(processes):
    whole = list(evaluation_batches(MIXED, CONFIG, 3))
    shares = [list(evaluation_batches(MIXED, CONFIG, 3, process=process, processes=processes)) for process in range(processes)]
    assert sum(map(len, shares)) == len(whole)
    for process, share in enumerate(shares):
        assert_same(share, whole[process::processes])


@pytest.mark.parametrize("limit", [1, 5, 14, 99])
def test_evaluation_of_the_first_images(limit):
    seen = [image_id for batch in evaluation_batches(MIXED, CONFIG, 4, limit=limit) for image_id in batch.info.image_ids[batch.info.valid]]
    assert sorted(seen) == list(range(100, 100 + min(limit, 14)))


def test_evaluation_does_not_depend_on_the_number_of_threads():
    one, four = (list(evaluation_batches(MIXED, dataclasses.replace(CONFIG, threads=threads), 3)) for threads in (1, 4))
    assert_same(one, four)


# ---- from disk, and what is broken there


def test_a_stored_set_gives_the_same_batches(tmp_path):
    write_dataset(tmp_path / "set", INFO, {"train": MIXED})
    stored = open_dataset(tmp_path / "set", "train")
    assert_same(batches(stored), batches())
    assert_same(list(evaluation_batches(stored, CONFIG, 3)), list(evaluation_batches(MIXED, CONFIG, 3)))


def with_broken(*indices: int, given: Source = MIXED) -> Source:
    """The source, with these images cut short."""
    return Source(record._replace(image=record.image[:40]) if i in indices else record for i, record in enumerate(given))


def cannot_read(index: int) -> str:
    return f"cannot read image {100 + index} ({index}.png): it is truncated or damaged"


def test_an_unreadable_image_names_its_id():
    broken = with_broken(1, given=source(*[LANDSCAPE] * 3))
    for made in (training_batches(broken, CONFIG, steps=3, images_per_process=1, seed=0), evaluation_batches(broken, CONFIG, 2)):
        with pytest.raises(InputError, match=re.escape(cannot_read(1))) as refusal:
            list(made)
        assert "\n" not in str(refusal.value)  # Grain adds notes of its own to what passes through it, but leaves the sentence alone


def test_an_unreadable_training_image_is_replaced_by_the_next_of_its_orientation():
    stand_in = {100: 104, 102: 104, 103: 104, 113: 104, 105: 108}  # 103 is a square; behind 113, the last, comes the first
    broken, unreadable = with_broken(0, 2, 3, 13, 5), UnreadableImages(5)
    made = batches(broken, steps=20, unreadable=unreadable)
    assert ids(made) == [[stand_in.get(image_id, image_id) for image_id in step] for step in ids(batches(steps=20))]
    assert unreadable.messages == {index: cannot_read(index) for index in (0, 2, 3, 13, 5)}
    for batch, info in made:  # and the pixels, the size and the boxes are those of the image that is named
        for slot, image_id in enumerate(info.image_ids):
            record = MIXED[image_id - 100]
            assert batch.images[slot].any() and tuple(info.original_sizes[slot]) == (record.height, record.width)
            assert batch.valid[slot].sum() == len(record.objects.ids)
    assert_same(batches(broken, steps=20, start=7, unreadable=UnreadableImages(5)), made[7:])
    shares = [batches(broken, steps=20, images_per_process=2, process=process, processes=2, unreadable=UnreadableImages(5)) for process in range(2)]
    assert_same([jax.tree.map(lambda *parts: np.concatenate(parts), *pair) for pair in zip(*shares, strict=True)], made)
    assert_same(batches(broken, dataclasses.replace(CONFIG, threads=8), steps=20, unreadable=UnreadableImages(5)), made)


def test_each_unreadable_image_is_told_once():
    unreadable = UnreadableImages(2)
    iterator = training_batches(with_broken(0, 2), CONFIG, steps=30, images_per_process=4, seed=5, unreadable=unreadable)
    told = [message for _ in iterator for message in unreadable.new_messages()]
    assert sorted(told) == [cannot_read(0), cannot_read(2)]
    assert not unreadable.new_messages()


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_more_unreadable_images_than_allowed_end_the_iteration(limit):
    unreadable = UnreadableImages(limit)
    with pytest.raises(InputError) as refusal:
        batches(with_broken(0, 1, 2), dataclasses.replace(CONFIG, threads=1), steps=100, unreadable=unreadable)
    last = list(unreadable.messages.values())[limit]
    assert str(refusal.value) == f"{last}; {limit + 1} training images are unreadable, but data.max_unreadable_images is {limit}"


def test_where_no_image_of_an_orientation_can_be_read():
    portrait = [i for i, record in enumerate(MIXED) if record.height > record.width]
    with pytest.raises(InputError, match="^cannot read image .*; no other training image of its orientation is readable either") as refusal:
        batches(with_broken(*portrait), steps=100, unreadable=UnreadableImages(10))
    assert "\n" not in str(refusal.value)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The mixed images on disk, seven to a file."""
    directory = tmp_path_factory.mktemp("stored") / "set"
    write_dataset(directory, INFO, {"train": MIXED}, images_per_shard=7)
    return directory


def damaged(stored, directory, shard: int, damage):
    """A copy of the set, with the bytes of one of its two files changed; the file."""
    shutil.copytree(stored, directory)
    file = sorted(directory.glob("*.array_record*"))[shard]
    file.write_bytes(damage(file.read_bytes()))
    return file


def test_a_flipped_bit_on_disk_costs_one_image(stored, tmp_path):
    def flip(data):
        place = data.index(MIXED[9].image) + 30
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    file = damaged(stored, tmp_path / "set", 1, flip)
    given, unreadable = open_dataset(tmp_path / "set", "train"), UnreadableImages(1)
    seen = ids(batches(given, steps=20, unreadable=unreadable))
    assert seen == [[110 if image_id == 109 else image_id for image_id in step] for step in ids(batches(steps=20))]
    assert list(unreadable.messages) == [9]
    assert unreadable.messages[9].startswith(f"cannot read record 9 of train in {file}: it is missing, damaged or cut short (")
    assert given[-4].image_id == 110
    with pytest.raises(InputError, match=f"^cannot read record 9 of train in {file}"):
        given[-5]
    with pytest.raises(InputError, match=f"^cannot read record 9 of train in {file}"):
        list(evaluation_batches(given, CONFIG, 3))


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: data[:-10], lambda data: b""], ids=["half", "end", "empty"])
def test_a_file_that_was_cut_short_is_named(stored, tmp_path, damage):
    file = damaged(stored, tmp_path / "set", 0, damage)
    given = open_dataset(tmp_path / "set", "train")
    assert given[7].image_id == 107  # of the other file
    with pytest.raises(InputError, match=f"^cannot read record . of train in {file}: .*; [3-7] training images are unreadable, .* is 2"):
        batches(given, steps=20, unreadable=UnreadableImages(2))


def test_a_file_that_is_gone_is_named(stored, tmp_path):
    file = damaged(stored, tmp_path / "set", 0, bytes)
    given = open_dataset(tmp_path / "set", "train")
    file.unlink()
    with pytest.raises(InputError, match=f"^cannot read record 2 of train in {file}: .*No such file"):
        given[2]


def test_a_file_that_shrinks_while_it_is_read_is_named(stored, tmp_path):
    file = damaged(stored, tmp_path / "set", 0, bytes)
    given = open_dataset(tmp_path / "set", "train")
    assert given[0].image_id == 100
    with file.open("r+b") as opened:
        opened.truncate(100)
    with pytest.raises(InputError, match=f"^cannot read record 5 of train in {file}: it is missing, damaged or cut short"):
        given[5]
