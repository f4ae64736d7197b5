"""The page on ways of seeing images: current, and the gains that the guide speaks of."""

import json

from benchmarks.evaluation import views


def test_published_page_is_rendered_from_the_result_file():
    result = json.loads(views.Options.out.read_text())
    assert views.Options.out.with_name(views.PAGE).read_text() == views.page(result)
    for part, rows in views.ROWS.items():
        assert [row["seen"] for row in result[part]] == list(rows)
        gains = [row["AP"]["segm"]["difference"] for row in result[part]]
        assert gains[0] == 0 and min(gains[1:]) > 0
