"""The demo: a few prompts on a tiny SDXL, stock and optimised, as one page."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from PIL import Image
from tqdm import tqdm

from sdxl_optim.bench.cases import ARTICLE_PROMPTS, DEMO_MODEL_PROMPTS, Prompt, demo_cases
from sdxl_optim.bench.html import Lines, Picture, Pictures, Table, page
from sdxl_optim.bench.measure import PeakMemory
from sdxl_optim.bench.quality import similarity
from sdxl_optim.hosts.standalone import demo_model
from sdxl_optim.hosts.standalone import models as loading
from sdxl_optim.hosts.standalone.generate import Models, Request, Result, generate, make_plans
from sdxl_optim.settings import Settings, from_dict
from sdxl_optim.techniques.deepcache.calibration import find as find_calibration

MIB = 2**20
STOCK = "Stock"
log = logging.getLogger("sdxl_optim")


@dataclass
class Made:
    """One picture of the demo."""

    case: str
    prompt: Prompt
    result: Result
    peak_bytes: int
    similarity: float | None = None
    as_prompted: bool | None = None  # what the demo model's caption check says

    @property
    def image(self) -> Image.Image:
        return self.result.images[0]


def demo_models(device, dtype) -> tuple[Models, str]:
    """The models, and a sentence about them."""
    if device.type == "cpu":
        torch.set_num_threads(1)  # networks this small gain nothing by more, and lose much on a busy machine
    trained = trained_models(device, dtype)
    if trained:
        return trained, "Made with the tiny trained SDXL that comes with the package; it knows simple shapes."
    text = "Made with a tiny SDXL of random weights: its pictures show nothing, all else is as on a real one."
    return random_models(device, dtype), text


def trained_models(device, dtype) -> Models | None:
    """The demo model that comes with the package, or None where its weights are not there."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            files = demo_model.files()
            base, tiny = files.write_diffusers(Path(folder, "base")), files.write_tiny_vae(Path(folder, "tiny"))
        except (ImportError, FileNotFoundError) as error:
            log.warning("sdxl_optim: %s", error)
            return None
        return Models(
            loading.load_base(str(base), device, dtype),
            tiny_vae=loading.load_tiny_vae(str(tiny), device, dtype),
            prompts=DEMO_MODEL_PROMPTS,
            calibration=find_calibration(base),
        )


