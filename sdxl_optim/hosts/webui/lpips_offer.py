"""What the tab offers where LPIPS can't be computed: the package by pip, and then its network's weights."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import gradio as gr

from modules import launch_utils, modelloader, shared
from sdxl_optim.bench import perceptual
from sdxl_optim.wording import Text, as_html, message

INSTALL = "Install the package lpips"
FETCH = f"Fetch AlexNet's weights ({perceptual.WEIGHTS_SIZE})"
READY = "LPIPS is at hand; Refresh adds it to the result."


def build(elem_id: str) -> None:
    """A line and a button, which are gone where nothing is missing."""
    text = gr.HTML(_line(perceptual.missing()), elem_id=f"{elem_id}_lpips")
    button = gr.Button(_label(), visible=bool(perceptual.missing()), elem_id=f"{elem_id}_lpips_get")
    button.click(_get, outputs=[text, button], show_progress=False)


def _label() -> str:
    return FETCH if perceptual.has_package() else INSTALL


def _line(text: Text) -> str:
    return f"<p>{as_html(text)}</p>" if text else ""


def _get() -> Iterator[tuple]:
    yield _line(f"{_label()}: under way; the console shows how far it is."), gr.update(interactive=False)
    failed = _fetch() if perceptual.has_package() else _install()
    text = _line(failed or perceptual.missing() or READY)
    yield text, gr.update(value=_label(), interactive=True, visible=bool(perceptual.missing()))


def _install() -> Text:
    """The package alone: the WebUI has what it asks for, and keeps its own versions. Returns why not, or nothing."""
    if shared.cmd_opts.disable_extension_access:
        return "The WebUI was started so that others can reach it, and installs nothing from its page then."
    if launch_utils.args.skip_install:
        text = "The WebUI was started with --skip-install. By hand: {command}"
        return message(text, command=f"pip install --no-deps {perceptual.PACKAGE}")
    try:
        launch_utils.run_pip(f"install --no-deps {perceptual.PACKAGE}", perceptual.PACKAGE)
    except RuntimeError as error:
        return message("The package lpips could not be installed. {error}", error=str(error).strip().splitlines()[-1])
    importlib.invalidate_caches()
    return ""


def _fetch() -> Text:
    """Returns why the weights could not be fetched, or nothing."""
    file = perceptual.weights_file()
    try:
        modelloader.load_file_from_url(
            perceptual.WEIGHTS_URL, model_dir=str(file.parent), file_name=file.name, hash_prefix="7be5be79"
        )
    except (OSError, RuntimeError) as error:
        text = "AlexNet's weights could not be fetched from {url} ({error}). Put the file into {folder}."
        return message(text, url=perceptual.WEIGHTS_URL, error=error, folder=file.parent)
    return ""
