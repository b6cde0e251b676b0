"""The demo: a few prompts on a tiny SDXL, stock and optimised, as one page."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline

from sdxl_optim.bench.cases import ARTICLE_PROMPTS, DEMO_MODEL_PROMPTS, demo_cases
from sdxl_optim.bench.progress import progress_bar
from sdxl_optim.bench.report import REPORT
from sdxl_optim.bench.results import Results
from sdxl_optim.bench.runner import Runner
from sdxl_optim.errors import SettingsError
from sdxl_optim.hosts.standalone import demo_model
from sdxl_optim.hosts.standalone import models as loading
from sdxl_optim.hosts.standalone.bench import DiffusersHost
from sdxl_optim.hosts.standalone.generate import Models, Request, generate
from sdxl_optim.settings import Settings, from_dict
from sdxl_optim.techniques.deepcache.calibration import find as find_calibration

log = logging.getLogger("sdxl_optim")
EXPLAINED = (
    "{n} prompts with a fixed seed each, {steps} steps, CFG scale {cfg:g}. Every row is the average of these pictures;"
    " SSIM is to the stock picture of the same seed (1: equal). Seconds count a whole picture. Rows are the UNet's."
)


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
    """Measure the demo's cases and write the page. `template` gives steps, CFG scale and size. Returns the page's path.

    A demo that is in `folder` already is replaced. Raises SettingsError where another result is.
    """
    prompts = models.prompts or ARTICLE_PROMPTS
    words = about + " " + EXPLAINED.format(n=len(prompts), steps=template.steps, cfg=template.cfg)
    facts = {"note": words, "prompts": [asdict(p) for p in prompts], "conditions": {"model": "the demo's"}}
    try:
        results = Results.restarted(folder, kind="demo", title="demo", **facts)
    except ValueError as error:
        raise SettingsError("--out", str(folder), f"a new folder, or an earlier demo's ({error})") from None
    check = (lambda image, prompt: demo_model.caption_check(image, prompt).passed) if models.prompts else None
    host = DiffusersHost(models, template, "demo", check)
    for settings in (from_dict({"vae": {"decoder": "tiny"}}), Settings()):  # what a first picture loads and compiles
        generate(models, replace(template, prompt=prompts[0].text, steps=2), settings)
    with progress_bar() as show:
        Runner(host, results, demo_cases(), prompts, by_prompt=True).run(show)
    return folder / REPORT
