"""`python -m sdxl_optim`: the standalone command line over diffusers."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from sdxl_optim import __version__, settings
from sdxl_optim.errors import SettingsError
from sdxl_optim.hosts.standalone.samplers import DTYPES, SAMPLERS
from sdxl_optim.settings import Declaration, Field, Settings
from sdxl_optim.techniques.deepcache import calibration

PROG = "sdxl_optim"
TAESDXL = "madebyollin/taesdxl"


def _number(default, lo, hi, step, help: str) -> Declaration:
    return Declaration("slider", default, "", help, lo, hi, step, nullable=default is None)


def _choice(default, choices, help: str) -> Declaration:
    return Declaration("choice", default, "", help, choices=tuple(choices))


SAMPLING = {
    "steps": _number(50, 1, 150, 1, "Sampling steps."),
    "cfg": _number(5.0, 0.0, 50.0, 0.1, "CFG scale: how closely the prompt is followed."),
    "width": _number(None, 64, 4096, 1, "Pixels, a multiple of 8. Without it the model's own size."),
    "height": _number(None, 64, 4096, 1, "Pixels, a multiple of 8. Without it the model's own size."),
    "device": _choice("auto", ("auto", "cpu", "cuda", "mps"), "Where to compute."),
    "dtype": _choice("auto", DTYPES, "Precision. auto is fp16 on a GPU and fp32 on the CPU."),
}
GENERATE = {
    "seed": _number(0, 0, 10**15, 1, "The noise. Picture k of a batch has seed + k."),
    "batch": _number(1, 1, 16, 1, "Pictures made at once."),
    "sampler": _choice(None, SAMPLERS, "Without it the model's own."),
    "switch-at": _number(0.8, 0.0, 1.0, 0.01, "With --refiner: the fraction of the steps at which it takes over."),
    "refiner-strength": _number(
        None,
        0.0,
        1.0,
        0.01,
        "With --refiner: image-to-image instead, redoing this fraction of the refiner's steps.",
    ),
    "refiner-steps": _number(None, 1, 150, 1, "With --refiner-strength: the refiner's steps. Without it as --steps."),
}
DEMO_STEPS = 30


def main(argv: list[str] | None = None) -> int:
    """Exit code 0; 1 where something failed, 2 after one sentence about what is wrong with the input, 130 when it was
    interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a file's encoding on Windows lacks characters
    try:
        args = _parser().parse_args(argv)
        return args.run(args)
    except SettingsError as error:
        sys.stderr.write(f"{PROG}: {error}\n")
    except KeyboardInterrupt:
        sys.stderr.write(f"{PROG}: interrupted\n")
        return 130
    except ImportError as error:
        if (error.name or "").startswith(PROG):
            raise
        lacking = f'{error.name} is missing; pip install ".[standalone]" in the project\'s folder has it'
        sys.stderr.write(f"{PROG}: {lacking if isinstance(error, ModuleNotFoundError) else error}\n")
    return 2


# --- the options


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"{PROG}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(PROG, description="Stable Diffusion XL with optimisations that compose and tell what they did.")
    parser.add_argument("--version", action="version", version=__version__)
    names = "generate | demo | bench | compare | demo-model | calibrate | doctor"
    commands = parser.add_subparsers(title="commands", required=True, metavar=names)
    usage = f"{PROG} generate --model MODEL --prompt TEXT [options]"
    _generate_options(commands.add_parser("generate", help="make pictures", usage=usage, allow_abbrev=False))
    _demo_options(commands.add_parser("demo", help="compare stock and optimised on a tiny model", allow_abbrev=False))
    from sdxl_optim.bench import cli as bench  # which itself builds on this module

    bench.add_commands(commands)

    from sdxl_optim.cli import demo_model

    demo_model.add_command(commands)

    from sdxl_optim.hosts.standalone import calibrate_cli

    calibrate_cli.add_command(commands)
    doctor = commands.add_parser("doctor", help="say what this machine can run, and why not", allow_abbrev=False)
    doctor.set_defaults(run=_doctor)
    return parser


