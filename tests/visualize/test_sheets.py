"""Contact sheets: the places of pictures and titles, and which images of a split are drawn."""

import numpy as np
import pytest

from mrcnn_jax.errors import InputError
from mrcnn_jax.visualize.sheets import contact_sheet, sheet_records


def test_contact_sheet_arranges_pictures_and_titles():
    pictures = [np.full((h, w, 3), v, np.uint8) for h, w, v in ((10, 20, 10), (30, 8, 20), (6, 6, 30))]
    sheet = contact_sheet(pictures, columns=2, pad=4)
    assert sheet.shape == (30 + 6 + 3 * 4, 20 + 8 + 3 * 4, 3)
    assert (sheet[4 + 10 : 4 + 20, 4:24] == 10).all()  # in the middle of its row
    assert (sheet[4:34, 28:36] == 20).all() and (sheet[38:44, 11:17] == 30).all()
    assert (sheet != 255).any(axis=-1).sum() == 200 + 240 + 36
    titled = contact_sheet(pictures, columns=5, titles=["a", "b", "ü"], pad=4)
    assert titled.shape[1] == 20 + 8 + 6 + 4 * 4
    assert (titled[4:28] < 128).any() and titled.shape[0] > 30 + 2 * 4


DOT = np.zeros((2, 2, 3), np.uint8)


@pytest.mark.parametrize("arguments", [([], 2), ([DOT], 0), ([DOT], 1, [])])
def test_contact_sheet_refuses_nothing_to_arrange(arguments):
    with pytest.raises(InputError, match="a contact sheet"):
        contact_sheet(*arguments)


@pytest.mark.parametrize("count, expected", [(0, []), (1, [0]), (3, [0, 4, 9]), (99, list(range(10)))])
def test_sheet_records_are_spread_over_the_split(count, expected):
    assert sheet_records(list(range(10)), count) == expected
