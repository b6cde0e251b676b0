"""A case: generations with the extension on one server, compared with a server that lacks it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import numpy as np

from .client import ApiError, Client, Picture, same
from .server import SETTINGS

SMALL = {"width": 128, "height": 128, "steps": 12}
SMALLER = {"width": 64, "height": 64, "steps": 12}  # where the picture itself matters little
FREEU = {"freeu": {"enabled": True}}
CUTOFF = {"cfg_cutoff": {"enabled": True, "stop": 0.5}}
DEEPCACHE = {"deepcache": {"enabled": True}}
TINY = {"vae": {"decoder": "tiny"}}
ALL = {**FREEU, **CUTOFF, **DEEPCACHE, **TINY}
HIRES = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}

_RESULT = re.compile(r'SDXL Optim result: "((?:[^"\\]|\\.)*)"')
_NOTES = re.compile(r'SDXL Optim notes: (?:"((?:[^"\\]|\\.)*)"|([^,]*))')
_PASS = re.compile(
    r"(?:(?P<name>base|img2img|hires) )?(?P<calls>\d+) calls, (?P<rows>\d+) of (?P<stock_rows>\d+) rows"
    r"(?:, (?P<full>\d+) full and (?P<cached>\d+) cached)?(?:, FreeU in (?P<freeu>\d+))?"
    r"(?:, \d+ by [a-z-]+)?(?:, \d+ eager instead)?"
    r"(?:, (?P<others>\d+) calls by others uncached)?(?P<stopped>, stopped)?(?P<unplanned>, not as planned)?"
)


@dataclass(frozen=True)
class Pass:
    """One start of a sampler. `full` and `cached` count UNet calls, `calls` the denoiser's."""

    calls: int
    rows: int
    full: int
    cached: int


def reported(picture: Picture) -> list[dict]:
    """The passes in a picture's infotext, as text or None by name."""
    found = _RESULT.search(picture.infotext)
    assert found, f"no result in: {picture.infotext}"
    passes = [_PASS.fullmatch(text) for text in found[1].split("; ")]
    assert all(passes), f"not understood: {found[1]}"
    return [match.groupdict() for match in passes]


def notes(picture: Picture) -> str:
    found = _NOTES.search(picture.infotext)
    return (found[1] or found[2]) if found else ""


def seen(answer: dict) -> list[Pass]:
    """What the probe's hooks saw, by pass. A UNet call that leaves the middle block out is a cached one."""
    passes = []
    for k in range(len(answer["passes"])):
        calls = [call for call in answer["calls"] if call["pass"] == k]
        cached = sum("middle_block" not in call["blocks"] for call in calls)
        steps = {call["denoiser_step"] for call in calls}
        passes.append(Pass(len(steps), sum(call["rows"] for call in calls), len(calls) - cached, cached))
    return passes


def agrees(report: dict, counts: Pass, stock: Pass) -> None:
    """The infotext's counts are those of the probe's hooks and of the plan."""
    assert not report["unplanned"], f"{report}, but {counts} seen"
    assert (int(report["calls"]), int(report["rows"])) == (counts.calls, counts.rows)
    # Rows a call: DPM adaptive makes as many calls as the model's answers ask for, and FreeU changes these.
    assert int(report["stock_rows"]) * stock.calls == stock.rows * counts.calls
    if counts.cached or report["cached"]:
        assert (report["full"], report["cached"]) == (str(counts.full), str(counts.cached))


class Stock:
    """What the server without the extension makes of a request: computed once, then remembered.

    The server keeps the last request's options until `finish`, as the next ones of a test are mostly the same.
    """

    def __init__(self, client: Client):
        self.client = client
        self.options = {}
        self.known = {}
        self.refined = False  # the last request, which leaves the refiner in the base's place

    def __call__(self, kind: str, request: dict, options: dict) -> tuple[list[Picture], list[Pass]]:
        key = json.dumps([kind, request, options], sort_keys=True)
        if key not in self.known:
            if self.options != options:
                defaults = {name: SETTINGS[name] for name in self.options}
                self.client.options(**{**defaults, **options})
                self.options = options
            if self.refined:
                load(self.client)
            self.refined = "refiner_checkpoint" in request
            self.client.watch()
            self.client.post("/probe/seed")
            pictures = self.client.generate(kind, None, request)
            answer = self.client.get("/probe/calls")
            self.client.post("/probe/off")
            self.known[key] = pictures, seen(answer)
        return self.known[key]

    def finish(self) -> None:
        """The server's options are those of its settings file, for whoever asks it next."""
        if self.options:
            self.client.options(**{name: SETTINGS[name] for name in self.options})
            self.options = {}


