"""`demo`: stock and optimised pictures side by side, as one page."""

from __future__ import annotations

import argparse

from sdxl_optim.cli import options
from sdxl_optim.cli.console import quiet_libraries, say
from sdxl_optim.cli.models import load_models

SAMPLING = options.sampling(steps=30)


def add_to(commands) -> None:
    """Add the command to the command line's subparsers."""
    parser = commands.add_parser("demo", help="compare stock and optimised on a tiny model", allow_abbrev=False)
    parser.set_defaults(run=run)
    options.add_out(parser, "demo-out", "Where it goes (demo-out).")
    text = "A model of your own instead of the tiny one: folder, file or hub name."
    parser.add_argument("--model", metavar="MODEL", help=text)
    options.add_tiny_vae(parser, f"With --model: the tiny VAE ({options.TAESDXL}).")
    options.add(parser, SAMPLING)


def run(args: argparse.Namespace) -> int:
    """Make the page and print its path; the exit code."""
    values = options.values_of(args, SAMPLING)
    out = options.check_folder(args.out)
    quiet_libraries()

    from sdxl_optim.hosts.standalone import demo
    from sdxl_optim.hosts.standalone import models as loading
    from sdxl_optim.hosts.standalone.generate import Request

    device = loading.check_device(values.pop("device"))
    dtype = values.pop("dtype")
    if args.model:
        models, about = load_models(args, device, dtype), args.model
    else:
        models, about = demo.demo_models(device, loading.pick_dtype(dtype, device))
    say(str(demo.make_demo(models, Request("", **values), out, about).resolve()))
    return 0
