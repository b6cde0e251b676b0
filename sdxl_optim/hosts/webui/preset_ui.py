"""The accordion's row of presets, what they propose, and the user's own."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from modules.ui_components import FormRow, ToolButton
from sdxl_optim import settings as declared
from sdxl_optim.errors import SettingsError
from sdxl_optim.hosts.webui.arguments import PRESET, names, settings_held, shown, ui_fields
from sdxl_optim.hosts.webui.family import HostFamily
from sdxl_optim.hosts.webui.machine import machine
from sdxl_optim.settings.advice import advise
from sdxl_optim.settings.preset_library import ENCODING, PresetLibrary, as_text
from sdxl_optim.settings.presets import NONE, Preset
from sdxl_optim.wording import Text, as_html, joined, message


def choices_now(presets: PresetLibrary, in_page: list[str], chosen: str) -> tuple[Any, list[str]]:
    """What the radio shall show in a page that has these: other pages save and delete, too. Nothing where it is the
    same, as an update is a change that asks again."""
    now = names(presets)
    if in_page == now:
        return gr.update(), in_page
    return gr.update(choices=now, value=chosen if chosen in now else NONE), now


def undo_button(elem_id) -> ToolButton:
    return ToolButton("↶", elem_id=elem_id("preset_undo"), tooltip="Back to what was set before the preset")


def connect_row(presets: PresetLibrary, choose: gr.Radio, undo: gr.Button, components: list[Component]) -> None:
    """Choosing a preset fills all components but the switch; the button brings back what they held before."""
    filled = [(f, c) for f, c in zip(ui_fields(), components, strict=True) if f.path != ("enabled",)]
    before = gr.State(None)  # what they held before the last choice
    held = gr.State(NONE)  # the preset that the components were filled from

    def fill(last: str, *values):
        at = [f.path for f, _ in filled].index(PRESET)
        if values[at] not in names(presets):  # another page has deleted it, which this one is about to learn
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


def own_presets(elem_id, presets: PresetLibrary) -> dict[str, Component]:
    """The folded section in which the user's own are kept."""
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
        message = f"<p>{html.escape(presets.message)}</p>" if presets.message else ""
        parts["answer"] = gr.HTML(message, elem_id=elem_id("preset_answer"), elem_classes=["sdxl-optim-answer"])
        parts["name"].do_not_save_to_config = True
    return parts


def connect_own(
    presets: PresetLibrary, parts: dict[str, Component], choose: gr.Radio, components: list[Component], steps: Component
) -> None:
    """steps: the tab's own slider, whose value is saved as the preset's proposal."""

    def answering(change: Callable[..., tuple[str, str | None]]):
        """change: returns a sentence and the preset to be chosen then, or None. Errors are answered in words."""

        def answer(*values):
            try:
                text, name = change(*values)
            except SettingsError as error:
                return f"<p class='error'>{html.escape(str(error))}</p>", gr.update()
            value = {} if name is None else {"value": name}
            return f"<p>{text}</p>", gr.update(choices=names(presets), **value)

        return answer

    def save(name: str, steps: float, *values):
        kept = declared.to_sparse_dict(settings_held(values, presets))
        kept = {key: value for key, value in kept.items() if key not in ("enabled", "preset")}
        presets.save(Preset(name.strip(), "", kept, int(steps)))
        return "Saved.", name.strip()

    def rename(new: str, old: str):
        presets.rename(old, new.strip())
        return "Renamed.", new.strip()

    def delete(name: str):
        presets.delete(name)
        return "Deleted.", NONE

    def bring_in(upload):
        text = Path(upload.name).read_text(ENCODING, errors="replace")
        return f"Imported: <span translate='no'>{html.escape(', '.join(presets.bring_in(text)))}</span>", None

    outputs = [parts["answer"], choose]
    inputs = [parts["name"], steps, *components]
    parts["save"].click(answering(save), inputs=inputs, outputs=outputs, show_progress=False)
    parts["rename"].click(answering(rename), inputs=[parts["name"], choose], outputs=outputs, show_progress=False)
    parts["delete"].click(answering(delete), inputs=[choose], outputs=outputs, show_progress=False)
    parts["import"].upload(answering(bring_in), inputs=[parts["import"]], outputs=outputs, show_progress=False)
    parts["export"].click(lambda: _export(presets), outputs=[parts["answer"], parts["file"]], show_progress=False)


def _export(presets: PresetLibrary):
    if not presets.own:
        return "<p>There are no presets of your own yet.</p>", gr.update(visible=False)
    path = Path(tempfile.mkdtemp(prefix="sdxl-optim-")) / "sdxl_optim_presets.json"
    path.write_text(as_text(list(presets.own)), "utf-8")
    return "", gr.update(visible=True, value=str(path))


# --- what a preset proposes


def proposed(presets: PresetLibrary, name: str) -> list:
    """The preset's steps and the refiner's switch, for their components."""
    preset = presets.find(name)
    values = [preset.steps, preset.switch_at] if preset else [None, None]
    return [gr.update() if value is None else value for value in values]


def not_yet_taken(preset: Preset | None, given: dict[str, Any]) -> list[Text]:
    """What the preset proposes and the request has otherwise."""
    parts: list[Text] = []
    if preset and preset.steps is not None and given.get("steps") != preset.steps:
        parts.append(message("{n} steps", n=preset.steps))
    at = preset.switch_at if preset and given.get("refiner") else None
    if at is not None and given.get("refiner_switch_at") != at:
        parts.append(message("refiner at {at:g}", at=at))
    return parts


def about(preset: Preset | None, parts: Sequence[Text], host: HostFamily) -> str:
    """What the chosen preset is for and proposes; without one, what to choose."""
    if preset is None:
        rows = "".join(f"<p>{as_html(sentence)}</p>" for sentence in advise(machine(host)))
        return f"<div class='sdxl-optim-proposal'>{rows}</div>"
    text = f"<span>{html.escape(preset.about)}</span> " if preset.about else ""
    offered = f"<span>{as_html(joined(['proposed: ', joined(parts, by=', ')]))}</span>" if parts else ""
    return f"<div class='sdxl-optim-proposal'>{text}{offered}</div>"
