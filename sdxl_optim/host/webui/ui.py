"""The accordion, made from the declarations."""

from __future__ import annotations

import html
from dataclasses import dataclass

import gradio as gr
from modules.infotext_utils import PasteField
from modules.ui_components import FormRow, InputAccordion

from sdxl_optim import settings as declared
from sdxl_optim.host.webui import infotext
from sdxl_optim.report import JobReport
from sdxl_optim.settings import Field, Path

TITLE = "SDXL Optim"


@dataclass
class Accordion:
    """The components in the order of the declarations, the fields that fill them from infotext, and the report's place."""

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

    def technique(*path: str, rest: tuple[tuple[str, ...], ...]):
        """A checkbox, and its settings folded behind it."""
        with FormRow():
            add(*path, "enabled")
        with gr.Accordion(f"{_title(*path)} settings", open=False, elem_id=elem_id("_".join((*path, "settings")))):
            for names in rest:
                with FormRow():
                    for name in names:
                        add(*path, name)

    def techniques(*path: str):
        technique(*path, "freeu", rest=(("version", "b1", "b2"), ("s1", "s2"), ("start", "stop")))
        technique(*path, "cfg_cutoff", rest=(("stop",),))
        technique(
            *path,
            "deepcache",
            rest=(("cache_interval", "cache_branch_id"), ("mode", "center", "power"), ("start", "stop")),
        )

    def _title(*path: str) -> str:
        return by_path[(*path, "enabled")].title

    accordion = InputAccordion(False, label=TITLE, elem_id=elem_id("enabled"))
    parts[("enabled",)] = accordion
    with accordion:
        techniques()
        with FormRow():
            add("vae", "decoder")
        with gr.Accordion("Hires fix pass", open=False, elem_id=elem_id("hires")):
            with FormRow():
                add("hires", "mode")
            techniques("hires")
        report = gr.HTML("", elem_id=elem_id("report"))

    missing = by_path.keys() - parts.keys()
    if missing:
        raise RuntimeError(f"the accordion has no place for {missing}")
    return Accordion(
        [parts[f.path] for f in ui_fields()],
        [PasteField(parts[f.path], infotext.field_reader(f), api=None) for f in ui_fields()],
        report,
    )


def _component(field: Field, elem_id) -> gr.components.Component:
    d = field.declaration
    common = {"label": field.title if d.kind == "toggle" or field.path[0] in ("vae", "hires") else d.label.capitalize()}
    if d.label in ("b1", "b2", "s1", "s2") and field.path[0] != "hires":
        common["label"] = d.label
    common["elem_id"] = elem_id("_".join(field.path))
    if d.kind == "toggle":
        return gr.Checkbox(d.default, info=d.help, **common)
    if d.kind == "choice":
        return gr.Radio(list(d.choices), value=d.default, info=d.help, **common)
    return gr.Slider(d.lo, d.hi, value=d.default, step=d.step, info=d.help, **common)


def show_report(report: JobReport | None) -> str:
    """The last run, as the accordion shows it."""
    if report is None:
        return ""
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in report.lines())
    return f"<div class='sdxl-optim-report'><b>What ran last</b><ul>{lines}</ul></div>"
