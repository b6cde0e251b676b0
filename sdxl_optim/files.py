"""Files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the file at `path`, whose folder exists, by `content` (text as UTF-8, its ends of lines as they are).

    Whoever reads it meanwhile, or after a crash, finds the old file or the new one. Raises OSError.
    """
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)
