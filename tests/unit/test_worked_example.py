"""docs/adding-an-optimisation.md, followed to the letter: its blocks go into a copy of the sources, whose tests then
run."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "adding-an-optimisation.md"
WHERE = r"<!-- (new|into) (\S+)(?: (in front of|behind|instead of): (.+?))? -->"
BLOCK = re.compile(WHERE + r"\n```python\n(.*?)```\n", re.DOTALL)


def apply(folder: Path, kind: str, name: str, where: str, anchor: str, code: str) -> None:
    path = folder / name
    if kind == "new":
        assert not path.exists(), name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, "utf-8")
        return
    lines = path.read_text("utf-8").splitlines(keepends=True)
    found = [i for i, line in enumerate(lines) if line.split("  #")[0].strip() == anchor]
    assert len(found) == 1, f"{name} has {len(found)} lines {anchor!r}"
    i = found[0]
    if where == "in front of":
        while lines[i - 1].startswith("@"):
            i -= 1
    kept = [lines[i]] if where != "instead of" else []
    lines[i : i + 1] = [code, *kept] if where == "in front of" else [*kept, code]
    path.write_text("".join(lines), "utf-8")


def test_what_the_page_says_works(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__", "weights", "*.safetensors")
    for folder in ("sdxl_optim", "demo_model", "tests/structure", "tests/unit"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    for path in (ROOT / "tests").glob("*.py"):
        shutil.copy(path, tmp_path / "tests" / path.name)
    blocks = BLOCK.findall(PAGE.read_text("utf-8"))
    assert len(blocks) == PAGE.read_text("utf-8").count("```python")
    for block in blocks:
        apply(tmp_path, *block)
    edited = {name for kind, name, *_ in blocks if kind == "into"}
    assert edited == {
        f"sdxl_optim/{name}" for name in ("settings/schema.py", "techniques/__init__.py", "hosts/webui/ui.py")
    }
    new = [Path(name) for kind, name, *_ in blocks if kind == "new" and name.startswith("sdxl_optim/")]
    assert {path.parent.as_posix() for path in new} == {"sdxl_optim/techniques/hush"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tests = ["tests/unit/test_hush.py", "tests/structure", "tests/unit/test_overrides.py", "tests/unit/test_plan.py"]
    done = subprocess.run([*command, *tests], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "passed" in done.stdout
