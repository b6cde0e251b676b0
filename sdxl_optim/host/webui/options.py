"""The section "SDXL Optim" of the host's settings page."""

from __future__ import annotations

from modules.options import OptionInfo
from modules.shared import opts

SECTION = ("sdxl_optim", "SDXL Optim")
MEASURE, NUMBERS, REFERENCE = "sdxl_optim_grid_report", "sdxl_optim_grid_numbers", "sdxl_optim_grid_reference"


# option: label, and what stands behind it
OPTIONS = {
    MEASURE: ("Measure X/Y/Z plots", "those with one of this extension's axes, and write a report with all numbers"),
    NUMBERS: ("Draw each cell's numbers on the plot", "never on the pictures themselves"),
    REFERENCE: ("Make the stock picture to compare with", "one more, where the plot has no cell with all off"),
}


def add_options() -> None:
    for name, (label, info) in OPTIONS.items():
        opts.add_option(name, OptionInfo(True, label, section=SECTION).info(info))


def chosen(name: str) -> bool:
    return opts.data.get(name, True)
