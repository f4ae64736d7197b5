"""The page about real files is the one that the tests of quirks make."""

from quirks import PAGE, make_page


def test_page_lists_every_tested_quirk():
    assert PAGE.read_text() == make_page(), "run `python tests/helpers/quirks.py` to write the page"
