"""What our accordion does together with the rest of its tab: the live plan, a preset's proposals, the report after a
run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from sdxl_optim.errors import SettingsError
from sdxl_optim.hosts.webui import preset_ui, ui
from sdxl_optim.hosts.webui.arguments import PRESET, names, settings_held
from sdxl_optim.hosts.webui.family import HostFamily
from sdxl_optim.hosts.webui.job import log
from sdxl_optim.hosts.webui.live_plan import NotForeseeable, foresee, in_words
from sdxl_optim.hosts.webui.ui import Accordion
from sdxl_optim.report import JobReport
from sdxl_optim.sentences import report_lines
from sdxl_optim.settings.preset_library import PresetLibrary
from sdxl_optim.wording import Text, as_html, message

# Fields of a request, and the components of a tab that hold them; {} is the tab's name.
REQUEST = {
    "prompt": "{}_prompt",
    "negative_prompt": "{}_neg_prompt",
    "styles": "{}_styles",
    "steps": "{}_steps",
    "sampler_name": "{}_sampling",
    "scheduler": "{}_scheduler",
    "cfg_scale": "{}_cfg_scale",
    "width": "{}_width",
    "height": "{}_height",
    "batch_size": "{}_batch_size",
    "denoising_strength": "{}_denoising_strength",
    "image_cfg_scale": "{}_image_cfg_scale",
    "refiner": "{}_enable-checkbox",
    "refiner_checkpoint": "{}_checkpoint",
    "refiner_switch_at": "{}_switch_at",
    "enable_hr": "{}_hr-checkbox",
    "hr_scale": "{}_hr_scale",
    "hr_resize_x": "{}_hr_resize_x",
    "hr_resize_y": "{}_hr_resize_y",
    "hr_second_pass_steps": "{}_hires_steps",
    "hr_sampler_name": "hr_sampler",
    "hr_scheduler": "hr_scheduler",
    "hr_prompt": "hires_prompt",
    "hr_negative_prompt": "hires_neg_prompt",
}
ONLY_TXT2IMG = {"enable_hr", "hr_scale", "hr_resize_x", "hr_resize_y", "hr_second_pass_steps", "hr_sampler_name",
                "hr_scheduler", "hr_prompt", "hr_negative_prompt"}  # fmt: skip
SAME = {"hr_sampler_name": "Use same sampler", "hr_scheduler": "Use same scheduler"}


class Page:
    """One tab. The host's components are noted as they are made; when its log is, all others are there."""

    def __init__(self, tab: str, host: HostFamily, presets: PresetLibrary, last_report: Callable[[], JobReport | None]):
        """last_report: what the accordion shall show of the tab's last run."""
        self.tab = tab
        self._host, self._presets = host, presets
        self._last_report = last_report
        self._accordion: Accordion | None = None
        self._known: dict[str, Component] = {}
        self._connected = False

    def build(self, elem_id) -> Accordion:
        """Make the accordion. elem_id: the script's own function from a name to an element id."""
        self._accordion = ui.build(elem_id, self._host, self._presets)
        return self._accordion

    def after_component(self, component: Component) -> None:
        elem_id = getattr(component, "elem_id", None)
        if elem_id:
            self._known[elem_id] = component
        if self._accordion is None or self._connected:
            return
        if elem_id == f"html_log_{self.tab}" and isinstance(component, gr.HTML):
            self._connected = True
            self._connect()

    def _connect(self) -> None:
        """The hidden buttons are clicked by javascript/sdxl_optim.js: after a run, and when the controls are still."""
        a, presets = self._accordion, self._presets
        if a is None:
            return
        a.show_report.click(lambda: show_report(self._last_report()), outputs=[a.report], show_progress=False)
        self._connect_plan(a)
        preset_ui.connect_own(presets, a.own_presets, a.preset, a.components, self._known[f"{self.tab}_steps"])

    # --- the live plan

    def _connect_plan(self, a: Accordion) -> None:
        soon = f"() => {{ sdxlOptimPlanSoon('{self.tab}'); }}"
        request = {name: self._known.get(elem_id.format(self.tab)) for name, elem_id in REQUEST.items()}
        request = {name: c for name, c in request.items() if c is not None and self._has(name)}
        for component in [*request.values(), *a.components]:
            component.change(None, _js=soon, inputs=None, outputs=None)

        def show(*values):
            in_page, *rest = values
            given = dict(zip(request, rest, strict=False))
            held = tuple(rest[len(request) :])
            chosen = held[a.components.index(a.preset)]
            return *preset_ui.choices_now(self._presets, in_page, chosen), *self._foresee(a, given, held)

        in_page = gr.State(names(self._presets))  # the presets, as this page has them
        a.foresee.click(
            show,
            inputs=[in_page, *request.values(), *a.components],
            outputs=[a.preset, in_page, a.plan, a.proposal, a.take],
            show_progress=False,
            queue=False,
        )
        taken = [request[name] for name in ("steps", "refiner_switch_at") if name in request]
        a.take.click(
            lambda name: preset_ui.proposed(self._presets, name)[: len(taken)],
            inputs=[a.preset],
            outputs=taken,
            show_progress=False,
        )

    def _has(self, name: str) -> bool:
        return self.tab == "txt2img" or name not in ONLY_TXT2IMG

    def _foresee(self, a: Accordion, given: dict[str, Any], values: tuple) -> tuple[str, str, dict]:
        """The plan's line, the preset's proposals, and whether there is something to take."""
        flat = {f.path: value for f, value in zip(a.fields, values, strict=True)}
        if not flat["enabled",]:
            return "", "", gr.update(visible=False)
        preset = self._presets.find(flat[PRESET])
        parts = preset_ui.not_yet_taken(preset, given)
        about = preset_ui.about(preset, parts, self._host)
        return self._line(given, values), about, gr.update(visible=bool(parts))

    def _line(self, given: dict[str, Any], values: tuple) -> str:
        try:
            settings = settings_held(values, self._presets)
            foreseen = foresee(self._host, as_request(given), settings, self.tab == "img2img")
            return show_plan(*in_words(foreseen))
        except (SettingsError, NotForeseeable) as error:
            return show_plan([], [message("no plan yet: {reason}", reason=error)])
        except Exception as error:  # whatever a half-filled form holds, the page goes on
            log.debug("no plan", exc_info=True)
            return show_plan([], [message("no plan yet: {reason}", reason=f"{type(error).__name__} ({error})")])


def as_request(given: dict[str, Any]) -> dict[str, Any]:
    """Fields of the host's processing object, from what the tab's components hold."""
    request = {name: value for name, value in given.items() if value is not None and value != SAME.get(name)}
    if not request.pop("refiner", False):
        request.pop("refiner_checkpoint", None)
        request.pop("refiner_switch_at", None)
    for name in ("steps", "batch_size", "hr_second_pass_steps"):
        if name in request:
            request[name] = int(request[name])
    return request


def show_plan(shown: Sequence[Text], notes: Sequence[Text]) -> str:
    rows = [f"<p>{as_html(line)}</p>" for line in shown] + [f"<p class='note'>{as_html(note)}</p>" for note in notes]
    return f"<div class='sdxl-optim-plan'>{''.join(rows)}</div>"


def show_report(report: JobReport | None) -> str:
    """The last run, as the accordion shows it."""
    if report is None:
        return ""
    rows = "".join(f"<li>{as_html(line)}</li>" for line in report_lines(report))
    return f"<div class='sdxl-optim-report'><b>What ran last</b><ul>{rows}</ul></div>"
