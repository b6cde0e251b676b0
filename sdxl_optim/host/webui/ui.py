"""The accordion, made from the declarations."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr
from gradio.context import Context
from gradio.events import Dependency

from modules import shared
from modules.infotext_utils import PasteField
from modules.ui_components import FormRow, InputAccordion
from sdxl_optim import settings as declared
from sdxl_optim.host.webui import infotext
from sdxl_optim.host.webui.vae import copy_decoder
from sdxl_optim.report import JobReport
from sdxl_optim.settings import Field, Path

TITLE = "SDXL Optim"


@dataclass
class Accordion:
    """The components in the order of the declarations, the fields that fill them from infotext, and the report's
    place."""

    components: list[gr.components.Component]
    paste_fields: list[PasteField]
    report: gr.HTML


def ui_fields() -> list[Field]:
    return [f for f in declared.fields() if f.declaration.in_ui]


def build(elem_id) -> Accordion:
    """Make the accordion. elem_id: the script's own function from a name to an element id."""
    parts: dict[Path, gr.components.Component] = {}
    by_path = {f.path: f for f in ui_fields()}

    def add(*path: str):
        parts[path] = _component(by_path[path], elem_id)
        return parts[path]

    def technique(*path: str, rows: tuple[tuple[str, ...], ...]):
        """An accordion whose own checkbox switches the technique on, with its settings inside."""
        with add(*path, "enabled"):
            for names in rows:
                with FormRow():
                    for name in names:
                        add(*path, name)

    def techniques(*path: str):
        technique(*path, "freeu", rows=(("version",), ("b1", "b2"), ("s1", "s2"), ("start", "stop")))
        technique(*path, "cfg_cutoff", rows=(("stop",),))
        rows = (("cache_interval", "cache_branch_id"), ("mode",), ("center", "power"), ("start", "stop"))
        technique(*path, "deepcache", rows=rows)

    with add("enabled"):
        techniques()
        with FormRow():
            add("vae", "decoder")
        if not shared.cmd_opts.hide_ui_dir_config:
            _tiny_decoder_file(elem_id)
        with gr.Accordion("Hires fix pass", open=False, elem_id=elem_id("hires")):
            with FormRow():
                add("hires", "mode")
            techniques("hires")
        report = gr.HTML("", elem_id=elem_id("report"))
        gr.HTML(_hover_help(elem_id), visible=False)

    missing = by_path.keys() - parts.keys()
    if missing:
        raise RuntimeError(f"the accordion has no place for {missing}")
    return Accordion(
        [parts[f.path] for f in ui_fields()],
        [PasteField(parts[f.path], infotext.FieldReader(f), api=None) for f in ui_fields()],
        report,
    )


def _tiny_decoder_file(elem_id) -> None:
    """Where the host can't fetch the tiny decoder: name a file, and it is copied to where the host looks."""
    with gr.Accordion("Tiny decoder file", open=False, elem_id=elem_id("tiny_file_section")):
        path = gr.Textbox(label="File to copy", placeholder="taesdxl_decoder.pth", elem_id=elem_id("tiny_file"))
        button = gr.Button("Copy", elem_id=elem_id("tiny_file_copy"), size="sm")
        answer = gr.HTML("", elem_id=elem_id("tiny_file_answer"), elem_classes=["sdxl-optim-answer"])
        path.do_not_save_to_config = True
        button.click(lambda source: html.escape(copy_decoder(source)), inputs=[path], outputs=[answer])


def _component(field: Field, elem_id) -> gr.components.Component:
    """One setting's component. Labels are unique within the accordion: the host keeps the user's own defaults by
    them."""
    d = field.declaration
    common = {"label": field.title, "elem_id": elem_id("_".join(field.path))}
    if d.kind == "toggle":
        return InputAccordion(d.default, **common)
    if d.kind == "choice":
        return gr.Radio(list(d.choices), value=d.default, **common)
    return gr.Slider(d.lo, d.hi, value=d.default, step=d.step, **common)


def _hover_help(elem_id) -> str:
    """For javascript/sdxl_optim.js: the help that shows while the mouse rests on a control."""
    help_by_id = {elem_id("_".join(f.path)): f"{f.declaration.help} ({f.declaration.allowed})" for f in ui_fields()}
    return f"<div class='sdxl-optim-help' data-help='{html.escape(json.dumps(help_by_id))}'></div>"


class ReportRefresher:
    """Fills the report's place after every event of the page that writes the tab's log: Generate, ✨, restored
    progress.

    It follows the events themselves: the log's own change event stays away where the next text happens to be the same.
    """

    def __init__(self, place: gr.HTML, read: Callable[[], str]):
        self.place, self.read = place, read
        self.log: gr.HTML | None = None
        self._followed: set[int] = set()

    def after_component(self, component, is_log: bool) -> None:
        """Follow the events that the host has added by the time `component` is made."""
        if is_log:
            self.log = component
        if self.log is None:
            return
        for i, event in enumerate(list(Context.root_block.dependencies)):
            if self.log._id in event["outputs"] and i not in self._followed:
                self._followed.add(i)
                Dependency(self.log, event, i).then(self.read, outputs=[self.place], show_progress=False)


def show_report(report: JobReport | None) -> str:
    """The last run, as the accordion shows it."""
    if report is None:
        return ""
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in report.lines())
    return f"<div class='sdxl-optim-report'><b>What ran last</b><ul>{lines}</ul></div>"