def _generate_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_generate)
    model = "A folder in diffusers' format, a .safetensors file, or a name on the Hugging Face hub."
    parser.add_argument("--model", required=True, metavar="MODEL", help=model)
    parser.add_argument("--prompt", metavar="TEXT")
    many = "Instead of --prompt: a file with a prompt a line. All are encoded, then all denoised, then all decoded."
    parser.add_argument("--prompts", type=Path, metavar="FILE", help=many)
    parser.add_argument("--negative", metavar="TEXT", help="The negative prompt.")
    parser.add_argument("--refiner", metavar="MODEL", help="A second model, for the last steps or as image-to-image.")
    parser.add_argument(
        "--tiny-vae", default=TAESDXL, metavar="MODEL", help=f"What --vae.decoder tiny loads ({TAESDXL})."
    )
    parser.add_argument(
        "--out", type=Path, default=Path("pictures"), metavar="FOLDER", help="Where pictures go (pictures)."
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object and nothing else.")
    _add(parser, SAMPLING | GENERATE)
    text = "The same as a JSON object, or a file with one; the options below go before it."
    parser.add_argument("--settings", metavar="JSON", help=text)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for field in _setting_fields():
        title = ".".join(field.path[:-1]) or "settings"
        if title not in groups:
            groups[title] = parser.add_argument_group(title, _about_group(field))
        names = [f"--{field.name}"]
        if field.path[-1] == "enabled":  # --freeu is short for --freeu.enabled
            names.append(f"--{title}")
        if field.path in (("memory", "offload"), ("memory", "weights")):
            names.append(f"--{field.path[-1]}")
        optional = {"nargs": "?", "const": "true"} if field.declaration.kind == "toggle" else {}
        groups[title].add_argument(*names, dest=field.name, metavar="VALUE", help=_help(field.declaration), **optional)


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_demo)
    parser.add_argument(
        "--out", type=Path, default=Path("demo-out"), metavar="FOLDER", help="Where it goes (demo-out)."
    )
    text = "A model of your own instead of the tiny one: folder, file or hub name."
    parser.add_argument("--model", metavar="MODEL", help=text)
    parser.add_argument("--tiny-vae", default=TAESDXL, metavar="MODEL", help=f"With --model: the tiny VAE ({TAESDXL}).")
    steps = dataclasses.replace(SAMPLING["steps"], default=DEMO_STEPS)
    _add(parser, SAMPLING | {"steps": steps})


def _add(parser: argparse.ArgumentParser, options: dict[str, Declaration]) -> None:
    for name, declaration in options.items():
        parser.add_argument(f"--{name}", metavar="VALUE", help=_help(declaration))


def _help(declaration: Declaration) -> str:
    allowed = declaration.allowed.removesuffix(", or null")
    default = "" if declaration.default is None else f"; default {str(declaration.default).lower()}"
    return f"{declaration.help} ({allowed}{default})".replace("%", "%%")


def _setting_fields() -> list[Field]:
    """The settings that leave a choice here. Switching everything on and the steps have options of their
    own.
    """
    own = {("enabled",), ("steps",)}
    return [f for f in settings.fields() if f.path not in own and not _is_fixed(f.declaration)]


def _is_fixed(declaration: Declaration) -> bool:
    return declaration.kind == "choice" and len(declaration.choices) < 2


def _about_group(field: Field) -> str:
    if field.path[0] == "hires":
        return "For the second pass, here the refiner's with --refiner-strength."
    return " ".join(field.labels[:-1])


# --- their values


def _values(args: argparse.Namespace, options: dict[str, Declaration]) -> dict:
    """{python name: checked value}. Raises SettingsError."""
    values = {}
    for name, declaration in options.items():
        key = name.replace("-", "_")
        text = getattr(args, key)
        values[key] = declaration.default if text is None else declaration.read(f"--{name}", text)
    for name in ("width", "height"):
        if (values.get(name) or 0) % 8:
            raise SettingsError(f"--{name}", values[name], "a multiple of 8")
    return values


def read_settings(args: argparse.Namespace) -> Settings:
    """`--settings`, then the single options over it. Raises SettingsError."""
    flat = {("enabled",): True}
    if args.settings:
        flat |= settings.read_dict(_read_json(args.settings))
    given = {f: text for f in _setting_fields() if (text := getattr(args, f.name)) is not None}
    if any(f.path[0] == "hires" and len(f.path) > 2 for f in given):
        flat["hires", "mode"] = "own"
    flat |= {f.path: f.declaration.read(f"--{f.name}", text) for f, text in given.items()}
    result = settings.from_given(flat)
    return result if result.enabled else Settings()


def check_folder(path: Path) -> Path:
    """Before any work is done for it. Raises SettingsError."""
    there = next((p for p in (path, *path.absolute().parents) if p.exists()), None)
    if there is None or not there.is_dir() or not os.access(there, os.W_OK):
        raise SettingsError("--out", str(path), "a folder that can be written to, which is made if there is none")
    return path


