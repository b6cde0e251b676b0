"""What our accordion does together with the rest of its tab: the live plan, a preset's proposals, the report after a
run."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.context import Context
from gradio.events import Dependency

from sdxl_optim import settings as declared
from sdxl_optim.errors import SettingsError
from sdxl_optim.hosts.webui import preset_ui
from sdxl_optim.hosts.webui.foresight import NotForeseeable, foresee, in_words
from sdxl_optim.hosts.webui.job import log
from sdxl_optim.hosts.webui.machine import machine
from sdxl_optim.report import JobReport
from sdxl_optim.sentences import report_lines
from sdxl_optim.settings import presets
from sdxl_optim.settings.advice import advise
from sdxl_optim.wording import as_html, message

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


@dataclass
class Accordion:
    """What ui.py has made: the settings' components in their fields' order, and the places that are filled in."""

    fields: list[declared.Field]
    components: list[Component]
    paste_fields: list
    plan: gr.HTML
    proposal: gr.HTML
    take: gr.Button
    foresee: gr.Button
    report: gr.HTML


@dataclass
class Page:
    """One tab. The host's components are noted as they are made; when its log is, all others are there."""

    tab: str
    accordion: Accordion | None = None
    read_report: Callable[[], str] = lambda: ""
    known: dict[str, Component] = field(default_factory=dict)
    log: gr.HTML | None = None
    _followed: set[int] = field(default_factory=set)
    _waiting: list[Callable[[], None]] = field(default_factory=list)

    def when_complete(self, connect: Callable[[], None]) -> None:
        """Call `connect` once all of the tab's components are made."""
        self._waiting.append(connect)

    def after_component(self, component: Component) -> None:
        elem_id = getattr(component, "elem_id", None)
        if elem_id:
            self.known[elem_id] = component
        if self.accordion is None:
            return
        if elem_id == f"html_log_{self.tab}" and isinstance(component, gr.HTML) and self.log is None:
            self.log = component
            for connect in (self._connect, *self._waiting):
                connect()
        self._follow_runs()

    # --- the report

    def _follow_runs(self) -> None:
        """Fill the report's place after every event of the page that writes the tab's log: Generate, ✨, restored
        progress.

        It follows the events themselves: the log's own change event stays away where the next text happens to be the
        same.
        """
        if self.log is None:
            return
        for i, event, outputs in _events():
            if self.log._id in outputs and i not in self._followed:
                self._followed.add(i)
                after = _after(self.log, event, i).then(
                    self.read_report, outputs=[self.accordion.report], show_progress=False
                )
                after.then(None, _js=self._soon, inputs=None, outputs=None)

    # --- the live plan

    @property
    def _soon(self) -> str:
        return f"() => {{ sdxlOptimPlanSoon('{self.tab}'); }}"

    def _connect(self) -> None:
        a = self.accordion
        request = {name: self.known.get(elem_id.format(self.tab)) for name, elem_id in REQUEST.items()}
        request = {name: c for name, c in request.items() if c is not None and self._has(name)}
        for component in [*request.values(), *a.components]:
            component.change(None, _js=self._soon, inputs=None, outputs=None)

        def show(*values):
            names, *values = values
            given = dict(zip(request, values, strict=False))
            held = values[len(request) :]
            return *preset_ui.choices_now(names, held[a.components.index(preset)]), *self._foresee(given, held)

        preset = next(c for c, f in zip(a.components, a.fields, strict=True) if f.path == preset_ui.PRESET)
        shown = gr.State(preset_ui.names())  # of presets, as this page has them
        a.foresee.click(
            show,
            inputs=[shown, *request.values(), *a.components],
            outputs=[preset, shown, a.plan, a.proposal, a.take],
            show_progress=False,
            queue=False,
        )
        taken = [request[name] for name in ("steps", "refiner_switch_at") if name in request]
        a.take.click(lambda name: _proposed(name)[: len(taken)], inputs=[preset], outputs=taken, show_progress=False)

    def _has(self, name: str) -> bool:
        return self.tab == "txt2img" or name not in ONLY_TXT2IMG

    def _foresee(self, given: dict[str, Any], values: tuple) -> tuple[str, str, dict]:
        """The plan's line, the preset's proposals, and whether there is something to take."""
        flat = {f.path: value for f, value in zip(self.accordion.fields, values, strict=True)}
        if not flat["enabled",]:
            return "", "", gr.update(visible=False)
        parts = _proposal(flat["preset",], given)
        return self._line(given, flat), _about(flat["preset",], parts), gr.update(visible=bool(parts))

    def _line(self, given: dict[str, Any], flat: dict) -> str:
        try:
            settings = preset_ui.settings_of(self.accordion.fields, flat.values())
            return show_plan(*in_words(foresee(as_request(given), settings, self.tab == "img2img")))
        except (SettingsError, NotForeseeable) as error:
            return show_plan([], [message("no plan yet: {reason}", reason=error)])
        except Exception as error:  # whatever a half-filled form holds, the page goes on
            log.debug("no plan", exc_info=True)
            return show_plan([], [message("no plan yet: {reason}", reason=f"{type(error).__name__} ({error})")])


