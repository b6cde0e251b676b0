"""The accordion's row of presets, and one's own."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from modules import paths_internal
from modules.ui_components import FormRow, ToolButton
from sdxl_optim import settings as declared
from sdxl_optim.errors import SettingsError
from sdxl_optim.hosts.webui.job import log
from sdxl_optim.settings import Field, Settings, presets
from sdxl_optim.settings.preset_file import ENCODING, PresetFile, as_text
from sdxl_optim.settings.presets import NONE, Preset

PRESET = ("preset",)
file = PresetFile(Path(paths_internal.data_path, "sdxl_optim_presets.json"))
_message = ""  # of the last loading


def load() -> None:
    """Read one's own presets; what is wrong with them shows in the log and in the accordion."""
    global _message
    _message = file.load() or ""
    if _message:
        log.warning("presets: %s", _message)


def names() -> list[str]:
    return [NONE, *presets.Names()]


def settings_of(fields: list[Field], values: Iterable[Any]) -> Settings:
    """What the accordion holds. A preset that another page has deleted is none: what it filled is there all the same.
    Raises SettingsError."""
    flat = {f.path: value for f, value in zip(fields, values, strict=False)}
    if flat.get(PRESET) not in names():
        flat[PRESET] = None
    return declared.from_flat(flat)


def choices_now(shown: list[str], chosen: str) -> tuple[Any, list[str]]:
    """What the radio shall show in a page that shows these: other pages save and delete, too. Nothing where it is the
    same, as an update is a change that asks again."""
    if shown == names():
        return gr.update(), shown
    return gr.update(choices=names(), value=chosen if chosen in names() else NONE), names()


def undo_button(elem_id) -> ToolButton:
    return ToolButton("↶", elem_id=elem_id("preset_undo"), tooltip="Back to what was set before the preset")


def connect_row(choose: gr.Radio, undo: gr.Button, fields: list[Field], components: list[Component]) -> None:
    """Choosing a preset fills all components but the switch; the button brings back what they held before."""
    filled = [(f, c) for f, c in zip(fields, components, strict=True) if f.path != ("enabled",)]
    before = gr.State(None)  # what they held before the last choice
    held = gr.State(NONE)  # the preset that the components were filled from

    def fill(last: str, *values):
        at = [f.path for f, _ in filled].index(PRESET)
        if values[at] not in names():  # another page has deleted it, which this one is about to learn
            return [last, None, *[gr.update()] * len(filled)]
        settings = declared.from_given({PRESET: values[at]})
        kept = [last if i == at else value for i, value in enumerate(values)]
        return [values[at], kept, *(shown(f, declared.get(settings, f.path)) for f, _ in filled)]

    def back(last: str, kept: list | None):
        if kept is None:
            return [last, None, *[gr.update()] * len(filled)]
        at = [f.path for f, _ in filled].index(PRESET)
        return [kept[at], None, *kept]

    outputs = [held, before, *(c for _, c in filled)]
    inputs = [held, *(c for _, c in filled)]
    choose.input(fill, inputs=inputs, outputs=outputs, show_progress=False, queue=False)
    undo.click(back, inputs=[held, before], outputs=outputs, show_progress=False, queue=False)


def shown(field: Field, value: Any) -> Any:
    """A setting's value as its component holds it."""
    return NONE if value is None and field.declaration.nullable else value


def own_presets(elem_id) -> dict[str, Component]:
    """The folded section in which one's own are kept."""
    parts = {}
    with gr.Accordion("Own presets", open=False, elem_id=elem_id("own_presets")):
        with FormRow():
            parts["name"] = gr.Textbox(label="Name", elem_id=elem_id("preset_name"), scale=2)
        with FormRow():
            for key, label in (("save", "Save settings"), ("rename", "Rename"), ("delete", "Delete")):
                parts[key] = gr.Button(label, elem_id=elem_id(f"preset_{key}"), size="sm", min_width=80)
        with FormRow():
            parts["export"] = gr.Button("Export", elem_id=elem_id("preset_export"), size="sm", min_width=80)
            parts["import"] = gr.UploadButton(
                "Import", elem_id=elem_id("preset_import"), size="sm", min_width=80, file_types=[".json"]
            )
        parts["file"] = gr.File(visible=False, label="Exported presets", elem_id=elem_id("preset_file"))
        message = f"<p>{html.escape(_message)}</p>" if _message else ""
        parts["answer"] = gr.HTML(message, elem_id=elem_id("preset_answer"), elem_classes=["sdxl-optim-answer"])
        parts["name"].do_not_save_to_config = True
    return parts


def connect_own(
    parts: dict[str, Component], choose: gr.Radio, fields: list[Field], components: list[Component], steps: Component
) -> None:
    """steps: the tab's own slider, whose value is saved as the preset's proposal."""

    def answering(change: Callable[..., tuple[str, str | None]]):
        """change: returns a sentence and the preset to be chosen then, or None. Errors are answered in words."""

        def answer(*values):
            try:
                text, name = change(*values)
            except SettingsError as error:
                return f"<p class='error'>{html.escape(str(error))}</p>", gr.update()
            update = gr.update(choices=names()) if name is None else gr.update(choices=names(), value=name)
            return f"<p>{text}</p>", update

        return answer

    def save(name: str, steps: float, *values):
        kept = declared.to_sparse_dict(settings_of(fields, values))
        kept = {key: value for key, value in kept.items() if key not in ("enabled", "preset")}
        file.save(Preset(name.strip(), "", kept, int(steps)))
        return "Saved.", name.strip()

    def rename(new: str, old: str):
        file.rename(old, new.strip())
        return "Renamed.", new.strip()

    def delete(name: str):
        file.delete(name)
        return "Deleted.", NONE

    def bring_in(upload):
        text = Path(upload.name).read_text(ENCODING, errors="replace")
        return f"Imported: <span translate='no'>{html.escape(', '.join(file.bring_in(text)))}</span>", None

    outputs = [parts["answer"], choose]
    inputs = [parts["name"], steps, *components]
    parts["save"].click(answering(save), inputs=inputs, outputs=outputs, show_progress=False)
    parts["rename"].click(answering(rename), inputs=[parts["name"], choose], outputs=outputs, show_progress=False)
    parts["delete"].click(answering(delete), inputs=[choose], outputs=outputs, show_progress=False)
    parts["import"].upload(answering(bring_in), inputs=[parts["import"]], outputs=outputs, show_progress=False)
    parts["export"].click(_export, outputs=[parts["answer"], parts["file"]], show_progress=False)


def _export():
    if not presets.own():
        return "<p>There are no presets of your own yet.</p>", gr.update(visible=False)
    path = Path(tempfile.mkdtemp(prefix="sdxl-optim-")) / "sdxl_optim_presets.json"
    path.write_text(as_text(list(presets.own())), "utf-8")
    return "", gr.update(visible=True, value=str(path))
