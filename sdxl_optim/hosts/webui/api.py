"""What this extension adds to the host's API (`--api`): the plan of a request, without making it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, HTTPException

from modules import shared
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
        """body: {"settings": as for the script "sdxl optim", "request": fields as for /sdapi/v1/txt2img, "img2img":
        true where the request starts from a picture}; all may be left out.

        The answer holds the sentences that the page shows, and each pass's exact counts.
        """
        try:
            chosen = declared.from_dict(body.get("settings", {}))
            request = _checked(body.get("request", {}))
            foreseen = foresee(self._host, request, chosen, bool(body.get("img2img")))
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


def _numbers(plan: Plan) -> dict[str, Any]:
    if plan.prediction is None:
        return {"at_least": plan.loop.at_least}
    c = plan.prediction
    counts = {name: getattr(c, name) for name in ("calls", "full", "cached", "rows", "stock_rows")}
    return {"steps": plan.loop.n, **counts, "cut_from": plan.cut_from, "work": plan.work(c)}
