"""The settings as a Markdown table, for the documentation: `python -m sdxl_optim.settings.docs_table`."""

from __future__ import annotations

import sys

from sdxl_optim import settings as declared

HEAD = "| API | in the accordion and the infotext | default | allowed | what it does |\n|---|---|---|---|---|\n"


def settings_table() -> str:
    """One row a setting, in the order of the declarations; the hires pass repeats three groups and is left out."""
    rows = []
    for f in declared.fields():
        d = f.declaration
        repeated = f.path[0] == "hires" and len(f.path) > 2
        if repeated or (d.kind == "choice" and len(d.choices) < 2):  # no choice, no row
            continue
        label = f.title if d.in_ui else "–"
        default = "null" if d.default is None else str(d.default).lower() if d.kind == "toggle" else d.default
        rows.append(f"| `{f.name}` | {label} | {default} | {d.allowed} | {d.help} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    sys.stdout.write(settings_table())
