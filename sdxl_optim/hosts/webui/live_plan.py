"""What a request would do, without making it: the host's own code prepares the sampler's loop on a one-pixel latent,
and the plan is made there just as in a run (sampling.py), in place of running it.

It waits for nothing and keeps nothing waiting: no lock is taken, no host global is touched, no random number is drawn,
no weights of a model are read, so that a generation may be under way meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType, SimpleNamespace
from typing import Any

import torch

from modules import extra_networks, prompt_parser, script_callbacks, sd_models, sd_samplers, shared
from modules.processing import (
    StableDiffusionProcessing,
    StableDiffusionProcessingImg2Img,
    StableDiffusionProcessingTxt2Img,
)
from sdxl_optim.hosts.webui.family import HostFamily
from sdxl_optim.hosts.webui.passes import pass_name
from sdxl_optim.hosts.webui.request import attach
from sdxl_optim.hosts.webui.sampler_calls import with_globals
from sdxl_optim.hosts.webui.tiny_decoder import take_what_is_ours
from sdxl_optim.planning.plan import Plan, RequestPlan, make_plan, plan_request
from sdxl_optim.sentences import plan_lines
from sdxl_optim.settings import Settings
from sdxl_optim.wording import Text


class NotForeseeable(Exception):
    """There is no plan, for the reason that it says."""


@dataclass(frozen=True)
class Foreseen:
    """The plans of a request's passes, by the names that the report gives them, and what holds for all of it."""

    passes: dict[str, Plan]
    request: RequestPlan


def foresee(host: HostFamily, request: dict[str, Any], settings: Settings, img2img: bool = False) -> Foreseen:
    """What a request would do.

    request: fields of the host's processing object, as in its API; what is missing has the host's default. Raises
    NotForeseeable.
    """
    if host.loaded_model() is None:
        raise NotForeseeable("the checkpoint is not loaded yet")
    p = _processing(request, img2img)
    take_what_is_ours(p, settings)
    if settings.steps is not None:
        p.steps = settings.steps
    plans = {pass_name(p): _plan(host, p, settings, p.sampler_name, p.prompt, p.negative_prompt, again=img2img)}
    if getattr(p, "enable_hr", False):
        p.is_hr_pass = True
        prompts = p.hr_prompt or p.prompt, p.hr_negative_prompt or p.negative_prompt
        sampler, steps = p.hr_sampler_name or p.sampler_name, p.hr_second_pass_steps or p.steps
        plans[pass_name(p)] = _plan(host, p, settings.for_hires(), sampler, *prompts, steps=steps, again=True)
    facts = host.request_facts(p, settings, begins=False)
    return Foreseen(plans, plan_request(settings, facts))


def _processing(request: dict[str, Any], img2img: bool) -> StableDiffusionProcessing:
    p = (StableDiffusionProcessingImg2Img if img2img else StableDiffusionProcessingTxt2Img)(**request)
    p.fill_fields_from_opts()
    p.sampler_name, p.scheduler = _sampler_and_scheduler(p.sampler_name, p.scheduler)
    if p.refiner_checkpoint not in (None, "", "None", "none"):
        p.refiner_checkpoint_info = sd_models.get_closet_checkpoint_match(p.refiner_checkpoint)
        if p.refiner_checkpoint_info == shared.sd_model.sd_checkpoint_info:  # loaded yet, until the next run begins
            attach(p).first_checkpoint = sd_models.select_checkpoint()
    if getattr(p, "enable_hr", False):
        p.hr_scheduler = p.hr_scheduler or p.scheduler
        p.calculate_target_resolution()
    return p


def _sampler_and_scheduler(name: str | None, scheduler: str | None) -> tuple[str | None, str | None]:
    """The host reads older names such as "DPM++ 2M Karras" as a sampler and a scheduler."""
    found, its_scheduler = sd_samplers.get_sampler_and_scheduler(name, scheduler, convert_automatic=False)
    is_both = name is not None and name not in sd_samplers.all_samplers_map and name.startswith(f"{found} ")
    return (found, its_scheduler) if is_both else (name, scheduler)


def _plan(
    host: HostFamily, p, settings: Settings, sampler_name: str, prompt: str, negative: str, again: bool, steps=None
) -> Plan:
    """again: the pass starts from a picture. steps: where the host itself gives them to the sampler."""
    with host.model_kept_as_it_is():
        prompts = Prompts(host.token_length, p)
        conds = prompts.cond(prompt), prompts.uncond(negative)
        return _plan_by(host, p, settings, _sampler(sampler_name), conds, again, steps)


