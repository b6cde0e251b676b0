"""Sentences that a page can translate: a template and its values.

A host looks up whole pieces of text, so a sentence is made of the pieces around its numbers and names. A plain string
is one piece; `message` fills values into a template; `joined` puts sentences together. Punctuation at a piece's ends is
no part of what is looked up.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from string import Formatter

EDGES = ' \t\n,.;:()·…/%×="'

Piece = tuple[str, bool]  # text, and whether it is to be translated


@dataclass(frozen=True, eq=False)
class Message:
    """A sentence in pieces. It compares and prints as its text."""

    pieces: tuple[Piece, ...]

    def __str__(self) -> str:
        return "".join(text for text, _ in self.pieces)

    def __repr__(self) -> str:
        return repr(str(self))

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, (str, Message)) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))

    def __contains__(self, text: str) -> bool:
        return text in str(self)

    def __len__(self) -> int:
        return len(str(self))


Text = str | Message


def message(template: str, **values: object) -> Message:
    """`template` with its {fields} filled in by what is the same in every language (numbers, files, samplers), or by
    sentences. A field may have a format: {seconds:.1f}."""
    found: list[Piece] = []
    for text, field, format_, _ in Formatter().parse(template):
        found += _trimmed(text)
        if field is not None:
            value = values[field]
            found += pieces(value) if isinstance(value, Message) else [(format(value, format_ or ""), False)]
    return Message(tuple(found))


def name(text: object) -> Message:
    """What is the same in every language."""
    return Message(((str(text), False),))


def joined(sentences: Iterable[Text], by: str = "") -> Message:
    """One sentence of several, each translated by itself."""
    found: list[Piece] = []
    for sentence in sentences:
        if found and by:
            found.append((by, False))
        found += pieces(sentence)
    return Message(tuple(found))


def pieces(sentence: Text) -> list[Piece]:
    """(piece, whether it is to be translated). Put together, they are the sentence."""
    return list(sentence.pieces) if isinstance(sentence, Message) else _trimmed(sentence)


def _trimmed(text: str) -> list[Piece]:
    """The clauses of a text without the punctuation around them, and that punctuation."""
    for mark in ("; ", ": "):
        before, between, after = text.partition(mark)
        if between:
            return [*_trimmed(before), (between, False), *_trimmed(after)]
    inner = text.strip(EDGES)
    at = text.index(inner)
    found = [(text[:at], False), (inner, any(map(str.isalpha, inner))), (text[at + len(inner) :], False)]
    return [piece for piece in found if piece[0]]


def to_translate(sentence: Text) -> list[str]:
    """The pieces that a translation has to know."""
    return [text for text, translated in pieces(sentence) if translated]


def as_html(sentence: Text) -> str:
    """Each piece as a text node of its own."""
    return "".join(
        f"<span>{html.escape(text)}</span>" if translated else f'<span translate="no">{html.escape(text)}</span>'
        for text, translated in pieces(sentence)
    )
