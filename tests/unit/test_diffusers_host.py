"""The standalone host on a tiny pipeline. Rows and calls are counted by hooks of these tests."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("DeepCache")

from types import SimpleNamespace

from DeepCache import DeepCacheSDHelper
from diffusers import AutoencoderTiny
from graphs import Tape
from host_loop import plan_for, step_plan

from sdxl_optim.backends.pool import ExecutionPool
from sdxl_optim.errors import SettingsError
from sdxl_optim.hosts.standalone import backend, tiny
from sdxl_optim.hosts.standalone import models as loading
from sdxl_optim.hosts.standalone.freeu import freeu_attached
from sdxl_optim.hosts.standalone.generate import Models, Request, generate
from sdxl_optim.hosts.standalone.samplers import SAMPLERS
from sdxl_optim.hosts.standalone.site import PipelineSite
from sdxl_optim.sampling.call import UNetCall
from sdxl_optim.sampling.loop import Loop
from sdxl_optim.sentences import report_lines
from sdxl_optim.settings import Settings, from_dict
from sdxl_optim.techniques.deepcache import positions

SIZE = 64
REQUEST = Request("a red bee on a flower", negative="blue", steps=20, seed=11, width=SIZE, height=SIZE)
CUTOFF = {"cfg_cutoff": {"enabled": True, "stop": 0.5}}
DEEPCACHE = {"deepcache": {"enabled": True}}
FREEU = {"freeu": {"enabled": True}}
EVERYTHING = {**CUTOFF, **DEEPCACHE, **FREEU, "vae": {"decoder": "tiny"}}


@pytest.fixture(scope="module")
def base():
    pipe = tiny.tiny_base()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def refiner():
    pipe = tiny.tiny_refiner()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def sampler_kept(base):
    before = base.scheduler
    yield
    base.scheduler = before


class Seen:
    """What went through a UNet: rows of each call, its output, and whether it reached the deepest block."""

    def __init__(self):
        self.rows: list[int] = []
        self.deep: list[bool] = []
        self.outputs: list[torch.Tensor] = []

    @property
    def full(self) -> list[int]:
        return [i for i, deep in enumerate(self.deep) if deep]


@contextmanager
def watched(*unets):
    seen = Seen()

    def before(module, args):
        seen.rows.append(args[0].shape[0])
        seen.deep.append(False)

    def deepest(module, args):
        seen.deep[-1] = True

    def after(module, args, output):
        seen.outputs.append(output[0].clone())

    handles = []
    for unet in unets:
        handles += [unet.register_forward_pre_hook(before), unet.register_forward_hook(after)]
        # inside the middle block: DeepCache replaces the forward of the block itself
        handles.append(unet.mid_block.resnets[0].register_forward_pre_hook(deepest))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def run(base, settings: dict | None, request: Request = REQUEST, **models):
    """(Result, Seen). settings None: switched off."""
    chosen = Settings() if settings is None else from_dict(settings)
    loaded = Models(base, **models)
    with watched(*(p.unet for p in (base, loaded.refiner) if p)) as seen:
        return generate(loaded, request, chosen), seen


def pixels(result_or_image) -> np.ndarray:
    image = result_or_image.images[0] if hasattr(result_or_image, "images") else result_or_image
    return np.asarray(image)


def plain(base, request: Request = REQUEST, **more):
    """The pipeline called by itself."""
    return base(
        prompt=request.prompt,
        negative_prompt=request.negative,
        num_inference_steps=request.steps,
        generator=[torch.Generator().manual_seed(request.seed)],
        **{"width": SIZE, "height": SIZE, "guidance_scale": request.cfg, **more},
    ).images[0]


def only_pass(result):
    (report,) = result.report.passes[0]
    return report


def replaced(request: Request, **changes) -> Request:
    return Request(**{**vars(request), **changes})


# --- nothing on


@pytest.mark.parametrize("settings", [None, {}], ids=["off", "enabled, no technique"])
def test_without_techniques_it_is_the_pipelines_picture(base, settings):
    result, seen = run(base, settings)
    assert seen.rows == [2] * 20
    assert np.array_equal(pixels(result), plain(base))
    assert only_pass(result).as_predicted


def test_a_seed_gives_its_picture_again_and_another_one_does_not(base):
    first, again = run(base, EVERYTHING)[0], run(base, EVERYTHING)[0]
    other, _ = run(base, EVERYTHING, replaced(REQUEST, seed=12))
    assert np.array_equal(pixels(first), pixels(again))
    assert not np.array_equal(pixels(first), pixels(other))


def test_picture_k_of_a_batch_has_the_seed_plus_k(base):
    batch, seen = run(base, CUTOFF, replaced(REQUEST, batch=3))
    assert len(batch.images) == 3
    assert seen.rows == [6] * 10 + [3] * 10
    single, _ = run(base, CUTOFF, replaced(REQUEST, seed=13))
    assert np.abs(pixels(batch.images[2]).astype(int) - pixels(single)).max() <= 2
    assert np.abs(pixels(batch.images[0]).astype(int) - pixels(single)).max() > 2


# --- CFG cutoff


def test_cutoff_drops_the_uncond_rows_from_its_step_on(base):
    result, seen = run(base, CUTOFF)
    assert seen.rows == [2] * 10 + [1] * 10
    counts = only_pass(result).counts
    assert (counts.rows, counts.stock_rows) == (30, 40)
    assert only_pass(result).as_predicted


def test_cutoff_is_the_articles_callback(base):
    def callback(pipe, index, timestep, tensors):
        if index == 9:  # at the end of the tenth step, so that the eleventh is the first without guidance
            tensors = {name: tensor.chunk(2)[-1] for name, tensor in tensors.items()}
            pipe._guidance_scale = 0.0
        return tensors

    names = ["prompt_embeds", "add_text_embeds", "add_time_ids"]
    article = plain(base, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    assert np.array_equal(pixels(run(base, CUTOFF)[0]), article)


def test_cutoff_from_the_first_step_is_no_guidance_at_all(base):
    result, seen = run(base, {"cfg_cutoff": {"enabled": True, "stop": 0.0}})
    assert seen.rows == [1] * 20
    assert only_pass(result).counts.stock_rows == 40
    assert np.array_equal(pixels(result), plain(base, guidance_scale=1.0))


@pytest.mark.parametrize("cfg", [1.0, 0.0])
def test_without_guidance_there_is_nothing_to_cut_and_it_is_said(base, cfg):
    result, seen = run(base, CUTOFF, replaced(REQUEST, cfg=cfg))
    assert seen.rows == [1] * 20
    assert only_pass(result).counts.stock_rows == 20
    assert any("no uncond rows" in str(note) for note in result.report.all_notes())


# --- DeepCache


@pytest.mark.parametrize("interval", [2, 3, 5])
@pytest.mark.parametrize("branch", [0, 1, 2, 4, 8])
def test_uniform_deepcache_is_the_packages(base, interval, branch):
    helper = DeepCacheSDHelper(base)
    helper.set_params(interval, branch)
    helper.enable()
    try:
        expected = plain(base)
    finally:
        helper.disable()
    settings = {"deepcache": {"enabled": True, "cache_interval": interval, "cache_branch_id": branch}}
    result, seen = run(base, settings)
    assert seen.full == list(range(0, 20, interval))
    assert np.array_equal(pixels(result), expected)
    report = only_pass(result)
    assert (report.counts.full, report.counts.cached) == (len(seen.full), 20 - len(seen.full))
    assert report.as_predicted
    assert report.store_bytes > 0


def test_a_window_and_nonuniform_positions_are_kept(base):
    _, seen = run(base, {"deepcache": {"enabled": True, "start": 0.25, "stop": 0.75}})
    assert seen.full == [0, 1, 2, 3, 4, 5, 8, 11, 14, 15, 16, 17, 18, 19]
    _, seen = run(base, {"deepcache": {"enabled": True, "mode": "nonuniform"}})
    assert seen.full == sorted(positions.full_steps_nonuniform(20, 3, 0.3, 1.4))
    assert len(seen.full) == 7


def test_deepcache_goes_on_after_the_cutoff_with_the_cond_rows(base):
    deepcache, cut = run(base, DEEPCACHE), run(base, {**DEEPCACHE, **CUTOFF})
    result, seen = cut
    assert seen.rows == [2] * 10 + [1] * 10
    assert seen.full == [0, 3, 6, 9, 12, 15, 18]  # 10 is cached from the store of 9, which has both rows
    assert only_pass(result).as_predicted
    uncond_and_cond = deepcache[1].outputs[10]
    torch.testing.assert_close(seen.outputs[10], uncond_and_cond[1:], rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(seen.outputs[10], uncond_and_cond[:1], rtol=1e-4, atol=1e-5)


def test_a_branch_that_the_unet_lacks_is_refused(base):
    result, seen = run(base, {"deepcache": {"enabled": True, "cache_branch_id": 9}})
    assert seen.full == list(range(20))
    assert any("branch 9" in str(note) for note in result.report.all_notes())


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs_with_everything_as_planned(base, name, sampler_kept):
    loading.use_sampler(base, name)
    result, seen = run(base, EVERYTHING, tiny_vae=tiny.tiny_taesd())
    report = only_pass(result)
    assert report.as_predicted, report_lines(result.report)
    assert (report.counts.calls, report.counts.rows) == (len(seen.rows), sum(seen.rows))
    assert (report.counts.full, report.counts.cached) == (len(seen.full), len(seen.rows) - len(seen.full))
    order = base.scheduler.order
    steps = [i // order for i in range(len(seen.rows))]
    n = steps[-1] + 1
    assert seen.rows == [1 if step >= int(0.5 * n) else 2 for step in steps]
    # both calls of a step are full, or both come from the store of their place
    assert {steps[i] for i in seen.full} == set(range(0, n, 3))
    assert len(seen.full) == sum(step % 3 == 0 for step in steps)


def test_a_second_order_sampler_reuses_what_was_stored_at_the_same_place_of_the_step(base, sampler_kept):
    def before(module, args):
        features.append(args[0][:, :width].clone())

    features, last = [], base.unet.up_blocks[-1].resnets  # [features | skip] goes in; the last one always runs
    width = last[-2].out_channels
    loading.use_sampler(base, "heun")
    handle = last[-1].register_forward_pre_hook(before)
    try:
        _, seen = run(base, DEEPCACHE)
    finally:
        handle.remove()
    assert len(seen.rows) == 39
    assert seen.full[:4] == [0, 1, 6, 7]
    for i in (2, 4):
        assert torch.equal(features[i], features[0])
        assert torch.equal(features[i + 1], features[1])
    assert not torch.equal(features[0], features[1])


# --- FreeU


def outputs(base, settings, **changes):
    return run(base, settings, replaced(REQUEST, **changes))[1].outputs


def test_freeu_is_enable_freeu(base):
    base.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    try:
        expected = plain(base)
    finally:
        base.disable_freeu()
    result, _ = run(base, FREEU)
    assert np.array_equal(pixels(result), expected)
    assert only_pass(result).acted["freeu"] == 20


def test_the_hooks_version_1_agrees_with_diffusers(base):
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 2 * tiny.WIDTH)
    numbers = {"text_embeds": torch.randn(2, tiny.WIDTH), "time_ids": torch.randn(2, 6)}
    results = []
    for settings in (FREEU, {**FREEU, "deepcache": {"enabled": True}}):  # diffusers' own, then the hooks
        running = SimpleNamespace(plan=plan_for(settings, Loop.of_steps([1] * 20)), report=None, call=None)
        with torch.no_grad(), freeu_attached(PipelineSite(base, running), from_dict(FREEU).freeu) as attached:
            running.call = attached.begin(UNetCall(step_plan(freeu=True), True, 2, 1))
            assert running.call.acting == {"freeu"}
            call = base.unet(x, 500, encoder_hidden_states=text, added_cond_kwargs=numbers)
            results.append(call.sample)
    with torch.no_grad():
        stock = base.unet(x, 500, encoder_hidden_states=text, added_cond_kwargs=numbers).sample
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    assert (results[0] - stock).abs().max() > 1e-3


def test_freeu_does_nothing_in_layers_that_keep_still(base):
    """At branch 0 a cached call runs none of the layers that FreeU acts on."""
    both = {**FREEU, "deepcache": {"enabled": True, "cache_interval": 3}}
    report = only_pass(run(base, both)[0])
    assert report.counts.cached > 0
    assert report.acted["freeu"] == report.counts.full


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_freeu_keeps_its_window(base, version):
    settings = {"freeu": {"enabled": True, "version": version, "start": 0.25, "stop": 0.5}}
    stock, inside = outputs(base, None), outputs(base, settings)
    whole = outputs(base, {"freeu": {**settings["freeu"], "start": 0.0, "stop": 0.5}})
    assert all(torch.equal(a, b) for a, b in zip(stock[:5], inside[:5], strict=True))
    assert not torch.equal(stock[5], inside[5])
    assert not torch.equal(stock[0], whole[0])


def test_version_2_and_a_factor_of_zero_act(base):
    one, two = outputs(base, FREEU, steps=1), outputs(base, {"freeu": {"enabled": True, "version": 2}}, steps=1)
    zero = outputs(base, {"freeu": {"enabled": True, "s2": 0.0}}, steps=1)
    stock = outputs(base, None, steps=1)
    assert not any(torch.equal(stock[0], other[0]) for other in (one, two, zero))
    assert not torch.equal(one[0], two[0])


def test_freeu_leaves_deepcaches_store_as_it_is(base):
    """In place, it would scale the stored features again at each reuse: the same input must give the same
    output.
    """
    settings = {**FREEU, "deepcache": {"enabled": True, "cache_interval": 10, "cache_branch_id": 4}}
    repeats = []

    def twice(module, args, kwargs, output):
        if not repeats or repeats[-1] is not None:
            repeats.append(None)  # the call below comes here too
            repeats[-1] = module.forward(*args, **kwargs)[0], output[0].clone()

    handle = base.unet.register_forward_hook(twice, with_kwargs=True)
    try:
        run(base, settings)
    finally:
        handle.remove()
    assert len(repeats) == 20
    assert all(torch.equal(again, first) for again, first in repeats)


# --- Tiny VAE


def test_tiny_vae_decodes_and_the_models_own_comes_back(base):
    full, taesd = base.vae, tiny.tiny_taesd()
    result, _ = run(base, {"vae": {"decoder": "tiny"}}, tiny_vae=taesd)
    latents = plain(base, output_type="latent")[None]
    with torch.no_grad():
        expected = base.image_processor.postprocess(taesd.decode(latents / taesd.config.scaling_factor).sample)
    assert np.array_equal(pixels(result), expected[0])
    assert result.report.decoder == "Tiny VAE"
    assert base.vae is full


def test_a_tiny_vae_of_another_kind_of_latents_is_refused(base):
    wide = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, latent_channels=16)
    result, _ = run(base, {"vae": {"decoder": "tiny"}}, tiny_vae=wide)
    assert np.array_equal(pixels(result), plain(base))
    assert any("16 channels" in str(note) for note in result.report.all_notes())


# --- the refiner


def ensemble(base, refiner, request: Request = REQUEST):
    """The article's code."""
    generators = [torch.Generator().manual_seed(request.seed)]
    shared = {
        "prompt": request.prompt,
        "negative_prompt": request.negative,
        "num_inference_steps": request.steps,
        "guidance_scale": request.cfg,
        "generator": generators,
    }
    latents = base(denoising_end=0.8, output_type="latent", width=SIZE, height=SIZE, **shared).images
    return refiner(denoising_start=0.8, image=latents, **shared).images[0]


