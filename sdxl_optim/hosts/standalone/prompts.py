"""What of a prompt the text encoders do not read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from diffusers import DiffusionPipeline

from sdxl_optim.sampling.note import Note
from sdxl_optim.wording import message


def notes_of_dropped(pipes: Iterable[DiffusionPipeline], prompt: str, negative: str | None) -> Iterator[Note]:
    """A note for each text that is longer than a text encoder reads, with what is left out of it."""
    tokenizers = [t for pipe in pipes for t in (pipe.tokenizer, pipe.tokenizer_2) if t is not None]
    for name, text in (("prompt", prompt), ("negative prompt", negative)):
        for tokenizer in tokenizers:
            if text and (dropped := _dropped(tokenizer, text)):
                most = tokenizer.model_max_length - 2  # beside the marks of its start and its end
                words = "longer than the {n} tokens that the text encoders read; left out: “{text}”"
                yield Note(name, message(words, n=most, text=dropped), refused=False)


def _dropped(tokenizer, text: str) -> str:
    """The end of the text that does not go into the tokenizer's longest sequence, as the tokenizer spells it."""
    ids = tokenizer(text).input_ids
    return tokenizer.decode(ids[tokenizer.model_max_length - 1 : -1]).strip()