# --- gradio 3 and 4 keep the page's events in different ways


def _events() -> list[tuple[int, Any, list[int]]]:
    """(number, event, ids of the components it writes) of all events so far."""
    root = Context.root_block
    if root is None:  # a component made outside any page
        return []
    if hasattr(root, "dependencies"):
        return [(i, event, event["outputs"]) for i, event in enumerate(root.dependencies)]
    return [(i, event, [block._id for block in event.outputs]) for i, event in root.fns.items()]


def _after(trigger: Component, event: Any, number: int) -> Dependency:
    """What follows the event can be attached to the answer."""
    if isinstance(event, dict):
        return Dependency(trigger, event, number)
    return Dependency(trigger, event.get_config(), number, event.fn)


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


def show_plan(shown: list[str], notes: list[str]) -> str:
    rows = [f"<p>{as_html(line)}</p>" for line in shown] + [f"<p class='note'>{as_html(note)}</p>" for note in notes]
    return f"<div class='sdxl-optim-plan'>{''.join(rows)}</div>"


def show_report(report: JobReport | None) -> str:
    """The last run, as the accordion shows it."""
    if report is None:
        return ""
    rows = "".join(f"<li>{as_html(line)}</li>" for line in report_lines(report))
    return f"<div class='sdxl-optim-report'><b>What ran last</b><ul>{rows}</ul></div>"


# --- what a preset proposes


def _proposed(name: str) -> list:
    preset = presets.find(name)
    values = [preset.steps, preset.switch_at] if preset else [None, None]
    return [gr.update() if value is None else value for value in values]


def _proposal(name: str, given: dict[str, Any]) -> list[str]:
    """What the preset proposes and the request has otherwise."""
    preset = presets.find(name)
    parts = []
    if preset and preset.steps is not None and given.get("steps") != preset.steps:
        parts.append(f"{preset.steps} steps")
    at = preset.switch_at if preset and given.get("refiner") else None
    if at is not None and given.get("refiner_switch_at") != at:
        parts.append(f"refiner at {at:g}")
    return parts


def _about(name: str, parts: list[str]) -> str:
    """What the chosen preset is for and proposes; without one, what to choose."""
    preset = presets.find(name)
    if preset is None:
        rows = "".join(f"<p>{as_html(sentence)}</p>" for sentence in advise(machine()))
        return f"<div class='sdxl-optim-proposal'>{rows}</div>"
    about = f"<span>{html.escape(preset.about)}</span> " if preset.about else ""
    proposed = f"<span>{as_html('proposed: ' + ', '.join(parts))}</span>" if parts else ""
    return f"<div class='sdxl-optim-proposal'>{about}{proposed}</div>"
