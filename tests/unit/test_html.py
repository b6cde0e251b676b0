from __future__ import annotations

import re

import pytest

pytest.importorskip("PIL")

from PIL import Image

from sdxl_optim.bench.html import SIDE, Lines, Picture, Pictures, Table, data_uri, page


def whole_page(**table) -> str:
    given = {"columns": ("Case", "Seconds"), "rows": [("Stock", 1.234), ("Fast", None)], **table}
    pictures = [Picture(Image.new("RGB", (8, 8), "red"), "Stock", "1.23 s")]
    sections = [Table("Times", **given), Pictures("Macro", pictures), Lines("What ran", ["30 of 40 rows"])]
    return page("Report", ["An introduction."], sections)


def test_nothing_is_fetched():
    text = whole_page()
    assert not re.search(r"https?:|url\(|@import|<link|<script", text)
    assert re.findall(r'src="(.{15})', text) == ["data:image/jpeg"]


def test_everything_given_is_there_in_order():
    text = whole_page()
    words = ["Report", "An introduction.", "Times", "Case", "Stock", "1.23", "Fast", "–", "Macro", "1.23 s", "30 of 40"]
    places = [text.index(word, text.index("<body>")) for word in words]
    assert places == sorted(places)


def test_text_is_escaped():
    text = page("<b>", ["a & b"], [Table("", ("<i>",), [("<u>",)]), Lines("", ["<s>"])])
    for tag in ("<b>", "<i>", "<u>", "<s>"):
        assert tag not in text
    assert "a &amp; b" in text


def test_both_colour_schemes_have_a_style():
    assert "prefers-color-scheme: dark" in whole_page()


def test_digits_are_the_tables():
    assert "<td>1.2340</td>" in whole_page(digits=4)


def test_a_row_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        whole_page(rows=[("Stock",)])


def test_large_pictures_are_shrunk_and_keep_their_shape():
    wide = Image.effect_noise((4 * SIDE, 2 * SIDE), 90)
    assert len(data_uri(wide)) < len(data_uri(wide.crop((0, 0, SIDE, SIDE))))
    assert wide.size == (4 * SIDE, 2 * SIDE)
