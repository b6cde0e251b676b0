"""What this extension adds to the host's API (`--api`): the plan of a request, without making it."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import FastAPI, HTTPException

from modules import shared
from modules.api import models
from modules.processing import StableDiffusionProcessingImg2Img, StableDiffusionProcessingTxt2Img
from sdxl_optim import settings as declared
from sdxl_optim.errors import SettingsError
from sdxl_optim.hosts.webui.family import HostFamily
from sdxl_optim.hosts.webui.live_plan import NotForeseeable, foresee, in_words
from sdxl_optim.hosts.webui.sampler_calls import MAX_CALLS
from sdxl_optim.planning.plan import Plan

PATH, BESIDE = "/sdxl-optim/plan", "/sdapi/v1/txt2img"
STEPS = {"steps": 1, "hr_second_pass_steps": 0}  # and the least of them


class PlanApi:
    def __init__(self, host: HostFamily):
        self._host = host

    def add(self, _demo, app: FastAPI) -> None:
        """The host's on_app_started. What it asks of its own requests (--api-auth) is asked of ours."""
        beside = next((route for route in app.routes if getattr(route, "path", "") == BESIDE), None)
        if shared.cmd_opts.api and beside is not None:
            app.add_api_route(PATH, self.plan, methods=["POST"], dependencies=beside.dependencies)

    def plan(self, body: dict[str, Any]) -> dict[str, Any]:
        """body: {"settings": as for the script "sdxl optim", "request": what /sdapi/v1/txt2img (or img2img) takes,
        "img2img": true where the request starts from a picture}; all may be left out.

        The answer holds the sentences that the page shows, and each pass's exact counts.
        """
        try:
            chosen = declared.from_dict(body.get("settings", {}))
            request = _checked(body.get("request", {}))
            img2img = bool(body.get("img2img"))
            foreseen = foresee(self._host, _processed(request, img2img), chosen, img2img)
        except (SettingsError, NotForeseeable, TypeError) as error:
            raise HTTPException(status_code=422, detail=str(error)) from None
        shown, said = in_words(foreseen)
        passes = {name: _numbers(plan) for name, plan in foreseen.passes.items()}
        return {"lines": [*map(str, shown)], "notes": [*map(str, said)], "passes": passes}


def _checked(request: Any) -> dict[str, Any]:
    """Steps take memory before anything is counted."""
    if not isinstance(request, dict):
        raise SettingsError("request", request, "an object")
    for name, least in STEPS.items():
        value = request.get(name, least)
        if type(value) is not int or not least <= value <= MAX_CALLS:
            raise SettingsError(f"request.{name}", value, f"an integer from {least} to {MAX_CALLS}")
    return request


def _processed(request: dict[str, Any], img2img: bool) -> dict[str, Any]:
    """The request without what the host's API takes for itself and does not hand on to the processing of a picture."""
    api = models.StableDiffusionImg2ImgProcessingAPI if img2img else models.StableDiffusionTxt2ImgProcessingAPI
    made = StableDiffusionProcessingImg2Img if img2img else StableDiffusionProcessingTxt2Img
    its_own = set(api.__fields__) - {field.name for field in dataclasses.fields(made)} | {"init_images", "mask"}
    kept = {name: value for name, value in request.items() if name not in its_own}
    if "sampler_name" not in kept and request.get("sampler_index"):
        kept["sampler_name"] = request["sampler_index"]
    return kept


def _numbers(plan: Plan) -> dict[str, Any]:
    if plan.prediction is None:
        return {"at_least": plan.loop.at_least}
    c = plan.prediction
    counts = {name: getattr(c, name) for name in ("calls", "full", "cached", "rows", "stock_rows")}
    return {"steps": plan.loop.n, **counts, "cut_from": plan.cut_from, "work": plan.work(c)}
