"""Files of prompts."""

from __future__ import annotations

from pathlib import Path

from sdxl_optim.bench.cases import ARTICLE_PROMPTS, Prompt
from sdxl_optim.bench.reading import prompts_of
from sdxl_optim.errors import SettingsError


def read_prompts(path: Path | None) -> list[Prompt]:
    """The file's prompts with their seeds, or the article's without a file. Raises SettingsError."""
    if path is None:
        return list(ARTICLE_PROMPTS)
    return prompts_of("\n".join(read_lines(path)))


def read_lines(path: Path) -> list[str]:
    """The file's lines that hold something. Raises SettingsError."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError("--prompts", str(path), f"a text file ({error})") from None
    if not any(lines):
        raise SettingsError("--prompts", str(path), "a file with a prompt a line")
    return list(filter(None, lines))
