"""`generate`: pictures of one prompt, or of a file of them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sdxl_optim import settings
from sdxl_optim.cli import options, setting_options
from sdxl_optim.cli.console import PROG, quiet_libraries, say
from sdxl_optim.cli.describe import describe
from sdxl_optim.cli.models import load_models
from sdxl_optim.cli.prompts import read_lines
from sdxl_optim.errors import SettingsError
from sdxl_optim.hosts.standalone.samplers import PREDICTION_TYPES, SAMPLERS, TIMESTEP_SPACINGS
from sdxl_optim.sentences import report_lines

PICTURES = options.SAMPLING | {
    "seed": options.number(0, 0, 10**15, 1, "The noise. Picture k of a batch has seed + k."),
    "batch": options.number(1, 1, 16, 1, "Pictures made at once."),
    "sampler": options.choice(None, SAMPLERS, "Without it the model's own."),
}
SCHEDULE = {
    "prediction-type": options.choice(None, PREDICTION_TYPES, "What the model predicts. Without it as the model says."),
    "timestep-spacing": options.choice(
        None, TIMESTEP_SPACINGS, "Which timesteps are taken; turbo and lightning models want trailing ones."
    ),
}
REFINER = {
    "switch-at": options.number(
        0.8, 0.0, 1.0, 0.01, "With --refiner: the fraction of the steps at which it takes over."
    ),
    "refiner-strength": options.number(
        None, 0.0, 1.0, 0.01, "With --refiner: image-to-image instead, redoing this fraction of the refiner's steps."
    ),
    "refiner-steps": options.number(
        None, 1, 150, 1, "With --refiner-strength: the refiner's steps. Without it as --steps."
    ),
}


def add_to(commands) -> None:
    """Add the command to the command line's subparsers."""
    usage = f"{PROG} generate --model MODEL --prompt TEXT [options]"
    parser = commands.add_parser("generate", help="make pictures", usage=usage, allow_abbrev=False)
    parser.set_defaults(run=run)
    text = "A folder in diffusers' format, a .safetensors file, or a name on the Hugging Face hub."
    parser.add_argument("--model", required=True, metavar="MODEL", help=text)
    parser.add_argument("--prompt", metavar="TEXT")
    text = "Instead of --prompt: a file with a prompt a line. All are encoded, then all denoised, then all decoded."
    parser.add_argument("--prompts", type=Path, metavar="FILE", help=text)
    parser.add_argument("--negative", metavar="TEXT", help="The negative prompt.")
    parser.add_argument("--refiner", metavar="MODEL", help="A second model, for the last steps or as image-to-image.")
    options.add_tiny_vae(parser, f"What --vae.decoder tiny loads ({options.TAESDXL}).")
    options.add_out(parser, "pictures", "Where pictures go (pictures).")
    parser.add_argument("--json", action="store_true", help="Print one JSON object and nothing else.")
    options.add(parser, PICTURES)
    options.add(parser, SCHEDULE)
    options.add(parser, REFINER, only_given=True)
    setting_options.add(parser)


def run(args: argparse.Namespace) -> int:
    """Make the pictures and say what happened; the exit code."""
    schedule = {name: value for name, value in options.values_of(args, SCHEDULE).items() if value is not None}
    values, chosen = options.values_of(args, PICTURES | REFINER), setting_options.read(args)
    out = options.check_folder(args.out)
    prompts = _prompts(args)
    _check_refiner(args)
    quiet_libraries()

    from sdxl_optim.bench.measure import PeakMemory, Stopwatch
    from sdxl_optim.hosts.standalone.generate import Request, generate
    from sdxl_optim.hosts.standalone.many import generate_many
    from sdxl_optim.hosts.standalone.models import check_device

    device = check_device(values.pop("device"))
    dtype, sampler = values.pop("dtype"), values.pop("sampler")
    values["steps"] = chosen.steps or values["steps"]
    requests = [Request(prompt, args.negative, **values) for prompt in prompts]
    watch = Stopwatch(device)
    with PeakMemory(device) as memory:
        models = load_models(args, device, dtype, sampler, tiny=chosen.vae.decoder == "tiny", **schedule)
        watch.lap("load")
        result = generate_many(models, requests, chosen) if args.prompts else generate(models, requests[0], chosen)
    files = _save(result.images, out, values["seed"], values["batch"])
    seconds = watch.seconds | result.seconds
    if args.json:
        facts = {"seconds": seconds, "peak_memory_bytes": memory.bytes, "files": [str(f) for f in files]}
        say(json.dumps({"settings": settings.to_dict(chosen), **describe(result.report), **facts}))
        return 0
    say(*map(str, report_lines(result.report)))
    say(", ".join(f"{stage} {s:.2f} s" for stage, s in seconds.items()))
    say(f"peak memory {memory.kind}: {memory.bytes / 2**20:.0f} MiB", *map(str, files))
    return 0


def _prompts(args: argparse.Namespace) -> list[str]:
    """Of --prompt or --prompts. Raises SettingsError."""
    if args.prompts is None:
        if not (args.prompt or "").strip():
            raise SettingsError("--prompt", args.prompt, "a text, or --prompts with a file of them")
        return [args.prompt]
    if args.prompt is not None:
        raise SettingsError("--prompt", args.prompt, "not together with --prompts")
    if args.refiner:
        raise SettingsError("--prompts", str(args.prompts), "not together with --refiner")
    return read_lines(args.prompts)


def _check_refiner(args: argparse.Namespace) -> None:
    given = options.values_of(args, REFINER)
    if given and not args.refiner:
        name, value = next(iter(given.items()))
        raise SettingsError(f"--{name.replace('_', '-')}", value, "only together with --refiner")
    if {"switch_at", "refiner_strength"} <= given.keys():
        raise SettingsError("--switch-at", given["switch_at"], "not together with --refiner-strength")


def _save(images: list, folder: Path, seed: int, batch: int) -> list[Path]:
    """Names end with each picture's seed: picture k of a batch has seed + k."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for k, image in enumerate(images):
        number = 1 + max((int(p.name[:5]) for p in folder.glob("[0-9]" * 5 + "-*.png")), default=0)
        files.append(folder / f"{number:05}-{seed + k % batch}.png")
        image.save(files[-1])
    return files
