"""CLIP's token ids for the demo model's words, from the few merges of CLIP's byte pair encoding that those words use.

`words.json` holds those merges, each with its rank in CLIP's own list. A word made of them gets the id that CLIP's full
vocabulary gives it; any other word falls apart into smaller pieces, whose ids are CLIP's as well.
"""

from __future__ import annotations

import json
import re
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path

START, END = 49406, 49407
LENGTH = 77
PADS = (END, 0)  # SDXL pads its first encoder's prompt with the end token and its second's with "!"
_PIECE = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")


def byte_symbols() -> list[str]:
    """The 256 characters that stand for bytes, in the order in which CLIP numbers them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


@cache
def merges() -> tuple[tuple[int, str, str], ...]:
    """(rank, left, right) in CLIP's order."""
    table = json.loads(Path(__file__).with_name("words.json").read_text("utf-8"))
    return tuple((rank, *pair.split()) for rank, pair in table)


@cache
def vocabulary() -> dict[str, int]:
    """Every token that can come out, with CLIP's id."""
    symbols = byte_symbols()
    ids = {s: i for i, s in enumerate(symbols)} | {s + "</w>": 256 + i for i, s in enumerate(symbols)}
    ids |= {left + right: 512 + rank for rank, left, right in merges()}
    return ids | {"<|startoftext|>": START, "<|endoftext|>": END}


@cache
def _ranks() -> dict[tuple[str, str], int]:
    return {(left, right): rank for rank, left, right in merges()}


@cache
def _byte_map() -> dict[int, str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return dict(zip([*printable, *(b for b in range(256) if b not in printable)], byte_symbols(), strict=True))


@lru_cache(4096)
def _word_ids(word: str) -> tuple[int, ...]:
    parts = [_byte_map()[b] for b in word.encode()]
    parts[-1] += "</w>"
    while len(parts) > 1:
        pairs = [(_ranks()[pair], pair) for pair in pairwise(parts) if pair in _ranks()]
        if not pairs:
            break
        left, right = min(pairs)[1]
        joined: list[str] = []
        for part in parts:
            if joined and joined[-1] == left and part == right:
                joined[-1] = left + right
            else:
                joined.append(part)
        parts = joined
    return tuple(vocabulary()[p] for p in parts)


def ids_of(text: str) -> list[int]:
    """The token ids of a text, without start, end and padding."""
    return [i for piece in _PIECE.findall(" ".join(text.lower().split())) for i in _word_ids(piece)]


def encode(text: str, pad: int = END) -> list[int]:
    """The 77 ids that an encoder sees: start, the text (cut at 75), end, padding."""
    ids = [START, *ids_of(text)[: LENGTH - 2], END]
    return ids + [pad] * (LENGTH - len(ids))


def write_vocabulary(folder: Path, pad: str = "<|endoftext|>") -> None:
    """Write a folder that transformers' CLIPTokenizer loads. `pad` is SDXL's padding token of the encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary()), "utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for _, left, right in merges()), ""]
    (folder / "merges.txt").write_text("\n".join(lines), "utf-8")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
    }
    config = {
        **special,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": LENGTH,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), "utf-8")
