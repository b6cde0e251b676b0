"""Sentences that a page can translate. A host looks up whole pieces of text, so a sentence with a number or a name in
it is cut into the pieces around these; what stays in every language is marked as such."""

from __future__ import annotations

import html
import re
from string import Formatter

# Numbers that stand alone (not the 1 of "b1"), and the punctuation between pieces.
_CUT = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w])|[;:,.()·…/%×=] |[;:,.()·…/%×=]$|[(·×=→]")


class Words(str):
    """A sentence that knows its names. It is a plain string to everybody else."""

    names: tuple[str, ...] = ()


def words(template: str, **names: object) -> Words:
    """`template` with its {fields} filled in by what is the same in every language: files, samplers, errors."""
    parts, kept = [], []
    for text, name, _, _ in Formatter().parse(template):
        parts.append(text)
        if name is not None:
            kept.append(str(names[name]))
            parts.append(kept[-1])
    sentence = Words("".join(parts))
    sentence.names = tuple(kept)
    return sentence


def pieces(sentence: str) -> list[tuple[str, bool]]:
    """The sentence cut up: (piece, whether it is to be translated). Joined, they are the sentence."""
    names = [re.escape(name) for name in getattr(sentence, "names", ()) if name]
    found, end = [], 0
    cut = re.compile("|".join([*names, _CUT.pattern])) if names else _CUT
    for match in cut.finditer(sentence):
        found += [(sentence[end : match.start()], True), (match.group(), False)]
        end = match.end()
    found.append((sentence[end:], True))
    return [(text, fixed and any(map(str.isalpha, text))) for text, fixed in found if text]


def to_translate(sentence: str) -> list[str]:
    """The pieces that a translation has to know."""
    return [text.strip() for text, translated in pieces(sentence) if translated]


def as_html(sentence: str) -> str:
    """Each piece as a text node of its own."""
    return "".join(
        html.escape(text) if translated else f'<span translate="no">{html.escape(text)}</span>'
        for text, translated in pieces(sentence)
    )
