"""`compare`: two results of the benchmark side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from sdxl_optim.cli.console import say
from sdxl_optim.errors import SettingsError


def add_to(commands) -> None:
    """Add the command to the command line's subparsers."""
    parser = commands.add_parser("compare", help="two results side by side", allow_abbrev=False)
    parser.set_defaults(run=run)
    text = "A folder of bench, or one that the WebUI's X/Y/Z plot or tab has written."
    parser.add_argument("a", type=Path, metavar="A", help=text)
    parser.add_argument("b", type=Path, metavar="B")


def run(args: argparse.Namespace) -> int:
    """Write both reports again and print the comparison; the exit code."""
    from sdxl_optim.bench.compare import comparison_text
    from sdxl_optim.bench.report import write_report
    from sdxl_optim.bench.results import ABOUT, Results

    for name, folder in (("A", args.a), ("B", args.b)):
        if not (folder / ABOUT).is_file():
            raise SettingsError(name, str(folder), "a folder that bench or the WebUI has written")
    a, b = Results(args.a), Results(args.b)
    for results in (a, b):
        write_report(results)
    say(comparison_text(a, b))
    return 0
