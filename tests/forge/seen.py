"""What the probe's own hooks saw, held against what the extension says."""

from __future__ import annotations

from dataclasses import dataclass

from webui.client import Client, Picture
from webui.live import reported


@dataclass(frozen=True)
class Seen:
    """One pass. A UNet call that leaves the middle block out is a cached one."""

    calls: int
    rows: int
    full: int
    cached: int


def seen(answer: dict) -> list[Seen]:
    """Forge announces hires fix's second pass twice; what was announced and never sampled is none."""
    passes = []
    for k in range(len(answer["passes"])):
        calls = [call for call in answer["calls"] if call["pass"] == k]
        if not calls:
            continue
        cached = sum("middle_block" not in call["blocks"] for call in calls)
        passes.append(Seen(len(calls), sum(call["rows"] for call in calls), len(calls) - cached, cached))
    return passes


def watched(client: Client, script: dict | None, **request) -> tuple[Picture, list[Seen], dict]:
    """The first picture, the passes that the hooks saw, and all of their answer."""
    client.post("/probe/watch")
    pictures = client.txt2img(script, **request)
    answer = client.get("/probe/calls")
    client.post("/probe/off")
    return pictures[0], seen(answer), answer


def agrees(picture: Picture, passes: list[Seen]) -> None:
    """The picture's infotext tells what the hooks saw, and nothing went otherwise than planned."""
    told = reported(picture)
    assert len(told) == len(passes)
    for report, counts in zip(told, passes, strict=True):
        assert not report["unplanned"], picture.infotext
        assert (int(report["calls"]), int(report["rows"])) == (counts.calls, counts.rows)
        if counts.cached or report["cached"]:
            assert (report["full"], report["cached"]) == (str(counts.full), str(counts.cached))


def planned(client: Client, script: dict, **request) -> dict[str, Seen]:
    """The counts that the live plan gives, by pass."""
    answer = client.post("/sdxl-optim/plan", settings=script, request=request)
    names = ("calls", "rows", "full", "cached")
    return {name: Seen(*(each[n] for n in names)) for name, each in answer["passes"].items()}
