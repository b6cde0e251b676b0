"""`bench` and `compare` of the command line."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from sdxl_optim import cli
from sdxl_optim.bench import article
from sdxl_optim.bench.cases import ARTICLE_PROMPTS, Prompt
from sdxl_optim.bench.reading import article_rows, cases_of, prompts_of
from sdxl_optim.errors import SettingsError

CASES = "stock, freeu, cutoff 0.75, deepcache 3, tiny, freeu+cutoff 0.75+deepcache 3+tiny"
NUMBERS = {
    "runs": cli._number(1, 1, 100, 1, "Pictures of each case and prompt; their mean is reported."),
    "warm-up": cli._number(1, 0, 10, 1, "Pictures of each case before its measured ones; the first is reported apart."),
    "batch": cli._number(1, 1, 16, 1, "Pictures made at once."),
    "limit": cli._number(None, 1, 10**6, 1, "Seconds after which no picture is begun. The same command goes on."),
}
SAMPLING = cli.SAMPLING | {"steps": dataclasses.replace(cli.SAMPLING["steps"], default=article.STEPS)}


def add_commands(commands) -> None:
    """Add both to the command line's subparsers."""
    bench = commands.add_parser("bench", help="measure combinations, or the article's table", allow_abbrev=False)
    bench.set_defaults(run=_bench)
    bench.add_argument("--article", action="store_true", help="Every row of the article's table, by its name.")
    text = "With --article: these rows alone, by their names, separated by commas. Stock is always measured."
    bench.add_argument("--rows", metavar="LIST", help=text)
    text = f"Combinations, separated by commas ({CASES}). Stock is always measured."
    bench.add_argument("--cases", metavar="LIST", help=text)
    text = "A file with a prompt a line, each with its seed before a colon or none. Without it the article's four."
    bench.add_argument("--prompts", type=Path, metavar="FILE", help=text)
    text = "Where results go (bench-out). What is there already is not made again."
    bench.add_argument("--out", type=Path, default=Path("bench-out"), metavar="FOLDER", help=text)
    bench.add_argument("--model", metavar="MODEL", help="A model of your own instead of the tiny one.")
    bench.add_argument("--refiner", metavar="MODEL", help="With --model: the refiner of the article's refiner rows.")
    bench.add_argument("--tiny-vae", default=cli.TAESDXL, metavar="MODEL", help=f"With --model ({cli.TAESDXL}).")
    cli._add(bench, SAMPLING | NUMBERS)

    compare = commands.add_parser("compare", help="two results side by side", allow_abbrev=False)
    compare.set_defaults(run=_compare)
    text = "A folder of bench, or one that the WebUI's X/Y/Z plot or tab has written."
    compare.add_argument("a", type=Path, metavar="A", help=text)
    compare.add_argument("b", type=Path, metavar="B")


def _bench(args: argparse.Namespace) -> int:
    began = time.monotonic()
    values = cli._values(args, SAMPLING | NUMBERS)
    if args.article and args.cases:
        raise SettingsError("--cases", args.cases, "not together with --article")
    if args.rows is not None and not args.article:
        raise SettingsError("--rows", args.rows, "only together with --article")
    table = article.article_cases() if args.article else cases_of(args.cases or CASES)
    cases = table if args.rows is None else article_rows(args.rows)
    prompts = read_prompts(args.prompts)
    out = cli.check_folder(args.out)
    if args.refiner and not args.model:
        raise SettingsError("--refiner", args.refiner, "only together with --model")
    cli._quiet()

    from tqdm import tqdm

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
    with tqdm(unit="picture") as bar:

        def show(progress: Progress) -> None:
            bar.total = progress.total
            bar.set_description(progress.doing, refresh=False)
            bar.update(progress.done - bar.n)
            bar.refresh()
            if limit is not None and time.monotonic() - began > limit:
                runner.stop()

        runner = Runner(host, results, cases, prompts, runs, warm_up, [case.name for case in table])
        runner.run(show)
    if left := runner.left():
        cli._say(f"{left} pictures are still to be made: the same command goes on")
    failed = [f"{row.case}: {row.notes}" for row in results.rows() if row.notes.startswith("failed: ")]
    cli._say(*failed, str((out / REPORT).resolve()))
    return int(bool(failed))


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
    from sdxl_optim import settings
    from sdxl_optim.hosts.standalone import demo
    from sdxl_optim.hosts.standalone import models as loading

    device = loading.check_device(device_name)
    if args.model:
        wanted = settings.from_dict({"vae": {"decoder": "tiny"}})
        models = cli._load(args, device, dtype_name, None, wanted)
        return dataclasses.replace(models, notes=()), args.model, ""
    dtype = loading.pick_dtype(dtype_name, device)
    models, about = demo.demo_models(device, dtype)
    return dataclasses.replace(models, refiner=demo.demo_refiner(models, device, dtype)), "tiny SDXL", about


def _compare(args: argparse.Namespace) -> int:
    from sdxl_optim.bench.compare import comparison_text
    from sdxl_optim.bench.report import write_report
    from sdxl_optim.bench.results import ABOUT, Results

    for name, folder in (("A", args.a), ("B", args.b)):
        if not (folder / ABOUT).is_file():
            raise SettingsError(name, str(folder), "a folder that bench or the WebUI has written")
    a, b = Results(args.a), Results(args.b)
    for results in (a, b):
        write_report(results)
    cli._say(comparison_text(a, b))
    return 0


def read_prompts(path: Path | None) -> list[Prompt]:
    """Raises SettingsError."""
    if path is None:
        return list(ARTICLE_PROMPTS)
    return prompts_of("\n".join(read_lines(path)))


def read_lines(path: Path) -> list[str]:
    """The file's lines that hold something. Raises SettingsError."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError("--prompts", str(path), f"a text file ({error})") from None
    if not any(lines):
        raise SettingsError("--prompts", str(path), "a file with a prompt a line")
    return list(filter(None, lines))