def load(client: Client) -> None:
    """What the settings name is loaded: a generation that has to do it draws other random numbers."""
    Client.generate(client, "txt2img", None, {"steps": 1, "width": 64, "height": 64})


def comparable(state: dict) -> dict:
    """Less what the host's loading of a model leaves on it, which depends on the models loaded before."""
    return {
        **state,
        "hooks": [hook for hook in state["hooks"] if "torch.distributed" not in hook],
        "shadows": {name: value for name, value in state["shadows"].items() if "disabled_train" not in value},
        "module_attributes": {name: n for name, n in state["module_attributes"].items() if name != "train"},
    }


def difference(before, after):
    if isinstance(before, dict) and isinstance(after, dict):
        return {k: difference(before.get(k), after.get(k)) for k in {*before, *after} if before.get(k) != after.get(k)}
    if isinstance(before, list) and isinstance(after, list):
        return {"gone": [x for x in before if x not in after], "new": [x for x in after if x not in before]}
    return f"{before} → {after}"


class Case(Client):
    """The extension's server. `finish` makes each request again with the extension off, and compares with `stock`.

    Unless `counts` is switched off, each picture's infotext must tell what the probe saw: `passes` of the last one.
    """

    def __init__(self, url: str, stock: Stock, baseline: dict):
        super().__init__(url)
        self.stock = stock
        self.baseline = baseline
        self.changed: dict = {}
        self.requests: dict[str, tuple] = {}
        self.counts = True
        self.passes: list[Pass] = []
        self.reports: list[dict] = []

    def options(self, **changed) -> dict:
        self.changed.update(changed)
        return super().options(**changed)

    def generate(self, kind: str, script: dict | None, request: dict) -> list[Picture]:
        plain = json.loads(json.dumps(request))
        self.requests[json.dumps([kind, plain, self.changed], sort_keys=True)] = (kind, plain, dict(self.changed))
        if script is None or not self.counts:
            self.post("/probe/seed")
            return super().generate(kind, script, request)
        self.watch()
        self.post("/probe/seed")
        pictures = super().generate(kind, script, request)
        self.passes = seen(self.get("/probe/calls"))
        self.reports = [r for picture in pictures[:: request.get("batch_size", 1)] for r in reported(picture)]
        _, stock_passes = self.stock(kind, plain, dict(self.changed))
        for report, counts, stock in zip(self.reports, self.passes, stock_passes, strict=True):
            agrees(report, counts, stock)
        return pictures

    def finish(self) -> None:
        """The request's stock picture is what it was, and nothing of ours is left."""
        self.post("/probe/off")
        try:
            self.compare_pictures()
        finally:
            super().options(**{name: SETTINGS[name] for name in self.changed})
            self.stock.finish()
        load(self)
        state = comparable(self.state())
        for name, before in comparable(self.baseline).items():
            assert state[name] == before, f"{name} is not as it was: {difference(before, state[name])}"

    def compare_pictures(self) -> None:
        for kind, request, options in self.requests.values():
            super().options(**{**{name: SETTINGS[name] for name in self.changed}, **options})
            expected, _ = self.stock(kind, request, options)
            self.post("/probe/seed")
            made = super().generate(kind, None, request)
            assert len(made) == len(expected)
            for one, other in zip(made, expected, strict=True):
                assert one.infotext == other.infotext, f"{one.infotext}, where stock has {other.infotext}"
                by = np.abs(one.pixels.astype(int) - other.pixels).max()
                assert same(one, other), f"the stock picture has changed by up to {by} of 255"


def error_of(call) -> ApiError:
    """The error that `call()` is answered with."""
    try:
        answer = call()
    except ApiError as error:
        return error
    raise AssertionError(f"no error, but {len(answer)} pictures")