def test_the_ensemble_of_experts_is_the_articles(base, refiner):
    result, seen = run(base, None, refiner=refiner)
    assert len(seen.rows) == 20
    assert np.array_equal(pixels(result), ensemble(base, refiner))


def test_both_experts_follow_one_schedule(base, refiner):
    result, seen = run(base, EVERYTHING, refiner=refiner, tiny_vae=tiny.tiny_taesd())
    assert seen.rows == [2] * 10 + [1] * 10
    assert seen.full == [0, 3, 6, 9, 12, 15, 16, 18]  # at 16 the refiner takes over: another model's store is no use
    assert only_pass(result).as_predicted


def test_the_cutoff_may_come_in_the_refiners_part(base, refiner):
    _, seen = run(base, {"cfg_cutoff": {"enabled": True, "stop": 0.9}}, refiner=refiner)
    assert seen.rows == [2] * 18 + [1] * 2


def test_image_to_image_is_a_pass_of_its_own(base, refiner):
    request = replaced(REQUEST, refiner_strength=0.5, refiner_steps=10)
    result, seen = run(base, CUTOFF, request, refiner=refiner)
    assert seen.rows == [2] * 10 + [1] * 10 + [2] * 2 + [1] * 3
    assert [p.name for p in result.report.passes[0]] == ["base", "refiner"]
    assert all(p.as_predicted for p in result.report.passes[0])
    _, seen = run(base, {**CUTOFF, "hires": "off"}, request, refiner=refiner)
    assert seen.rows == [2] * 10 + [1] * 10 + [2] * 5


