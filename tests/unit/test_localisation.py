"""The Chinese localisation knows every text of ours."""

import json
from pathlib import Path

from strings import PACKAGE, all_pieces, formatted_at_once, sources, template_pieces, texts_in

from sdxl_optim.wording import as_html, joined, message, pieces, to_translate

FOLDER = Path(__file__).parents[2] / "localizations"
FILES = ["zh_CN.json", "zh-Hans.json"]
# What the sources hold and no page shows as it is there: examples in fields, names of samplers, scripts, the host's own
# words, the title of a result.
NOT_SHOWN = {
    "Euler",
    "freeu\ncutoff 0.75\ndeepcache 3\ntiny\nfreeu+cutoff 0.75+deepcache 3+tiny",
    "taesdxl_decoder.pth",
    "[SDXL Optim]",
    "SD",
    "Use same sampler",
    "Use same scheduler",
    "the article's table",
}


def test_nothing_is_left_untranslated():
    """Also of what the session in tests/webui/test_chinese.py doesn't come to see."""
    translated = json.loads((FOLDER / FILES[0]).read_text("utf-8"))
    pieces = all_pieces()
    assert sorted(pieces - translated.keys() - NOT_SHOWN) == []
    assert sorted(NOT_SHOWN - pieces) == []
    assert all(isinstance(text, str) and text for text in translated.values())


def test_both_files_say_the_same():
    one, other = ((FOLDER / name).read_bytes() for name in FILES)
    assert one == other


def test_the_collector_sees_sentences_and_components():
    source = (
        'a = Note("x", message("at least {n} calls; then so", n=n))\nb = gr.Button("Press me", label="Here")\nr = 1\n'
    )
    sentences, whole = texts_in(source)
    assert {"x", "at least {n} calls; then so"} <= sentences
    assert template_pieces("at least {n} calls; then so") == ["at least", "calls", "then so"]
    assert whole == {"Press me", "Here"}
    assert "Whatever nobody wrote" not in all_pieces()


def test_the_collector_looks_into_every_folder_that_shows_something():
    found = {path.relative_to(PACKAGE).parts[0] for path in sources()}
    assert {"techniques", "backends", "hosts", "planning", "settings", "sentences.py", "report.py"} <= found
    pieces_of = all_pieces()
    for text in ("guidance off after step", "needs a CUDA device", "there is no GPU here, so nothing is saved"):
        assert text in pieces_of


def test_no_sentence_is_formatted_before_it_is_cut():
    assert formatted_at_once('note("x", f"{n} steps")') == ["f'{n} steps'"]
    assert [text for path in sources() for text in formatted_at_once(path.read_text("utf-8"))] == []


def test_a_sentence_is_cut_at_its_values_and_clauses():
    text = "with {n} steps there is little, in b1; use {enough} or more"
    assert to_translate(message(text, n=8, enough=12)) == [
        "with",
        "steps there is little, in b1",
        "use",
        "or more",
    ]
    template = "{file} is missing ({error}); put it into {folder}."
    sentence = message(template, file="a 1.pth", error="X", folder="C:\\m 2")
    assert sentence == "a 1.pth is missing (X); put it into C:\\m 2."
    assert to_translate(sentence) == ["is missing", "put it into"]
    both = joined(["base", ": ", sentence], by="")
    assert to_translate(both) == ["base", "is missing", "put it into"]
    for text in (sentence, both, "", "7", message("{n} % of the work", n=28)):
        assert "".join(piece for piece, _ in pieces(text)) == str(text)


def test_a_sentence_inside_a_sentence_keeps_its_pieces():
    inner = message("needs torch {version} or later", version="2.7")
    assert to_translate(message("refused: {why}", why=inner)) == ["refused", "needs torch", "or later"]


def test_each_piece_is_a_text_of_its_own():
    same = '<span translate="no">{}</span>'
    assert (
        as_html(message("{n} <b> cached", n=3)) == same.format("3") + same.format(" ") + "<span>&lt;b&gt; cached</span>"
    )