def _read_json(text: str) -> object:
    try:
        return json.loads(text if text.lstrip().startswith("{") else Path(text).read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise SettingsError("--settings", text, f"a JSON object, or the path of a file with one ({error})") from None


# --- the commands


def _generate(args: argparse.Namespace) -> int:
    values, chosen = _values(args, SAMPLING | GENERATE), read_settings(args)
    out = check_folder(args.out)
    prompts = _prompts(args)
    for name in ("switch_at", "refiner_strength", "refiner_steps"):
        if getattr(args, name) is not None and not args.refiner:
            raise SettingsError(f"--{name.replace('_', '-')}", values[name], "only together with --refiner")
    if args.switch_at is not None and args.refiner_strength is not None:
        raise SettingsError("--switch-at", values["switch_at"], "not together with --refiner-strength")
    _quiet()

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
        models = _load(args, device, dtype, sampler, chosen)
        watch.lap("load")
        result = generate_many(models, requests, chosen) if args.prompts else generate(models, requests[0], chosen)
    files = _save(result.images, out, values["seed"], values["batch"])
    seconds = watch.seconds | result.seconds
    if args.json:
        facts = {"seconds": seconds, "peak_memory_bytes": memory.bytes, "files": [str(f) for f in files]}
        _say(json.dumps({"settings": settings.to_dict(chosen), **describe(result.report), **facts}))
        return 0
    _say(*result.report.lines())
    _say(", ".join(f"{stage} {s:.2f} s" for stage, s in seconds.items()))
    _say(f"peak memory {memory.kind}: {memory.bytes / 2**20:.0f} MiB", *map(str, files))
    return 0


def _load(args, device, dtype_name: str, sampler: str | None, chosen: Settings):
    from sdxl_optim.errors import Unsupported
    from sdxl_optim.hosts.standalone import models as loading
    from sdxl_optim.hosts.standalone.generate import Models
    from sdxl_optim.planning.plan import Note

    dtype = loading.pick_dtype(dtype_name, device)
    tiny_vae, notes = None, []
    if chosen.vae.decoder == "tiny":
        try:
            tiny_vae = loading.load_tiny_vae(args.tiny_vae, device, dtype)
        except Unsupported as error:
            notes.append(Note(error.feature, error.reason))
            sys.stderr.write(f"{notes[0]}\n")
    base = loading.load_base(args.model, device, dtype)
    refiner = loading.load_refiner(args.refiner, device, dtype) if getattr(args, "refiner", None) else None
    for pipe in filter(None, (base, refiner)):
        loading.use_sampler(pipe, sampler)
    return Models(base, refiner, tiny_vae, tuple(notes), calibration=calibration.find(args.model))


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
    from sdxl_optim.bench.cli import read_lines

    return read_lines(args.prompts)


def _save(images: list, folder: Path, seed: int, batch: int) -> list[Path]:
    """Names end with each picture's seed: picture k of a batch has seed + k."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for k, image in enumerate(images):
        number = 1 + max((int(p.name[:5]) for p in folder.glob("[0-9]" * 5 + "-*.png")), default=0)
        files.append(folder / f"{number:05}-{seed + k % batch}.png")
        image.save(files[-1])
    return files


def describe(report) -> dict:
    """A job's report as plain data: what was planned, and what happened."""
    return {
        "plan": [_plan(p) for p in report.all_passes],
        "report": {
            "passes": [_happened(p) for p in report.all_passes],
            "decoder": report.decoder,
            "notes": [dataclasses.asdict(note) for note in report.all_notes()],
            "lines": report.lines(),
        },
    }


def _plan(p) -> dict:
    steps = p.plan.steps
    return {
        "name": p.name,
        "steps": len(steps),
        "full": [i for i, s in enumerate(steps) if not s.cached],
        "cut_from": next((i for i, s in enumerate(steps) if s.cut), None),
        "freeu": [i for i, s in enumerate(steps) if s.freeu],
        "prediction": dataclasses.asdict(p.plan.prediction) if p.plan.prediction else None,
    }


def _happened(p) -> dict:
    return {
        "name": p.name,
        **dataclasses.asdict(p.counts),
        "freeu_calls": p.freeu_calls,
        "store_bytes": p.store_bytes,
        "seconds": p.seconds,
        "finished": p.finished,
        "as_predicted": p.as_predicted,
    }


def _demo(args: argparse.Namespace) -> int:
    values = _values(args, SAMPLING | {"steps": dataclasses.replace(SAMPLING["steps"], default=DEMO_STEPS)})
    out = check_folder(args.out)
    _quiet()

    from sdxl_optim.hosts.standalone import demo
    from sdxl_optim.hosts.standalone import models as loading
    from sdxl_optim.hosts.standalone.generate import Request

    device = loading.check_device(values.pop("device"))
    dtype = values.pop("dtype")
    if args.model:
        models, about = (
            _load(args, device, dtype, None, settings.from_dict({"vae": {"decoder": "tiny"}})),
            args.model,
        )
    else:
        models, about = demo.demo_models(device, loading.pick_dtype(dtype, device))
    _say(str(demo.make_demo(models, Request("", **values), out, about).resolve()))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from sdxl_optim.backends.doctor import examine

    _say(*examine())
    return 0


def _quiet() -> None:
    """Errors alone from the libraries: what they warn of concerns parts that are not used here."""
    import warnings

    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
