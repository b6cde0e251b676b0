"""What Forge and reForge decide in a call, as the adapter reckons it; without either."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace

import ldm_unet
import pytest

from sdxl_optim.errors import Unsupported
from sdxl_optim.sampling.loop import Loop
from sdxl_optim.techniques.deepcache.patch import DeepCacheOnBlocks
from sdxl_optim.unet.layout import read_layout

OURS = ("sdxl_optim.hosts.webui.forge.rules", "sdxl_optim.hosts.webui.family")


@pytest.fixture
def rules(monkeypatch):
    """The module, with a stand-in for the host's options."""
    shared = ModuleType("modules.shared")
    shared.opts = SimpleNamespace(skip_early_cond=0.0, s_min_uncond=0.0, s_min_uncond_all=False)
    monkeypatch.setitem(sys.modules, "modules", ModuleType("modules"))
    monkeypatch.setitem(sys.modules, "modules.shared", shared)
    for name in OURS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(OURS[0])
    for name in OURS:
        sys.modules.pop(name, None)


def denoiser(s_min_uncond: float = 0.0):
    return SimpleNamespace(sampler=SimpleNamespace(s_min_uncond=s_min_uncond))


def skipped(rules, sigmas, scale=7.0, options=None, s_min_uncond=0.0) -> list[bool]:
    n = len(sigmas)
    return [rules.no_uncond(denoiser(s_min_uncond), i, n, s, scale, options or {}) for i, s in enumerate(sigmas)]


def test_which_calls_have_no_uncond_rows_on_forge(rules):
    assert skipped(rules, [4, 3, 2, 1]) == [False] * 4
    assert skipped(rules, [4, 3, 2, 1], scale=1.0) == [True] * 4
    assert skipped(rules, [4, 3, 2, 1], scale=1.0, options={"disable_cfg1_optimization": True}) == [False] * 4
    assert skipped(rules, [4, 3, 2, 1], s_min_uncond=3.5) == [False, True, False, True]  # each second one
    rules.opts.s_min_uncond_all = True
    assert skipped(rules, [4, 3, 2, 1], s_min_uncond=3.5) == [False, True, True, True]
    rules.opts.skip_early_cond = 0.25
    assert skipped(rules, [4, 3, 2, 1]) == [True, True, False, False]


def test_and_on_reforge(rules, monkeypatch):
    monkeypatch.setattr(rules, "REFORGE", True)
    rules.opts.s_min_uncond = 3.5
    assert skipped(rules, [4, 3, 2, 1]) == [False, False, True, False]
    rules.opts.s_min_uncond_all = True
    assert skipped(rules, [4, 3, 2, 1]) == [False, True, True, True]
    rules.opts.s_min_uncond, rules.opts.skip_early_cond = 0.0, 0.25
    assert skipped(rules, [4, 3, 2, 1]) == [True, True, False, False]


@pytest.mark.parametrize(
    ("cond", "uncond", "together"),
    [(77, 77, True), (77, 154, True), (308, 77, True), (385, 77, False), (308, 385, False), (231, 308, True),
     (0, 0, True)],
)  # fmt: skip
def test_which_lengths_go_together(rules, cond, uncond, together):
    assert rules.goes_together(cond, uncond) is together


@pytest.mark.parametrize(
    ("marks", "rows", "order"),
    [([1, 0], 2, (False, 1)), ([1, 0], 8, (False, 4)), ([0], 2, (False, 0)), ([1], 2, (True, 0)),
     ([1, 0, 0], 6, (False, 2)), ([0, 1], 4, (False, 0))],
)  # fmt: skip
def test_where_the_cond_rows_are(rules, marks, rows, order):
    assert rules.rows_held(rows, {"transformer_options": {"cond_or_uncond": marks}}) == order


def test_a_call_that_tells_nothing_is_all_cond(rules):
    assert rules.rows_held(2, {}) == (False, 0)


def test_others_between_the_blocks_forbid_keeping_features(rules):
    assert rules.why_no_cache({}) is None
    assert rules.why_no_cache({"transformer_options": {"patches": {"attn1_patch": [print]}}}) is None
    for name in ("output_block_patch", "input_block_patch"):
        assert "between" in rules.why_no_cache({"transformer_options": {"patches": {name: [print]}}})
    assert "between" in rules.why_no_cache({"transformer_options": {"block_modifiers": [print]}})


def test_what_needs_the_uncond_rows(rules):
    one = SimpleNamespace(batch=[["a"]])
    assert rules.why_no_cut(one, Loop(), {}, False) is None
    assert "AND" in rules.why_no_cut(SimpleNamespace(batch=[["a", "b"]]), Loop(), {}, False)
    assert "pix2pix" in rules.why_no_cut(one, Loop(), {}, True)
    assert "CFG++" in rules.why_no_cut(one, Loop(needs_uncond=True), {}, False)
    assert "guidance" in rules.why_no_cut(one, Loop(), {"sampler_cfg_function": print}, False)
    assert rules.why_no_cut(one, Loop(), {"sampler_post_cfg_function": []}, False) is None


def test_a_compiled_unet_is_refused(rules):
    compiled = type("OptimizedModule", (ldm_unet.UNetModel,), {})(ldm_unet.tiny_unet("sdxl").config)
    with pytest.raises(Unsupported, match=r"torch\.compile"):
        rules.layout_of(compiled)
    assert rules.layout_of(ldm_unet.tiny_unet("sdxl")).by_layers is False


@pytest.mark.parametrize("branch", [0, 1, 4, 8])
def test_controlnets_residuals_for_blocks_that_keep_still_are_left_out(rules, branch):
    """The UNet takes one of each list a block, from its end: what it takes for the others must be its own."""
    layout = read_layout(ldm_unet.tiny_unet("sdxl"))
    depth, still = layout.depth, DeepCacheOnBlocks(layout, branch).skipped
    control = {
        "input": [f"input {i}" for i in reversed(range(depth))],
        "middle": ["middle"],
        "output": [f"output {i}" for i in reversed(range(depth))],
    }
    kept = rules.without_skipped(control, still, depth)
    taken = {name: [values.pop() for _ in range(len(values))] for name, values in kept.items()}
    assert taken["input"] == [None if i in still else f"input {i}" for i in range(depth)]
    assert taken["output"] == [None if depth + 1 + i in still else f"output {i}" for i in range(depth)]
    # Behind a middle block whose own result is what is kept, the residual is added anew in each call.
    assert taken["middle"] == ["middle" if still[-1] == depth else None]
    assert len(control["output"]) == depth  # the caller's lists are untouched
    assert rules.without_skipped(None, still, depth) is None
