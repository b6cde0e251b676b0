"""The README says what the code declares, and the files that it points to exist."""

import re
from pathlib import Path

from sdxl_optim.settings.docs_table import settings_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_settings_table_is_the_generated_one():
    assert settings_table() in README


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "demo_model" / "README.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
