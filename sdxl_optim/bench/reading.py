"""Cases and prompts as a user types them."""

from __future__ import annotations

import re

from sdxl_optim.bench.article import article_cases
from sdxl_optim.bench.cases import ARTICLE_PROMPTS, Case, Prompt, combination
from sdxl_optim.errors import SettingsError


def cases_of(text: str) -> list[Case]:
    """Stock, then the combinations, separated by commas or lines. Raises SettingsError."""
    names = [part.strip() for part in text.replace("\n", ",").split(",") if part.strip()]
    cases = {"stock": Case("stock"), **{name: combination(name) for name in names if name != "stock"}}
    return list(cases.values())


def article_rows(text: str) -> list[Case]:
    """Stock and the named rows of the article, in its order; names are separated by commas, and may hold some
    themselves. Raises SettingsError."""
    cases = article_cases()
    longest_first = sorted((case.name for case in cases), key=len, reverse=True)
    chosen, rest = {"Stock"}, text.strip(" ,\n")
    while rest:
        name = next((n for n in longest_first if re.match(re.escape(n) + r"\s*(,|$)", rest, re.IGNORECASE)), None)
        if name is None:
            allowed = "names of the article's rows, separated by commas: " + " | ".join(case.name for case in cases)
            raise SettingsError("--rows", rest.split(",")[0].strip(), allowed)
        chosen.add(name)
        rest = rest[len(name) :].lstrip(" ,\n")
    return [case for case in cases if case.name in chosen]


def prompts_of(text: str) -> list[Prompt]:
    """A prompt a line, "seed: prompt" or the prompt alone, which then has its line's number as seed. A text's second
    seed is in its name; the same again is left out."""
    known = {(p.text, p.seed): p for p in ARTICLE_PROMPTS}
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(filter(None, map(str.strip, text.splitlines())), 1):
        seed, colon, rest = line.partition(":")
        named = colon and seed.strip().isdecimal() and rest.strip()
        words, its_seed = (rest.strip(), int(seed)) if named else (line, number)
        prompt = known.get((words, its_seed), Prompt(words, words, its_seed))
        if named and prompts.get(prompt.name, prompt) != prompt:
            prompt = Prompt(f"{words} ({its_seed})", words, its_seed)
        prompts.setdefault(prompt.name, prompt)
    return list(prompts.values())


def as_text(prompts) -> str:
    """What `prompts_of` reads back."""
    return "\n".join(f"{p.seed}: {p.text}" for p in prompts)