def _sampler(name: str):
    try:
        return sd_samplers.create_sampler(name, shared.sd_model)
    except Exception as error:  # the host's own words for samplers that the model can't be used with
        raise NotForeseeable(str(error)) from None


def _plan_by(host: HostFamily, p, settings: Settings, sampler, conds: tuple, again: bool, steps) -> Plan:
    loops: list[tuple] = []
    latent = torch.zeros(1, 4, 1, 1, device=host.latent_device())

    def launch_sampling(steps, func):
        loops.append((steps, func))
        return latent

    sampler.launch_sampling = launch_sampling
    _keep_to_itself(sampler)
    try:
        if again:
            sampler.sample_img2img(p, latent, latent, *conds, steps=steps)
        else:
            sampler.sample(p, latent, *conds)
    except Exception as error:  # of the host's own preparation, in which the request would end as well
        raise NotForeseeable(f"the host can't begin this request ({type(error).__name__}: {error})") from error
    steps, func = loops[0]
    return make_plan(settings, host.gather_facts(p, sampler, settings, steps, func))


def _keep_to_itself(sampler) -> None:
    """The host's preparation of a loop sets up its source of noise in a global, and tells other extensions of it."""
    nothing, nowhere = (lambda *args, **kwargs: None), SimpleNamespace()
    apart: dict[str, dict[str, object]] = {
        "initialize": {"k_diffusion": SimpleNamespace(sampling=nowhere), "sampling": nowhere},
        "sample": {"sampling_prepare": nothing, "sampling_cleanup": nothing},  # Forge would load the model there
        "sample_img2img": {
            "extra_noise_callback": nothing,
            "sampling_prepare": nothing,
            "sampling_cleanup": nothing,
        },
    }
    for name, replaced in apart.items():
        setattr(sampler, name, MethodType(with_globals(getattr(type(sampler), name), **replaced), sampler))
    sampler.create_noise_sampler = lambda x, sigmas, p: None


def in_words(foreseen: Foreseen) -> tuple[list[Text], list[Text]]:
    """The live plan: a line for each pass, and what is refused or to be said."""
    return plan_lines(foreseen.passes, foreseen.request)


# --- prompts, as far as they decide the number of rows: their parts and lengths


class Prompts:
    """Prompts of the request `p` as conditionings without content."""

    def __init__(self, token_length: Callable[[str], Any], p):
        self._token_length, self._p = token_length, p

    def cond(self, prompt: str) -> prompt_parser.MulticondLearnedConditioning:
        text = self._encoded(shared.prompt_styles.apply_styles_to_prompt(prompt, self._p.styles), is_positive=True)
        found, parts, _ = prompt_parser.get_multicond_prompt_list([text])
        lengths = [self._entry(part) for part in parts]
        batch = [[prompt_parser.ComposableScheduledPromptConditioning(lengths[i], weight) for i, weight in found[0]]]
        size = self._p.batch_size
        return prompt_parser.MulticondLearnedConditioning(shape=(size,), batch=batch * size)

    def uncond(self, negative: str) -> list:
        styled = shared.prompt_styles.apply_negative_styles_to_prompt(negative, self._p.styles)
        text = self._encoded(styled, is_positive=False)
        return [self._entry(text)] * self._p.batch_size

    def _encoded(self, prompt: str, is_positive: bool) -> str:
        """What of the prompt is encoded: without the comments, say, that the host's and others' scripts take out. They
        tell the host's token counter of it, and us likewise."""
        params = script_callbacks.BeforeTokenCounterParams(prompt, self._p.steps, [], is_positive=is_positive)
        script_callbacks.before_token_counter_callback(params)
        return extra_networks.parse_prompt(params.prompt)[0]

    def _entry(self, text: str) -> list[prompt_parser.ScheduledPromptConditioning]:
        """The host encodes all that a prompt is edited to together, and so at the length of the longest."""
        steps = self._p.steps
        schedule = prompt_parser.get_learned_conditioning_prompt_schedules([text], steps)[0]
        tokens = max(self._tokens(edited) for _, edited in schedule)
        return [prompt_parser.ScheduledPromptConditioning(steps, torch.zeros(tokens, 1))]

    def _tokens(self, text: str) -> int:
        length = self._token_length(text)
        return length if isinstance(length, int) else 0
