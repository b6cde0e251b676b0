"""Captions of the demo model's pictures, and what a caption claims.

`caption` words a scene in one of several orders; `parse` reads any such caption back into the things it names, which is
what the caption check looks for. A share of the shapes and places in training captions is wrong on purpose, as on the
web: that is what makes guidance worth something.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

from .data import (
    BACKGROUNDS,
    CELLS,
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
    is_held,
    pick,
    sample_scene,
)

WRONG = 0.04  # of the shapes and places told
PLURALS = {shape: "crosses" if shape == "cross" else shape + "s" for shape in SHAPES}
PLACES = {
    "top left": ("in the top left corner", "at the top left"),
    "top": ("at the top",),
    "top right": ("in the top right corner", "at the top right"),
    "left": ("on the left",),
    "centre": ("in the centre", "in the center", "in the middle"),
    "right": ("on the right",),
    "bottom left": ("in the bottom left corner", "at the bottom left"),
    "bottom": ("at the bottom",),
    "bottom right": ("in the bottom right corner", "at the bottom right"),
}
ROWS = {
    (3, 5): ("two", ("side by side",)),
    (1, 7): ("two", ("one above the other",)),
    (3, 4, 5): ("three", ("in a row",)),
    (1, 4, 7): ("three", ("in a column",)),
}
RELATIONS: dict[tuple[int, ...], str] = {
    (1, 7): "above",
    (7, 1): "below",
    (3, 5): "to the left of",
    (5, 3): "to the right of",
}


@dataclass(frozen=True)
class Named:
    """A thing as a caption names it; None is what it leaves open."""

    shape: str
    colour: str | None = None
    cell: int | None = None  # index into CELLS
    size: str | None = None
    texture: str | None = None


@dataclass(frozen=True)
class Caption:
    text: str
    things: tuple[Named, ...]  # in the order of the words
    ends: tuple[int, ...]  # where each thing's words end, characters of `text`
    background: str | None


def caption(scene: Scene, rng: random.Random, wrong: float = 0.0, full: bool = False) -> Caption:
    """Words for a scene; `wrong`: share of shapes and places told falsely, `full`: no place left out."""
    scene = _mistold(scene, rng, wrong) if wrong else scene
    background = scene.background if full or rng.random() < 0.7 else None
    words = f"{background} {'gradient ' if scene.gradient else ''}background" if background else ""
    first = bool(words) and rng.random() < 0.25
    prefix = f"{words}, " if first and rng.random() < 0.5 else f"{_a(words)} with " if first else ""
    suffix = f" on {_a(words)}" if words and not first else ""
    if suffix and rng.random() < 0.5:
        suffix = "," + suffix
    pieces = _counted(scene, rng) if scene.counted else _listed(scene, rng, full)
    text, ends, named = prefix, [], []
    for piece, thing in pieces:
        text += piece
        if thing:
            ends.append(len(text))
            named.append(thing)
    if scene.counted:
        named, ends = [replace(named[0], cell=t.cell) for t in scene.things], ends * len(scene.things)
    return Caption(text + suffix, tuple(named), tuple(ends), background)


def _mistold(scene: Scene, rng: random.Random, wrong: float) -> Scene:
    """The scene with some shapes and places replaced, never by a combination that is withheld from training."""
    if scene.counted:
        first = scene.things[0]
        shape = pick(rng, SHAPES) if rng.random() < wrong else first.shape
        told = tuple(replace(t, shape=shape) for t in scene.things)
    else:
        told = tuple(
            replace(
                t,
                shape=pick(rng, SHAPES) if rng.random() < wrong else t.shape,
                cell=int(rng.random() * 9) if rng.random() < wrong else t.cell,
            )
            for t in scene.things
        )
    return scene if is_held(told) else replace(scene, things=told)


def _adjectives(thing: Thing, rng: random.Random) -> Named:
    size = thing.size if rng.random() < (0.2 if thing.size == "medium" else 0.75) else None
    texture = thing.texture if rng.random() < (0.25 if thing.texture == "plain" else 0.85) else None
    return Named(thing.shape, thing.colour, thing.cell, size, texture)


def _noun(named: Named, article: bool = True) -> str:
    words = " ".join(w for w in (named.size, named.texture, named.colour, named.shape) if w)
    return _a(words) if article else words


def _a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _counted(scene: Scene, rng: random.Random):
    number, arrangements = ROWS[tuple(t.cell for t in scene.things)]
    named = _adjectives(scene.things[0], rng)
    noun = _noun(named, article=False).removesuffix(named.shape) + PLURALS[named.shape]
    return [(f"{number} {noun} {pick(rng, arrangements)}", named)]


def _listed(scene: Scene, rng: random.Random, full: bool) -> list[tuple[str, Named | None]]:
    things = list(scene.things)
    if len(things) == 2 and rng.random() < 0.5:
        things.reverse()
    named = [_adjectives(t, rng) for t in things]
    relation = RELATIONS.get(tuple(t.cell for t in things))
    if relation and rng.random() < 0.25:
        return [(_noun(named[0]), named[0]), (f" {relation} ", None), (_noun(named[1]), named[1])]
    if not full and rng.random() < 0.08:
        named = [replace(n, cell=None) for n in named]
    place_first = rng.random() < 0.35
    pieces: list[tuple[str, Named | None]] = []
    for i, thing in enumerate(named):
        place = pick(rng, PLACES[CELLS[thing.cell]]) if thing.cell is not None else ""
        noun = _noun(thing)
        words = f"{place} {noun}" if place_first else f"{noun} {place}"
        if i:
            pieces.append((pick(rng, (", ", " and ")), None))
        pieces.append((words.strip(), thing))
    return pieces


_PLACE_WORDS = {phrase: CELLS.index(name) for name, phrases in PLACES.items() for phrase in phrases}
_PLACE = "|".join(sorted(_PLACE_WORDS, key=len, reverse=True))
_SHAPE_WORDS = {**{s: s for s in SHAPES}, **{p: s for s, p in PLURALS.items()}}
_ADJECTIVE = "|".join((*SIZES, *TEXTURES, *COLOURS))
_THING = re.compile(
    rf"(?:(?P<before>{_PLACE}) )?\b(?P<number>an|a|one|two|three) (?P<adjectives>(?:(?:{_ADJECTIVE}) )*)"
    rf"(?P<shape>{'|'.join(sorted(_SHAPE_WORDS, key=len, reverse=True))})\b(?: (?P<after>{_PLACE}))?"
)
_BACKGROUND = re.compile(rf"\b({'|'.join(BACKGROUNDS)}) (?:gradient )?background\b")


def parse(prompt: str) -> tuple[tuple[Named, ...], str | None]:
    """The things a prompt names and its background (None if untold).

    Raises ValueError for a prompt that names no thing in the demo model's words.
    """
    text = " ".join(prompt.lower().split())
    found = list(_THING.finditer(text))
    things = [named for match in found for named in _things_of(match, text)]
    if not things:
        raise ValueError(f"prompt: {prompt!r} names no shape; allowed are a, two or three of {', '.join(SHAPES)}")
    if len(found) == 2:
        between = text[found[0].end() : found[1].start()].strip()
        for cells, relation in RELATIONS.items():
            if between == relation:
                things = [replace(t, cell=c) for t, c in zip(things, cells, strict=True)]
    background = _BACKGROUND.search(text)
    return tuple(things), background[1] if background else None


def _things_of(match: re.Match, text: str) -> list[Named]:
    words = match["adjectives"].split()
    place = match["before"] or match["after"]
    named = Named(
        _SHAPE_WORDS[match["shape"]],
        next((w for w in words if w in COLOURS), None),
        _PLACE_WORDS[place] if place else None,
        next((w for w in words if w in SIZES), None),
        next((w for w in words if w in TEXTURES), None),
    )
    count = {"two": 2, "three": 3}.get(match["number"], 1)
    if count == 1:
        return [named]
    for cells, (number, arrangements) in ROWS.items():
        if number == match["number"] and text[match.end() :].strip().startswith(arrangements):
            return [replace(named, cell=cell) for cell in cells]
    return [named] * count


def held_prompts(count: int = 64, seed: int = 64) -> list[str]:
    """Prompts whose combinations of shape, colour and place training never saw; each names every place."""
    rng = random.Random(seed)
    prompts: list[str] = []
    while len(prompts) < count:
        text = caption(sample_scene(rng, held=True), rng, full=True).text
        if text not in prompts:
            prompts.append(text)
    return prompts
