"""`calibrate`: measure a model for adaptive DeepCache."""

from __future__ import annotations

import argparse
from pathlib import Path

from sdxl_optim.cli import options
from sdxl_optim.cli.console import quiet_libraries, say
from sdxl_optim.cli.prompts import read_prompts
from sdxl_optim.errors import SettingsError
from sdxl_optim.techniques.deepcache import calibration

OPTIONS = {
    "branch": options.number(0, 0, 11, 1, "DeepCache's branch that it is for."),
    "levels": options.number(20, 4, 100, 1, "Noise levels. Work grows with their square."),
    **{name: options.SAMPLING[name] for name in ("cfg", "device", "dtype")},
}


def add_to(commands) -> None:
    """Add the command to the command line's subparsers."""
    parser = commands.add_parser("calibrate", help="measure a model for adaptive DeepCache", allow_abbrev=False)
    parser.set_defaults(run=run)
    text = "A folder in diffusers' format, or a .safetensors file. The calibration is written into it, or beside it."
    parser.add_argument("model", metavar="MODEL", help=text)
    text = "A file with a prompt a line. Without it the article's four."
    parser.add_argument("--prompts", type=Path, metavar="FILE", help=text)
    options.add(parser, OPTIONS)


def run(args: argparse.Namespace) -> int:
    """Write the calibration and print its path; the exit code."""
    values, prompts = options.values_of(args, OPTIONS), read_prompts(args.prompts)
    if not Path(args.model).exists():
        raise SettingsError("MODEL", args.model, "a folder in diffusers' format, or a .safetensors file")
    quiet_libraries()

    from tqdm import tqdm

    from sdxl_optim.hosts.standalone import models as loading
    from sdxl_optim.hosts.standalone.calibrate import calibrate

    device, levels = loading.check_device(values.pop("device")), values["levels"]
    pipe = loading.load_base(args.model, device, loading.pick_dtype(values.pop("dtype"), device))
    depth = 3 * len(pipe.unet.down_blocks)
    if values["branch"] >= depth:
        raise SettingsError("--branch", values["branch"], f"0 to {depth - 1} for this model")
    path = calibration.path_beside(args.model)
    calls = len(prompts) * (2 * levels + levels * (levels - 1) // 2)
    with tqdm(total=calls, unit="call") as bar:
        found = calibrate(pipe, path.parent.resolve().name, [p.text for p in prompts], **values, on_call=bar.update)
    calibration.save(found, path)
    say(str(path.resolve()))
    return 0
