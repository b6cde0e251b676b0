"""The backend's place in the accordion. What can't run on this machine is greyed by javascript/sdxl_optim.js."""

from __future__ import annotations

import html
import json
from collections.abc import Callable

import gradio as gr

from modules.ui_components import FormRow
from sdxl_optim import backends
from sdxl_optim import settings as declared
from sdxl_optim.backends.environment import read_environment
from sdxl_optim.hosts.webui.family import HostFamily
from sdxl_optim.techniques.accumulation.patch import why_no_fp16_accumulation
from sdxl_optim.wording import as_html, message, pieces

ANY = "*"  # of a control that is greyed as a whole


def build(add: Callable, elem_id, host: HostFamily) -> None:
    with gr.Accordion("Execution", open=False, elem_id=elem_id("backend_section")):
        with FormRow():
            add("backend", "name")
        with FormRow():
            add("backend", "attention")
        with add("backend", "fp16_accumulation"):
            text = "It needs torch {least} or later. Cards for data centres gain nothing by it."
            gr.HTML(as_html(message(text, least="2.7")))
    gr.HTML(_unavailable(elem_id, host), visible=False)


def _unavailable(elem_id, host: HostFamily) -> str:
    """By element and choice, the reason in pieces, each of which may be translated. The model may not be loaded yet, so
    this is what holds for every model."""
    environment = read_environment(host.why_no_backend_for_any_model())
    reasons = {name: why for name, why in backends.probe_all(environment).items() if why}
    by_id = {elem_id("backend_name"): reasons}
    for name, why in host.cannot.items():
        choices = declared.choices_that_act(name)
        by_id.setdefault(elem_id(name.replace(".", "_")), {}).update(dict.fromkeys(choices or [ANY], why))
    if reason := why_no_fp16_accumulation():
        by_id[elem_id("backend_fp16_accumulation")] = {ANY: reason}
    data = {
        control: {choice: [text for text, _ in pieces(why)] for choice, why in choices.items()}
        for control, choices in by_id.items()
    }
    return f"<div class='sdxl-optim-cannot' data-cannot='{html.escape(json.dumps(data))}'></div>"
