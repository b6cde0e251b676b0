"""Sentences that a page can translate. A host looks up whole pieces of text, so a sentence with a number or a name in
it is cut into the pieces around these; what stays in every language is marked as such."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from string import Formatter

_EDGE = r"[\s,.;:()·…/%×=\"]"
# Numbers that stand alone (not the 1 of "b1"), and what ends one part of a sentence.
_CUT = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w])|[:;] ")
_ENDS = re.compile(rf"^({_EDGE}*)(.*?)({_EDGE}*)$", re.DOTALL)

Part = tuple[str, bool]  # text, and whether it is in a language


class Words(str):
    """A sentence that knows its parts. It is a plain string to everybody else."""

    parts: tuple[Part, ...] = ()


def words(template: str, **names: object) -> Words:
    """`template` with its {fields} filled in by what is the same in every language: files, samplers, errors."""
    parts: list[Part] = []
    for text, name, _, _ in Formatter().parse(template):
        parts.append((text, True))
        if name is not None:
            parts.append((str(names[name]), False))
    return _of(parts)


def joined(sentences: Iterable[str], by: str = "") -> Words:
    """One sentence of several, each translated by itself."""
    parts: list[Part] = []
    for sentence in sentences:
        if parts and by:
            parts.append((by, False))
        parts += _parts(sentence)
    return _of(parts)


def _of(parts: list[Part]) -> Words:
    sentence = Words("".join(text for text, _ in parts))
    sentence.parts = tuple(parts)
    return sentence


def _parts(sentence: str) -> tuple[Part, ...]:
    return getattr(sentence, "parts", ((sentence, True),))


def pieces(sentence: str) -> list[Part]:
    """The sentence cut up: (piece, whether it is to be translated). Joined, they are the sentence."""
    found: list[Part] = []
    for text, in_a_language in _parts(sentence):
        if not in_a_language:
            found.append((text, False))
            continue
        end = 0
        for match in _CUT.finditer(text):
            found += [*_without_ends(text[end : match.start()]), (match.group(), False)]
            end = match.end()
        found += _without_ends(text[end:])
    return [(text, translated) for text, translated in found if text]


def _without_ends(text: str) -> list[Part]:
    """Punctuation around a piece is no part of it."""
    before, middle, after = _ENDS.match(text).groups()
    return [(before, False), (middle, any(map(str.isalpha, middle))), (after, False)]


def to_translate(sentence: str) -> list[str]:
    """The pieces that a translation has to know."""
    return [text for text, translated in pieces(sentence) if translated]


def as_html(sentence: str) -> str:
    """Each piece as a text node of its own."""
    return "".join(
        f"<span>{html.escape(text)}</span>" if translated else f'<span translate="no">{html.escape(text)}</span>'
        for text, translated in pieces(sentence)
    )
