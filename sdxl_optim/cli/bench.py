"""`bench`: combinations, or the article's table, measured."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from sdxl_optim.bench import article
from sdxl_optim.bench.cases import Case
from sdxl_optim.bench.reading import article_rows, cases_of
from sdxl_optim.cli import options
from sdxl_optim.cli.console import quiet_libraries, say
from sdxl_optim.cli.models import load_models
from sdxl_optim.cli.prompts import read_prompts
from sdxl_optim.errors import SettingsError

CASES = "stock, freeu, cutoff 0.75, deepcache 3, tiny, freeu+cutoff 0.75+deepcache 3+tiny"
OPTIONS = options.sampling(steps=article.STEPS) | {
    "runs": options.number(1, 1, 100, 1, "Pictures of each case and prompt; their mean is reported."),
    "warm-up": options.number(
        1, 0, 10, 1, "Pictures of each case before its measured ones; the first is reported apart."
    ),
    "batch": options.number(1, 1, 16, 1, "Pictures made at once."),
    "limit": options.number(None, 1, 10**6, 1, "Seconds after which no picture is begun. The same command goes on."),
}


def add_to(commands) -> None:
    """Add the command to the command line's subparsers."""
    parser = commands.add_parser("bench", help="measure combinations, or the article's table", allow_abbrev=False)
    parser.set_defaults(run=run)
    parser.add_argument("--article", action="store_true", help="Every row of the article's table, by its name.")
    text = "With --article: these rows alone, by their names, separated by commas. Stock is always measured."
    parser.add_argument("--rows", metavar="LIST", help=text)
    text = f"Combinations, separated by commas ({CASES}). Stock is always measured."
    parser.add_argument("--cases", metavar="LIST", help=text)
    text = "A file with a prompt a line, each with its seed before a colon or none. Without it the article's four."
    parser.add_argument("--prompts", type=Path, metavar="FILE", help=text)
    options.add_out(parser, "bench-out", "Where results go (bench-out). What is there already is not made again.")
    parser.add_argument("--model", metavar="MODEL", help="A model of your own instead of the tiny one.")
    parser.add_argument("--refiner", metavar="MODEL", help="With --model: the refiner of the article's refiner rows.")
    options.add_tiny_vae(parser, f"With --model ({options.TAESDXL}).")
    options.add(parser, OPTIONS)


def run(args: argparse.Namespace) -> int:
    """Measure what is not measured yet and print the report's path; the exit code, which is 1 if a row failed."""
    began = time.monotonic()
    values = options.values_of(args, OPTIONS)
    cases, order = _cases(args)
    prompts = read_prompts(args.prompts)
    out = options.check_folder(args.out)
    if args.refiner and not args.model:
        raise SettingsError("--refiner", args.refiner, "only together with --model")
    quiet_libraries()

    from sdxl_optim.bench.progress import progress_bar
    from sdxl_optim.bench.report import REPORT
    from sdxl_optim.bench.results import Results
    from sdxl_optim.bench.runner import Progress, Runner
    from sdxl_optim.hosts.standalone.bench import DiffusersHost
    from sdxl_optim.hosts.standalone.generate import Request

    runs, warm_up, limit = (values.pop(name) for name in ("runs", "warm_up", "limit"))
    conditions = _conditions(args, values)
    _check_conditions(out, conditions)
    models, name, note = _models(args, values.pop("device"), values.pop("dtype"))
    title = "the article's table" if args.article else "benchmark"
    results = Results.opened(out, kind="bench", title=title, note=note, conditions=conditions)
    host = DiffusersHost(models, Request("", **values), name)
    runner = Runner(host, results, cases, prompts, runs, warm_up, order)
    with progress_bar() as bar:

        def show(progress: Progress) -> None:
            bar(progress)
            if limit is not None and time.monotonic() - began > limit:
                runner.stop()

        runner.run(show)
    if left := runner.left():
        say(f"{left} pictures are still to be made: the same command goes on")
    failed = [f"{row.case}: {row.notes}" for row in results.rows() if row.notes.startswith("failed: ")]
    say(*failed, str((out / REPORT).resolve()))
    return int(bool(failed))


def _cases(args: argparse.Namespace) -> tuple[list[Case], list[str]]:
    """The cases to measure, and all names of their table in its order. Raises SettingsError."""
    if args.article and args.cases:
        raise SettingsError("--cases", args.cases, "not together with --article")
    if args.rows is not None and not args.article:
        raise SettingsError("--rows", args.rows, "only together with --article")
    table = article.article_cases() if args.article else cases_of(args.cases or CASES)
    cases = table if args.rows is None else article_rows(args.rows)
    return cases, [case.name for case in table]


def _conditions(args: argparse.Namespace, values: dict) -> dict:
    """What all rows of one result have in common; a row may have steps of its own."""
    from sdxl_optim.hosts.standalone import models as loading

    device = loading.check_device(values["device"])
    dtype = str(loading.pick_dtype(values["dtype"], device)).removeprefix("torch.")
    return {"model": args.model or "tiny SDXL", **values, "device": device.type, "dtype": dtype}


def _check_conditions(out: Path, conditions: dict) -> None:
    """Raises SettingsError where the folder's rows were measured under others: their mean would say nothing."""
    from sdxl_optim.bench.results import Results

    there = Results(out).about().get("conditions", {})
    different = {name: value for name, value in there.items() if conditions.get(name, value) != value}
    if different:
        of = ", ".join(f"{name} {'of the model' if value is None else value}" for name, value in different.items())
        raise SettingsError("--out", str(out), f"a new folder, or the conditions of this one: {of}")


def _models(args: argparse.Namespace, device_name: str, dtype_name: str):
    from sdxl_optim.hosts.standalone import demo
    from sdxl_optim.hosts.standalone import models as loading

    device = loading.check_device(device_name)
    if args.model:
        return dataclasses.replace(load_models(args, device, dtype_name), notes=()), args.model, ""
    dtype = loading.pick_dtype(dtype_name, device)
    models, about = demo.demo_models(device, dtype)
    return dataclasses.replace(models, refiner=demo.demo_refiner(models, device, dtype)), "tiny SDXL", about
