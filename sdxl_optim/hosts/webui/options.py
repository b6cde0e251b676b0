"""The section "SDXL Optim" of the host's settings page."""

from __future__ import annotations

import logging
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import gradio as gr

from modules import shared
from modules.options import OptionInfo
from modules.shared import opts

SECTION = ("sdxl_optim", "SDXL Optim")
LOAD = "sdxl_optim_load_into_main_memory"
MEASURE, NUMBERS, REFERENCE = "sdxl_optim_grid_report", "sdxl_optim_grid_numbers", "sdxl_optim_grid_reference"
FOLDER, REPORT, LOG = "sdxl_optim_folder", "sdxl_optim_report", "sdxl_optim_log"
EVERY_RUN, WARNINGS = "a line for every run", "warnings alone"


@dataclass(frozen=True)
class Option:
    """default, and the label with what stands behind it; a text or one of `choices` where it is no switch."""

    default: Any
    label: str
    info: str
    choices: tuple[str, ...] = ()


OPTIONS = {
    MEASURE: Option(
        True, "Measure X/Y/Z plots", "those with one of this extension's axes, and write a report with all numbers"
    ),
    NUMBERS: Option(True, "Draw each cell's numbers on the plot", "never on the pictures themselves"),
    REFERENCE: Option(
        True, "Make the stock picture to compare with", "one more, where the plot has no cell with all off"
    ),
    FOLDER: Option(
        "", "Folder of reports and benchmarks", "empty: beside the grids; to be seen in the tab, inside the WebUI's"
    ),
    LOAD: Option(
        False,
        "Load SDXL checkpoints into main memory",
        "for cards that can't hold a whole one: as --medvram-sdxl, from the next start on; offload takes over from it",
    ),
    REPORT: Option(True, "Show what ran last at the foot of the accordion", "it is in the infotext in any case"),
    LOG: Option(EVERY_RUN, "In the console", "of this extension", (EVERY_RUN, WARNINGS)),
}


def add_options(without: Container[str] = ()) -> None:
    """The host's on_ui_settings. without: names of options that it has no use for."""
    for name, option in OPTIONS.items():
        if name in without:
            continue
        info = OptionInfo(option.default, option.label, section=SECTION)
        if option.choices:
            info.component, info.component_args = gr.Radio, {"choices": list(option.choices)}
        if name == FOLDER:
            info.component_args, info.restrict_api = shared.hide_dirs, True
        if name == LOG:
            info.onchange = apply_log_level
        opts.add_option(name, info.html(f" <span class='info'>{option.info}</span>"))
    apply_log_level()


def chosen(name: str) -> Any:
    return opts.data.get(name, OPTIONS[name].default)


def apply_log_level() -> None:
    level = logging.WARNING if chosen(LOG) == WARNINGS else logging.INFO
    logging.getLogger("sdxl_optim").setLevel(level)
