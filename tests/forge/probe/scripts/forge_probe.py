"""For tests of the Forge family alone: counts rows and calls by hooks of its own, and lists what an extension could
leave behind. With nothing watched and no fault armed it holds no hook.

Endpoints under /probe: watch, calls, state, fault, off.
"""

from collections import Counter

import torch
from fastapi import Body, FastAPI

from modules import script_callbacks, scripts, sd_models, shared

WITHOUT_MEANING = ("sd_checkpoint_hash",)  # options that the host sets by itself


class Probe:
    def __init__(self):
        self.calls, self.passes, self.handles = [], [], []
        self.fault = None  # in so many UNet calls
        self.decodes = 0

    def attach(self):
        """Hook the loaded model's UNet, a layer of each of its blocks, and the VAE's decoder."""
        objects = shared.sd_model.forge_objects
        unet, vae = objects.unet.model.diffusion_model, objects.vae.first_stage_model
        self.handles = [unet.register_forward_pre_hook(self.on_unet, with_kwargs=True)]
        for name, block in blocks(unet):
            leaf = next(m for m in block.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)))
            self.handles.append(leaf.register_forward_pre_hook(self.in_block(name)))
        self.handles.append(vae.decoder.register_forward_pre_hook(self.on_decoder))
        self.model = unet

    def off(self):
        for handle in self.handles:
            handle.remove()
        self.__init__()

    def on_unet(self, unet, args, kwargs):
        if self.fault is not None:
            self.fault -= 1
            if self.fault < 0:
                self.fault = None
                raise RuntimeError("probe fault")
        marks = kwargs["transformer_options"]["cond_or_uncond"]
        self.calls.append({
            "rows": args[0].shape[0], "marks": marks, "pass": len(self.passes) - 1, "blocks": Counter(),
            "height": args[0].shape[2], "control": kwargs.get("control") is not None,
            "model": shared.sd_model.sd_checkpoint_info.name_for_extra,
        })  # fmt: skip

    def in_block(self, name):
        def hook(layer, args):
            self.calls[-1]["blocks"][name] += 1

        return hook

    def on_decoder(self, decoder, args):
        self.decodes += 1


probe = Probe()


def blocks(unet):
    for part in ("input_blocks", "output_blocks"):
        yield from ((f"{part}.{i}", block) for i, block in enumerate(getattr(unet, part)))
    yield "middle_block", unet.middle_block


class ProbeScript(scripts.Script):
    def title(self):
        return "probe"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process(self, p, *args):
        if getattr(probe, "waiting", False):  # Forge loads the model with the first request
            probe.waiting = False
            probe.attach()

    def process_before_every_sampling(self, p, *args, **kwargs):
        unet = shared.sd_model.forge_objects.unet.model.diffusion_model
        if probe.handles and unet is not probe.model:
            calls, passes, fault = probe.calls, probe.passes, probe.fault
            probe.off()
            probe.calls, probe.passes, probe.fault = calls, passes, fault
            probe.attach()
        probe.passes.append({"hires": bool(getattr(p, "is_hr_pass", False)), "sampler": p.sampler_name})


def on_cfg_denoiser(params):
    """A refiner's UNet is hooked as soon as it is there."""
    unet = shared.sd_model.forge_objects.unet.model.diffusion_model
    if probe.handles and unet is not probe.model:
        for handle in probe.handles:
            handle.remove()
        probe.attach()


def hooks():
    objects = shared.sd_model.forge_objects
    owners = {"unet": objects.unet.model, "vae": objects.vae.first_stage_model}
    found = []
    for part, owner in owners.items():
        for name, module in owner.named_modules():
            for kind in ("_forward_hooks", "_forward_pre_hooks"):
                for hook in getattr(module, kind).values():
                    label = getattr(hook, "__qualname__", str(hook))
                    if "Probe" not in label:
                        found.append(f"{part}.{name} {kind}: {label}")
            hidden = [key for key in vars(module) if callable(getattr(type(module), key, None))]
            found += [f"{part}.{name}.{key}" for key in hidden]
    return sorted(found)


def patchers():
    """What a pass could leave in a patcher's options, in each of the places where the host keeps patchers."""
    model, found = shared.sd_model, {}
    for place in ("forge_objects", "forge_objects_original", "forge_objects_after_applying_lora"):
        options = getattr(model, place).unet.model_options
        found[place] = sorted(f"{k}: {len(v) if isinstance(v, (list, dict)) else v}" for k, v in options.items() if v)
    return found


def state():
    model = sd_models.model_data.sd_model
    return {
        "hooks": hooks(),
        "patchers": patchers(),
        "model_attributes": sorted(vars(model).keys() - {"alphas_cumprod"}),  # which the host's DDIM sets
        "options": {k: v for k, v in shared.opts.data.items() if k not in WITHOUT_MEANING},
        "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
    }


def watch():
    probe.off()
    if getattr(shared.sd_model, "forge_objects", None) is None:
        probe.waiting = True
    else:
        probe.attach()
    return {}


def arm_fault(after: int = Body(0, embed=True)):
    probe.fault = after
    return {}


def on_app_started(_demo, app: FastAPI):
    app.post("/probe/watch")(watch)
    app.get("/probe/calls")(lambda: {"calls": probe.calls, "passes": probe.passes, "decodes": probe.decodes})
    app.get("/probe/state")(state)
    app.post("/probe/fault")(arm_fault)
    app.post("/probe/off")(lambda: probe.off() or {})


script_callbacks.on_app_started(on_app_started)
script_callbacks.on_cfg_denoiser(on_cfg_denoiser)
