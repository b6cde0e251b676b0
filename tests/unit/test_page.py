from __future__ import annotations

import re

import pytest

pytest.importorskip("PIL")

from PIL import Image

from sdxl_optim.bench.charts import Point, Scatter
from sdxl_optim.bench.page import SIDE, Gallery, Picture, data_uri, page


def whole_page(**more) -> str:
    given = {"headings": ("Case", "Seconds"), "cells": [("Stock", "1.23"), ("Fast", None)], "note": "A note.", **more}
    pictures = [Picture(Image.new("RGB", (8, 8), "red"), "Stock", "1.23 s")]
    galleries = [Gallery("Macro", pictures, "a bee")]
    return page("Report", ["An introduction."], **given, words=["Case"], galleries=galleries, ran=["30 of 40 rows"])


def test_nothing_is_fetched():
    text = whole_page(charts=[Scatter("Chart", "x", "y", [Point("a", 1, 2)])])
    text = text.replace('xmlns="http://www.w3.org/2000/svg"', "")  # the name of SVG's words, which nobody opens
    assert not re.search(r"https?:|url\(|@import|<link|<script[^>]|href=|fetch\(|XMLHttp|import\(", text)
    assert re.findall(r'src="(.{15})', text) == ["data:image/jpeg"]


def test_everything_given_is_there_in_order():
    text = whole_page()
    words = ["Report", "An introduction.", "A note.", "Case", "Stock", "1.23", "Fast", "–", "Macro", "a bee", "1.23 s"]
    words += ["30 of 40"]
    places = [text.index(word, text.index("<body>")) for word in words]
    assert places == sorted(places)


def test_text_is_escaped():
    picture = Picture(Image.new("RGB", (8, 8)), '"><q>', "<q>")
    text = page("<b>", ["a & b"], ("<i>",), [("<u>",)], "<em>", (), (), [Gallery("<q>", [picture], "<q>")], ["<s>"])
    for tag in ("<b>", "<i>", "<u>", "<s>", "<em>", "<q>"):
        assert tag not in text.replace("<figcaption><b>", "")
    assert "a &amp; b" in text


def test_both_colour_schemes_have_a_style():
    assert "prefers-color-scheme: dark" in whole_page()


def test_columns_of_words_go_left():
    text = whole_page(cells=[("Stock", "1.2340")])
    assert '<th class="text">Case</th><th>Seconds</th>' in text
    assert '<td class="text">Stock</td><td>1.2340</td>' in text


def test_a_row_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        whole_page(cells=[("Stock",)])


def test_large_pictures_are_shrunk_and_keep_their_shape():
    wide = Image.effect_noise((4 * SIDE, 2 * SIDE), 90)
    assert len(data_uri(wide)) < len(data_uri(wide.crop((0, 0, SIDE, SIDE))))
    assert wide.size == (4 * SIDE, 2 * SIDE)
