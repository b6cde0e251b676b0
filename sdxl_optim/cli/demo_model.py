"""`demo-model`: write the demo model's files for a WebUI or diffusers."""

from __future__ import annotations

import argparse
from pathlib import Path

from sdxl_optim.cli.console import say
from sdxl_optim.cli.options import check_folder
from sdxl_optim.errors import SettingsError


def add_to(commands) -> None:
    """Add the command to the command line's subparsers."""
    parser = commands.add_parser("demo-model", help="write the demo model for a WebUI or diffusers", allow_abbrev=False)
    parser.set_defaults(run=run)
    text = (
        "A WebUI's own folder, or its --data-dir: checkpoint, refiner, their YAML and the tiny VAE go into its models."
    )
    parser.add_argument("--webui", type=Path, metavar="FOLDER", help=text)
    text = "Folders in diffusers' format go here: base, refiner, tiny-vae."
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=text)


def run(args: argparse.Namespace) -> int:
    """Write the files and print their paths; the exit code."""
    if not (args.webui or args.out):
        raise SettingsError("--webui or --out", None, "at least one of the two, with a folder")
    if args.out:
        check_folder(args.out)

    from sdxl_optim.hosts.standalone import demo_model

    files, written = demo_model.files(), []
    if args.webui:
        try:
            written += files.write_webui(args.webui)
        except NotADirectoryError as error:
            allowed = "a WebUI's own folder or that of its --data-dir, which has a folder models"
            raise SettingsError("--webui", str(args.webui), allowed) from error
    if args.out:
        written.append(files.write_diffusers(args.out / "base"))
        written.append(files.write_diffusers_refiner(args.out / "refiner"))
        written.append(files.write_tiny_vae(args.out / "tiny-vae"))
    say(*(str(path.resolve()) for path in written))
    return 0
