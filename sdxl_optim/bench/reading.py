"""Cases and prompts as a user types them."""

from __future__ import annotations

from sdxl_optim.bench.article import Case, combination
from sdxl_optim.bench.cases import ARTICLE_PROMPTS, Prompt


def cases_of(text: str) -> list[Case]:
    """Stock, then the combinations, separated by commas or lines. Raises SettingsError."""
    names = [part.strip() for part in text.replace("\n", ",").split(",") if part.strip()]
    cases = {"stock": Case("stock"), **{name: combination(name) for name in names if name != "stock"}}
    return list(cases.values())


def prompts_of(text: str) -> list[Prompt]:
    """A prompt a line, "seed: prompt" or the prompt alone, which then has its line's number as seed."""
    known = {(p.text, p.seed): p for p in ARTICLE_PROMPTS}
    prompts = {}
    for number, line in enumerate(filter(None, map(str.strip, text.splitlines())), 1):
        seed, colon, rest = line.partition(":")
        named = colon and seed.strip().isdigit() and rest.strip()
        text, seed = (rest.strip(), int(seed)) if named else (line, number)
        prompt = known.get((text, seed), Prompt(text, text, seed))
        prompts.setdefault(prompt.name, prompt)
    return list(prompts.values())


def as_text(prompts) -> str:
    """What `prompts_of` reads back."""
    return "\n".join(f"{p.seed}: {p.text}" for p in prompts)
