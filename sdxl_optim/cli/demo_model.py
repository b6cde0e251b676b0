"""`demo-model` of the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sdxl_optim import cli
from sdxl_optim.errors import SettingsError


def add_command(commands) -> None:
    """Add it to the command line's subparsers."""
    parser = commands.add_parser("demo-model", help="write the demo model for a WebUI or diffusers", allow_abbrev=False)
    parser.set_defaults(run=_write)
    text = "A WebUI's own folder: checkpoint, refiner, their YAML and the tiny VAE go where it looks for them."
    parser.add_argument("--webui", type=Path, metavar="FOLDER", help=text)
    text = "Folders in diffusers' format go here: base, refiner, tiny-vae."
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=text)


def _write(args: argparse.Namespace) -> int:
    if not (args.webui or args.out):
        raise SettingsError("--webui or --out", None, "at least one of the two, with a folder")
    if args.out:
        cli.check_folder(args.out)

    from sdxl_optim.hosts.standalone import demo_model

    files = demo_model.files()
    written: list[Path] = []
    if args.webui:
        try:
            written += files.write_webui(args.webui)
        except NotADirectoryError as error:
            allowed = "a WebUI's own folder, which has modules and models"
            raise SettingsError("--webui", str(args.webui), allowed) from error
    if args.out:
        written.append(files.write_diffusers(args.out / "base"))
        written.append(files.write_diffusers_refiner(args.out / "refiner"))
        written.append(files.write_tiny_vae(args.out / "tiny-vae"))
    sys.stdout.write("".join(f"{path.resolve()}\n" for path in written))
    return 0
