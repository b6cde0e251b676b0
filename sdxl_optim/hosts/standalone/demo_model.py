"""The demo model, where its package `demo_model` is there: beside this one in the repository, or installed with it.

No other module of this package imports `demo_model`. Without it, both functions raise ImportError with a sentence.
"""

from __future__ import annotations

from contextlib import contextmanager

ABSENT = "the demo model is not part of the installed extension; a clone of the project has it in demo_model/"


@contextmanager
def _said_if_absent():
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "demo_model":
            raise
        raise ImportError(ABSENT, name=error.name) from error


def files():
    """`demo_model.export`, the module that writes the model's files."""
    with _said_if_absent():
        from demo_model import export
    return export


def caption_check(image, prompt: str):
    """The verdict of the model's classifier on a picture; see `demo_model.check.caption_check`."""
    with _said_if_absent():
        from demo_model import check
    return check.caption_check(image, prompt)
