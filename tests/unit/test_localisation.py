"""The Chinese localisation knows every text of ours."""

from pathlib import Path

from strings import all_pieces, texts_in

from sdxl_optim.wording import as_html, joined, pieces, to_translate, words

FOLDER = Path(__file__).parents[2] / "localizations"
FILES = ["zh_CN.json", "zh-Hans.json"]


def test_both_files_say_the_same():
    one, other = ((FOLDER / name).read_bytes() for name in FILES)
    assert one == other


def test_the_collector_sees_sentences_and_components():
    source = 'a = Note("x", f"at least {n} calls; then so")\nb = gr.Button("Press me", label="Here")\nreturn_ = 1\n'
    sentences, whole = texts_in(source)
    assert {"x", "at least 1 calls; then so"} <= sentences
    assert whole == {"Press me", "Here"}
    assert "Whatever nobody wrote" not in all_pieces()


def test_a_sentence_is_cut_at_numbers_and_names():
    assert to_translate("with 8 steps there is little, in b1; use 12 or more") == [
        "with",
        "steps there is little, in b1",
        "use",
        "or more",
    ]
    sentence = words("{file} is missing ({error}); put it into {folder}.", file="a 1.pth", error="X", folder="C:\\m 2")
    assert sentence == "a 1.pth is missing (X); put it into C:\\m 2."
    assert to_translate(sentence) == ["is missing", "put it into"]
    both = joined(["base", ": ", sentence], by="")
    assert to_translate(both) == ["base", "is missing", "put it into"]
    for text in (sentence, both, "", "7", "28 % of the work"):
        assert "".join(piece for piece, _ in pieces(text)) == text


def test_each_piece_is_a_text_of_its_own():
    same = '<span translate="no">{}</span>'
    assert as_html("3 <b> cached") == same.format("3") + same.format(" ") + "<span>&lt;b&gt; cached</span>"
