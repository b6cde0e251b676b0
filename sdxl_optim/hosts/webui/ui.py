"""The accordion, made from the declarations."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr

from modules import shared
from modules.infotext_utils import PasteField
from modules.ui_components import FormRow, InputAccordion
from sdxl_optim.hosts.webui import backend_ui, infotext, preset_ui
from sdxl_optim.hosts.webui.arguments import PRESET, shown, ui_fields
from sdxl_optim.hosts.webui.family import HostFamily
from sdxl_optim.hosts.webui.tiny_decoder import copy_decoder
from sdxl_optim.settings import Field, FieldPath
from sdxl_optim.settings.preset_library import PresetLibrary
from sdxl_optim.settings.presets import NONE
from sdxl_optim.wording import as_html, pieces

TITLE = "SDXL Optim"
Rows = tuple[tuple[str, ...], ...]  # names of settings, side by side


@dataclass(frozen=True)
class Accordion:
    """The settings' components in their fields' order, and the places that are filled in."""

    fields: list[Field]
    components: list[gr.components.Component]
    preset: gr.Radio  # among the components
    own_presets: dict[str, gr.components.Component]
    plan: gr.HTML
    proposal: gr.HTML
    take: gr.Button
    foresee: gr.Button
    report: gr.HTML
    show_report: gr.Button

    @property
    def paste_fields(self) -> list[PasteField]:
        """By which the host fills the components from infotext."""
        pairs = zip(self.components, self.fields, strict=True)
        return [PasteField(component, infotext.FieldReader(field), api=None) for component, field in pairs]

    @property
    def paste_names(self) -> list[str]:
        """The infotext keys."""
        return [field.infotext_key for field in self.fields]


def build(elem_id, host: HostFamily, presets: PresetLibrary) -> Accordion:
    """Make the accordion. elem_id: the script's own function from a name to an element id."""
    parts: dict[FieldPath, gr.components.Component] = {}
    by_path = {f.path: f for f in ui_fields()}

    def add(*path: str):
        parts[path] = _component(by_path[path], elem_id)
        return parts[path]

    def in_rows(path: tuple[str, ...], rows: Rows):
        for names in rows:
            with FormRow():
                for name in names:
                    add(*path, name)

    def technique(*path: str, rows: Rows, more: Rows = ()):
        """An accordion whose own checkbox switches the technique on, with its settings inside, the finer ones
        folded."""
        with add(*path, "enabled"):
            in_rows(path, rows)
            if more:
                with gr.Accordion("More", open=False, elem_id=elem_id("_".join((*path, "more")))):
                    in_rows(path, more)

    def techniques(*path: str):
        technique(*path, "freeu", rows=(("b1", "b2"), ("s1", "s2")), more=(("version",), ("start", "stop")))
        technique(*path, "cfg_cutoff", rows=(("stop",),))
        rows = (("cache_interval", "cache_branch_id"),)
        more = (("mode",), ("center", "power"), ("start", "stop"))
        technique(*path, "deepcache", rows=rows, more=more)

    with add("enabled"):
        plan = gr.HTML("", elem_id=elem_id("plan"))
        with FormRow(elem_classes=["sdxl-optim-presets"]):
            add("preset")
            undo = preset_ui.undo_button(elem_id)
        with gr.Row(elem_classes=["sdxl-optim-proposals"]):
            proposal = gr.HTML("", elem_id=elem_id("proposal"))
            take = gr.Button("Take what is proposed", visible=False, elem_id=elem_id("take"), size="sm", scale=0)
        with gr.Row(elem_classes=["accordions"]):
            techniques()
        with FormRow():
            add("vae", "decoder")
        _vae_and_memory(add, elem_id)
        backend_ui.build(add, elem_id, host)
        with gr.Accordion("Hires fix pass", open=False, elem_id=elem_id("hires")):
            with FormRow():
                add("hires", "mode")
            techniques("hires")
        own = preset_ui.own_presets(elem_id, presets)
        if not shared.cmd_opts.hide_ui_dir_config:
            _tiny_decoder_file(elem_id)
        report = gr.HTML("", elem_id=elem_id("report"))
        show_report = gr.Button("", visible=False, elem_id=elem_id("show_report"))
        foresee = gr.Button("", visible=False, elem_id=elem_id("foresee"))
        gr.HTML(_hover_help(elem_id), visible=False)

    missing = by_path.keys() - parts.keys()
    if missing:
        raise RuntimeError(f"the accordion has no place for {missing}")
    fields = ui_fields()
    components = [parts[f.path] for f in fields]
    preset_ui.connect_row(presets, parts[PRESET], undo, components)
    return Accordion(fields, components, parts[PRESET], own, plan, proposal, take, foresee, report, show_report)


def _vae_and_memory(add: Callable, elem_id) -> None:
    with FormRow():
        add("vae", "precision")
    with add("vae", "tiling"):
        add("vae", "tile_size")
        add("vae", "tile_norms")
    with gr.Accordion("Memory", open=False, elem_id=elem_id("memory_section")):
        for names in (("offload", "budget"), ("weights",), ("cudnn_tf32", "matmul_tf32")):
            with FormRow():
                for name in names:
                    add("memory", name)


def _tiny_decoder_file(elem_id) -> None:
    """Where the host can't fetch the tiny decoder: name a file, and it is copied to where the host looks."""
    with gr.Accordion("Tiny decoder file", open=False, elem_id=elem_id("tiny_file_section")):
        path = gr.Textbox(label="File to copy", placeholder="taesdxl_decoder.pth", elem_id=elem_id("tiny_file"))
        button = gr.Button("Copy", elem_id=elem_id("tiny_file_copy"), size="sm")
        answer = gr.HTML("", elem_id=elem_id("tiny_file_answer"), elem_classes=["sdxl-optim-answer"])
        path.do_not_save_to_config = True
        button.click(lambda source: as_html(copy_decoder(source)), inputs=[path], outputs=[answer])


def _component(field: Field, elem_id) -> gr.components.Component:
    """One setting's component. Labels are unique within the accordion: the host keeps the user's own defaults by
    them."""
    d = field.declaration
    common = {"label": field.title, "elem_id": elem_id("_".join(field.path))}
    if d.kind == "toggle":
        return InputAccordion(d.default, **common)
    if d.kind == "choice":
        if d.nullable:
            return gr.Radio([NONE, *d.choices], value=shown(field, d.default), **common)
        return gr.Radio(list(d.choices), value=d.default, **common)
    return gr.Slider(d.lo, d.hi, value=d.default, step=d.step, **common)


def _hover_help(elem_id) -> str:
    """For javascript/sdxl_optim.js: the help that shows while the mouse rests on a control."""
    by_id = {elem_id("_".join(f.path)): _help(f) for f in ui_fields()}
    return f"<div class='sdxl-optim-help' data-help='{html.escape(json.dumps(by_id))}'></div>"


def _help(field: Field) -> list[str]:
    """In pieces, each of which may be translated."""
    d = field.declaration
    if d.kind == "choice":
        names = [str(choice) for choice in d.choices] + (["or null"] if d.nullable else [])
        allowed = [text for name in names for text in (name, ", ")][:-1]
    else:
        allowed = [text for text, _ in pieces(d.allowed)]
    return [d.help, " (", *allowed, ")"]