@pytest.mark.parametrize(
    "change", [{"switch_at": 0.01}, {"switch_at": 0.999}, {"refiner_strength": 0.01}], ids=lambda c: next(iter(c))
)
def test_a_model_without_a_step_is_refused_before_the_first_step(base, refiner, change):
    with watched(base.unet) as seen, pytest.raises(SettingsError, match=next(iter(change)).replace("_", "-")):
        generate(Models(base, refiner), replaced(REQUEST, **change), Settings())
    assert seen.rows == []


# --- what is left behind


def hooks_of(module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


class Stop(Exception):
    pass


@pytest.mark.parametrize("settings", [EVERYTHING, {"freeu": {"enabled": True}}], ids=["all", "native FreeU"])
def test_an_exception_leaves_the_stock_pipeline(base, settings):
    def stop(module, args):
        nonlocal calls
        calls += 1
        if calls == 12:
            raise Stop

    calls, stock, vae = 0, plain(base), base.vae
    handle = base.unet.conv_out.register_forward_pre_hook(stop)
    try:
        with pytest.raises(Stop):
            run(base, settings, tiny_vae=tiny.tiny_taesd())
    finally:
        handle.remove()
    assert calls == 12
    assert hooks_of(base.unet) == 0
    assert base.vae is vae
    assert np.array_equal(plain(base), stock)


def test_a_backend_runs_the_calls(base, monkeypatch):
    """By the tests' own, which replays operations as a CUDA graph does."""
    settings, before = from_dict({**CUTOFF, **FREEU, "backend": {"name": "cudagraph"}}), vars(base.unet).get("forward")
    eager = generate(Models(base), REQUEST, from_dict({**CUTOFF, **FREEU}))
    monkeypatch.setattr(backend, "executions", ExecutionPool(create=lambda name, cache: Tape()))
    monkeypatch.setattr(backend.backends, "why_not", lambda name, environment: None)
    for prepared in (2, 0):  # with the uncond rows and without; the second picture finds both
        result = generate(Models(base), REQUEST, settings)
        (run,) = result.report.passes[0]
        assert (run.execution.prepared, run.execution.replays, run.as_predicted) == (prepared, 20, True)
        assert np.abs(np.asarray(result.images[0], int) - np.asarray(eager.images[0], int)).max() <= 1
    assert vars(base.unet).get("forward") == before  # the DeepCache package leaves the UNet's own one there
