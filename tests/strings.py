"""Every sentence of ours that a page can show, read from the declarations and the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import sdxl_optim
from sdxl_optim import settings as declared
from sdxl_optim.settings import presets
from sdxl_optim.wording import to_translate

PACKAGE = Path(sdxl_optim.__file__).parent
SENTENCES = (
    "*.py",
    "planning/*.py",
    "sampling/*.py",
    "settings/advice.py",
    "techniques/**/*.py",
    "unet/*.py",
    "backends/**/*.py",
    "hosts/webui/**/*.py",
)
# Their texts reach a command line, a file or a report of their own.
ELSEWHERE = ("wording.py", "errors.py", "files.py", "grid.py", "measure.py", "bench.py", "api.py", "machine.py",
             "certain_end.py")  # fmt: skip
COMPONENTS = {"Button", "Accordion", "UploadButton", "ToolButton", "Textbox", "Radio", "Dropdown", "Slider", "HTML",
              "File", "Dataframe", "Gallery", "Checkbox", "InputAccordion"}  # fmt: skip
SHOWN_BY = {"Note", "note", "message", "joined", "append", "show_plan", "_error", "as_html", "refused", "said"}
SHOWN_AS = {"label", "info", "placeholder", "tooltip", "value"}


def all_pieces() -> set[str]:
    """What a localisation has to know."""
    found = set(declared_texts())
    for path in sources():
        sentences, whole = texts_in(path.read_text("utf-8"))
        found |= {piece for text in sentences for piece in template_pieces(text)} | whole
    return {text.strip() for text in found if any(map(str.isalpha, text))}


def template_pieces(template: str) -> list[str]:
    """The pieces of a template around its values."""
    try:
        literals = [text for text, *_ in Formatter().parse(template)]
    except ValueError:  # no template: a text with a brace
        literals = [template]
    return [piece for text in literals for piece in to_translate(text)]


def declared_texts() -> Iterator[str]:
    for f in declared.fields():
        d = f.declaration
        if d.in_ui:
            yield from (f.title, d.help)
            yield from map(str, d.choices) if d.kind == "choice" else to_translate(d.allowed)
    for p in presets.BUILT_IN:
        yield from (p.name, p.about)
    yield from (presets.NONE, "or null")


def sources() -> list[Path]:
    return [path for pattern in SENTENCES for path in PACKAGE.glob(pattern) if path.name not in ELSEWHERE]


def texts_in(source: str) -> Iterator[set[str]]:
    """Templates of sentences, which are cut into pieces, and texts of components, which are not."""
    sentences, whole = set(), set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in COMPONENTS:
                arguments = [k.value for k in node.keywords if k.arg in SHOWN_AS] + node.args[:1]
                whole |= {text for a in arguments for text in strings(a)}
            elif name in SHOWN_BY:
                sentences |= {text for a in node.args for text in strings(a)}
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "help":  # under a component's label
            whole |= set(strings(node.value))
        elif isinstance(node, (ast.Return, ast.Assign, ast.AnnAssign)) and node.value is not None:
            sentences |= {text for text in strings(node.value) if " " in text.strip()}
    return ({text for text in found if "<" not in text and "=>" not in text} for found in (sentences, whole))


def formatted_at_once(source: str) -> list[str]:
    """f-strings that are shown: their values could not be told from their words."""
    return [
        ast.unparse(argument)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) in SHOWN_BY - {"append"}
        for argument in node.args
        if isinstance(argument, ast.JoinedStr)
    ]


def strings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
    elif isinstance(node, (ast.IfExp, ast.BinOp, ast.Tuple, ast.List, ast.Dict)):
        for child in ast.iter_child_nodes(node):
            yield from strings(child)