def demo_refiner(models: Models, device, dtype) -> StableDiffusionXLImg2ImgPipeline:
    """The refiner that belongs to `demo_models`: trained where those are, else of random weights."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            refiner = demo_model.files().write_diffusers_refiner(Path(folder, "refiner"))
            return loading.load_refiner(str(refiner), device, dtype)
        except (ImportError, FileNotFoundError):
            from sdxl_optim.hosts.standalone import tiny

            refiner = tiny.tiny_refiner().to(device, dtype)
            refiner.vae = models.base.vae
            return refiner


def random_models(device, dtype) -> Models:
    from sdxl_optim.hosts.standalone import tiny

    return Models(tiny.tiny_base().to(device, dtype), tiny_vae=tiny.tiny_taesd().to(device, dtype))


def make_demo(models: Models, template: Request, folder: Path, about: str) -> Path:
    """Make all pictures and write the page. `template` gives steps, CFG scale and size. Returns the page's
    path.
    """
    prompts = models.prompts or ARTICLE_PROMPTS
    cases = {case.name: case.settings for case in demo_cases()}
    requests = {p: _request(template, p) for p in prompts}
    plans = [make_plans(models, r, s) for s in cases.values() for r in requests.values()]
    calls = sum(len(plan.loop.calls) for passes in plans for plan in passes.values())
    models.base.set_progress_bar_config(disable=True)

    generate(models, _request(template, prompts[0], steps=2), from_dict({"vae": {"decoder": "tiny"}}))  # warms up
    generate(models, _request(template, prompts[0], steps=2), Settings())
    made: list[Made] = []
    with tqdm(total=calls, unit="call") as bar:
        for prompt, request in requests.items():  # outside, so that a busy machine slows all cases alike
            for name, settings in cases.items():
                bar.set_description(f"{name}, {prompt.name}")
                made.append(_make(models, name, prompt, request, settings, bar.update))
    _compare(made)
    if models.prompts:
        _check(made)

    folder.mkdir(parents=True, exist_ok=True)
    for m in made:
        m.image.save(folder / f"{m.prompt.name} - {m.case}.png".lower().replace(" ", "-"))
    path = folder / "report.html"
    path.write_text(page("SDXL Optim: demo", _intro(template, about, len(prompts)), _sections(made)), "utf-8")
    return path


def _request(template: Request, prompt: Prompt, steps: int | None = None) -> Request:
    return Request(
        prompt.text,
        steps=steps or template.steps,
        cfg=template.cfg,
        seed=prompt.seed,
        width=template.width,
        height=template.height,
    )


def _make(models: Models, case: str, prompt: Prompt, request: Request, settings: Settings, on_call: Callable) -> Made:
    with PeakMemory(models.base.device) as memory:
        result = generate(models, request, settings, on_call)
    return Made(case, prompt, result, memory.bytes)


def _compare(made: list[Made]) -> None:
    stock = {m.prompt: m.image for m in made if m.case == STOCK}
    for m in made:
        m.similarity = similarity(stock[m.prompt], m.image)


def _check(made: list[Made]) -> None:
    for m in made:
        m.as_prompted = demo_model.caption_check(m.image, m.prompt.text).passed


def _intro(template: Request, about: str, prompts: int) -> list[str]:
    return [
        about,
        f"{prompts} prompts with a fixed seed each, {template.steps} steps, CFG scale"
        f" {template.cfg:g}. Every row is the average of these pictures; similarity is SSIM to the stock"
        " picture of the same seed (1: equal). Speed counts a whole picture. Calls and rows are the UNet's.",
    ]


def _sections(made: list[Made]) -> list:
    cases = list(dict.fromkeys(m.case for m in made))
    groups = {case: [m for m in made if m.case == case] for case in cases}
    stock_seconds = fmean(m.result.report.seconds for m in groups[STOCK])
    rows = [_row(case, group, stock_seconds) for case, group in groups.items()]
    note = "" if made[0].similarity is not None else "Similarity is missing: it takes scikit-image."
    table = Table(
        "Stock and optimised",
        (
            "Settings",
            "Seconds",
            "Sampling",
            "Decode",
            "Speed",
            "Peak MiB",
            "Similarity",
            "Full + cached",
            "Rows",
        ),
        rows,
        note,
    )
    galleries = [_gallery(prompt, made) for prompt in dict.fromkeys(m.prompt for m in made)]
    ran = [f"{case}: {line}" for case, group in groups.items() for line in group[0].result.report.lines()]
    return [table, *galleries, Lines(f"What ran ({made[0].prompt.name})", ran)]


def _row(case: str, group: list[Made], stock_seconds: float) -> list:
    seconds = fmean(m.result.report.seconds for m in group)
    counts = group[0].result.report.passes[0][0].counts
    return [
        case,
        seconds,
        fmean(m.result.seconds["sampling"] for m in group),
        fmean(m.result.seconds["decode"] for m in group),
        f"{stock_seconds / seconds:.2f}×",
        round(max(m.peak_bytes for m in group) / MIB),
        None if group[0].similarity is None else fmean(m.similarity for m in group),
        f"{counts.full} + {counts.cached}",
        f"{counts.rows} of {counts.stock_rows}",
    ]


def _gallery(prompt: Prompt, made: list[Made]) -> Pictures:
    pictures = [Picture(m.image, m.case, _about(m)) for m in made if m.prompt == prompt]
    return Pictures(f"{prompt.name}, seed {prompt.seed}", pictures, prompt.text)


def _about(m: Made) -> str:
    parts = [f"{m.result.report.seconds:.2f} s"]
    if m.similarity is not None and m.case != STOCK:
        parts.append(f"similarity {m.similarity:.2f}")
    if m.as_prompted is not None:
        parts.append("as prompted" if m.as_prompted else "not as prompted")
    return ", ".join(parts)
