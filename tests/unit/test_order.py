"""Hosts that put the uncond rows first, and hosts whose UNet calls the layers inside its blocks itself."""

from __future__ import annotations

from functools import partial

import host_loop
import ldm_unet
import pytest
import torch
from host_loop import PAIR, plan_for, sample, traces, watched

from sdxl_optim.run import Run
from sdxl_optim.sampling.loop import Loop, Rows
from sdxl_optim.unet.layout import read_layout

STEPS = Loop.of_steps([1] * 6)
EVERYTHING = {
    "freeu": {"enabled": True},
    "deepcache": {"enabled": True, "cache_interval": 2, "cache_branch_id": 2},
    "cfg_cutoff": {"enabled": True, "stop": 0.5},
}


class LayerwiseUNet(ldm_unet.UNetModel):
    """Its blocks are never called: neither their hooks nor an own `forward` of theirs has an effect."""

    def forward(self, x, timesteps=None, context=None, y=None):
        emb = self.embedding(timesteps, y)
        h, hs = x, []
        for block in self.input_blocks:
            h = type(block).forward(block, h, emb, context)
            hs.append(h)
        h = type(self.middle_block).forward(self.middle_block, h, emb, context)
        for block in self.output_blocks:
            h = type(block).forward(block, torch.cat([h, hs.pop()], 1), emb, context)
        return self.out(h)


def unets() -> tuple[ldm_unet.UNetModel, LayerwiseUNet]:
    """Two with the same weights."""
    plain = ldm_unet.tiny_unet("sdxl")
    layerwise = LayerwiseUNet(plain.config).eval().requires_grad_(False)
    layerwise.load_state_dict(plain.state_dict())
    return plain, layerwise


@pytest.mark.parametrize("branch", [0, 1, 4, 8])
def test_a_unet_that_calls_its_layers_gives_the_same(branch):
    settings = {**EVERYTHING, "deepcache": {"enabled": True, "cache_interval": 3, "cache_branch_id": branch}}
    plain, layerwise = unets()
    with watched(plain) as expected, Run(plan_for(settings, STEPS, unet=plain)) as run:
        sample(plain, run, STEPS)
    layout_of = partial(read_layout, by_layers=True)
    with watched(layerwise) as seen, Run(plan_for(settings, STEPS, unet=layerwise), layout_of=layout_of) as other:
        sample(layerwise, other, STEPS)
    assert run.report.counts == other.report.counts == run.plan.prediction
    assert run.report.counts.cached == 4
    assert all(map(torch.equal, expected.outputs, seen.outputs))
    assert other.report.acted["freeu"] == run.report.acted["freeu"] > 0
    assert traces(layerwise) == []


def test_its_blocks_left_as_they_are_would_change_nothing():
    _, layerwise = unets()
    with watched(layerwise) as seen, Run(plan_for(EVERYTHING, STEPS, unet=layerwise)) as run:
        sample(layerwise, run, STEPS)
    assert (seen.full, seen.cached) == (6, 0)


# --- uncond rows first, as [uncond | cond] or in calls of their own


def marks_of(rows: int, kwargs: dict) -> tuple[bool, int]:
    marks = kwargs["marks"]
    return 0 not in marks, marks.index(0) * rows // len(marks) if 0 in marks else 0


class MarkedUNet(ldm_unet.UNetModel):
    def forward(self, x, timesteps=None, context=None, y=None, marks=()):
        return super().forward(x, timesteps, context, y)


def sample_uncond_first(unet, run: Run, batch: int, splits=()) -> list[torch.Tensor]:
    """The cond predictions of each call. splits: calls in which each kind of rows goes through the UNet by itself."""
    run.attach(unet)
    found = []
    for index in range(len(run.plan.loop.calls)):
        cut = run.next_step().drops_uncond
        run.begin_call(batch if cut else 2 * batch, 2 * batch, batch)
        tensors = host_loop.call_inputs(unet, 2 * batch, index).args  # cond rows, then uncond rows
        cond, uncond = ([t[part] for t in tensors] for part in (slice(0, batch), slice(batch, None)))
        if cut:
            found.append(unet(*cond, marks=(0,)))
        elif index in splits:
            unet(*uncond, marks=(1,))
            found.append(unet(*cond, marks=(0,)))
        else:
            both = [torch.cat([u, c]) for u, c in zip(uncond, cond, strict=True)]
            found.append(unet(*both, marks=(1, 0))[batch:])
    return found


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("splits", [(), range(6), (0,), (1,), (2,), (2, 3)], ids=str)
def test_the_cond_rows_alone_reuse_those_of_the_store(batch, splits):
    """Whatever was split, the cond prediction is that of a host which puts the cond rows first."""
    plain = ldm_unet.tiny_unet("sdxl")
    unet = MarkedUNet(plain.config).eval().requires_grad_(False)
    unet.load_state_dict(plain.state_dict())
    rows = Rows(batch, batch, batch)
    # Full at 0 and 3; guidance is off from step 3 on, in the second case from step 1, right behind a full step.
    for stop in (0.5, 0.17):
        settings = {"deepcache": {"enabled": True, "cache_interval": 3}, "cfg_cutoff": {"enabled": True, "stop": stop}}
        with watched(plain) as expected, Run(plan_for(settings, STEPS, rows, plain)) as run:
            sample(plain, run, STEPS, rows)
        with Run(plan_for(settings, STEPS, rows, unet), rows_held=marks_of) as other:
            found = sample_uncond_first(unet, other, batch, splits)
        mixed = [i for i in splits if i < int(6 * stop)]
        reused_otherwise = any((i in mixed) != (0 in mixed) for i in (1, 2) if i < int(6 * stop))
        for index, (a, b) in enumerate(zip(expected.outputs, found, strict=True)):
            if not reused_otherwise or index in (0, 3):
                assert torch.allclose(a[:batch], b, atol=1e-5), (stop, index)
        if not splits:
            assert other.report.counts == run.report.counts == run.plan.prediction


def test_rows_in_the_wrong_place_would_be_seen():
    plain = ldm_unet.tiny_unet("sdxl")
    unet = MarkedUNet(plain.config).eval().requires_grad_(False)
    unet.load_state_dict(plain.state_dict())
    settings = {"deepcache": {"enabled": True, "cache_interval": 3}, "cfg_cutoff": {"enabled": True, "stop": 0.17}}
    with Run(plan_for(settings, STEPS, PAIR, unet), rows_held=marks_of) as run:
        right = sample_uncond_first(unet, run, 1)
    with Run(plan_for(settings, STEPS, PAIR, unet)) as run:
        wrong = sample_uncond_first(unet, run, 1)
    assert not torch.allclose(right[1], wrong[1], atol=1e-3)
