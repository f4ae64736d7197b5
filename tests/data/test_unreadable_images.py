"""Unreadable images, in memory and on disk: replaced up to a limit in training, and always named."""

import dataclasses
import re
import shutil

import pytest
from noise_images import (
    CONFIG,
    INFO,
    LANDSCAPE,
    MIXED,
    Source,
    assert_same,
    batches,
    ids,
    joined,
    shares,
    source,
)

from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.data.dataset_writer import write_dataset
from mrcnn_jax.data.pipeline import UnreadableImages, training_batches
from mrcnn_jax.errors import InputError


def with_broken(*indices: int, given: Source = MIXED) -> Source:
    """The source with these images truncated."""
    return Source(
        record._replace(image=record.image[:40]) if i in indices else record for i, record in enumerate(given)
    )


def cannot_read(index: int) -> str:
    return f"cannot read image {100 + index} ({index}.png): it is truncated or damaged"


def test_unreadable_image_is_named_by_its_id():
    broken = with_broken(1, given=source(*[LANDSCAPE] * 3))
    with pytest.raises(InputError, match=re.escape(cannot_read(1))) as error:
        list(training_batches(broken, CONFIG, steps=3, images_per_process=1, seed=0))
    assert "\n" not in str(error.value)  # Grain's own notes are not in the message


def test_unreadable_training_image_is_replaced_by_the_next_of_its_orientation():
    # 103 is square, so landscape; after 113, the last, comes the first
    stand_in = {100: 104, 102: 104, 103: 104, 113: 104, 105: 108}
    unreadable, options = UnreadableImages(5), {"given": with_broken(0, 2, 3, 13, 5), "steps": 20}
    made = batches(**options, unreadable=unreadable)
    whole = ids(batches(steps=20))
    assert ids(made) == [[stand_in.get(image_id, image_id) for image_id in step] for step in whole]
    assert unreadable.messages == {index: cannot_read(index) for index in (0, 2, 3, 13, 5)}
    for batch, info in made:  # pixels, sizes and boxes are those of the stand-in
        for slot, image_id in enumerate(info.image_ids):
            record = MIXED[image_id - 100]
            assert batch.images[slot].any()
            assert tuple(info.original_sizes[slot]) == (record.height, record.width)
            assert batch.valid[slot].sum() == len(record.objects.ids)
    assert_same(batches(**options, start=7, unreadable=UnreadableImages(5)), made[7:])
    assert_same(joined(shares(2, **options, unreadable=UnreadableImages(5))), made)
    threads = dataclasses.replace(CONFIG, threads=8)
    assert_same(batches(**options, config=threads, unreadable=UnreadableImages(5)), made)


def test_each_unreadable_image_is_reported_once():
    unreadable = UnreadableImages(2)
    options = {"steps": 30, "images_per_process": 4, "seed": 5, "unreadable": unreadable}
    reported = [
        message
        for _ in training_batches(with_broken(0, 2), CONFIG, **options)
        for message in unreadable.new_messages()
    ]
    assert sorted(reported) == [cannot_read(0), cannot_read(2)]
    assert not unreadable.new_messages()


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_more_unreadable_images_than_allowed_end_the_iteration(limit):
    unreadable, one_thread = UnreadableImages(limit), dataclasses.replace(CONFIG, threads=1)
    with pytest.raises(InputError) as error:
        batches(with_broken(0, 1, 2), one_thread, steps=100, unreadable=unreadable)
    last = list(unreadable.messages.values())[limit]
    counted = f"{limit + 1} training images are unreadable, but data.max_unreadable_images is {limit}"
    assert str(error.value) == f"{last}; {counted}"


@pytest.mark.parametrize("seed", range(4))
def test_an_image_to_paste_from_that_is_one_too_many_is_the_one_named(seed):
    """Copy-paste reads a second image; the first one, which is readable, is not to blame."""
    augment = dataclasses.replace(CONFIG.augment, copy_paste=1.0)
    config = dataclasses.replace(CONFIG, augment=augment, threads=1)
    given, unreadable = with_broken(1, 2, given=source(*[LANDSCAPE] * 3)), UnreadableImages(0)
    with pytest.raises(InputError) as error:
        batches(given, config, steps=100, seed=seed, unreadable=unreadable)
    assert set(unreadable.messages) <= {1, 2}
    assert str(error.value).count("training images are unreadable") == 1


def test_orientation_without_a_readable_image_ends_the_iteration():
    portrait = [i for i, record in enumerate(MIXED) if record.height > record.width]
    expected = "^cannot read image .*; no other training image of its orientation is readable either"
    with pytest.raises(InputError, match=expected) as error:
        batches(with_broken(*portrait), steps=100, unreadable=UnreadableImages(10))
    assert "\n" not in str(error.value)


# ---- stored sets, whole and damaged


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The mixed images on disk, seven to a file."""
    directory = tmp_path_factory.mktemp("stored") / "set"
    write_dataset(directory, INFO, {"train": MIXED}, images_per_shard=7)
    return directory


@pytest.fixture
def damaged(stored, tmp_path):
    """``damaged(shard, damage)``: one of the two files of a copy, its bytes changed, and the opened split."""

    def damage_copy(shard: int, damage=bytes):
        shutil.copytree(stored, tmp_path / "set")
        file = sorted((tmp_path / "set").glob("*.array_record*"))[shard]
        file.write_bytes(damage(file.read_bytes()))
        return file, open_dataset(tmp_path / "set", "train")

    return damage_copy


def test_stored_set_gives_the_same_batches(stored):
    split = open_dataset(stored, "train")
    assert_same(batches(split), batches())


def test_flipped_bit_on_disk_costs_one_image(damaged):
    def flip(data):
        place = data.index(MIXED[9].image) + 30
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    (file, given), unreadable = damaged(1, flip), UnreadableImages(1)
    seen = ids(batches(given, steps=20, unreadable=unreadable))
    whole = ids(batches(steps=20))
    assert seen == [[110 if image_id == 109 else image_id for image_id in step] for step in whole]
    message = f"cannot read record 9 of train in {file}: it is missing, damaged or cut short ("
    assert list(unreadable.messages) == [9] and unreadable.messages[9].startswith(message)
    assert given[-4].image_id == 110
    with pytest.raises(InputError, match=re.escape(message)):
        given[-5]


@pytest.mark.parametrize("kept", [0.5, -10, 0], ids=["half", "all but the end", "nothing"])
def test_truncated_file_is_named(damaged, kept):
    file, given = damaged(0, lambda data: data[: int(kept * len(data)) if 0 < kept < 1 else kept])
    assert given[7].image_id == 107  # of the other file
    expected = f"^cannot read record . of train in {file}: .*; [3-7] training images are unreadable, .* is 2"
    with pytest.raises(InputError, match=expected):
        batches(given, steps=20, unreadable=UnreadableImages(2))


def test_missing_file_is_named(damaged):
    file, given = damaged(0)
    file.unlink()
    with pytest.raises(InputError, match=f"^cannot read record 2 of train in {file}: .*No such file"):
        given[2]


def test_file_truncated_while_it_is_read_is_named(damaged):
    file, given = damaged(0)
    assert given[0].image_id == 100
    with file.open("r+b") as opened:
        opened.truncate(100)
    expected = f"^cannot read record 5 of train in {file}: it is missing, damaged or cut short"
    with pytest.raises(InputError, match=expected):
        given[5]
