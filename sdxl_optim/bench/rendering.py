"""Jinja2 templates of `templates/` → text. What is put into them is escaped."""

from __future__ import annotations

import functools
from pathlib import Path

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **values) -> str:
    """Raises jinja2.UndefinedError where the template asks for a value that is not given."""
    return _environment().get_template(template).render(values)


@functools.cache
def _environment():
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
