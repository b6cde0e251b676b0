"""Where the loaded model's parts are at the end of each of its stages, as torch itself says.

Endpoints under /places: watch (post; from zero), seen (get), off (post). What is seen is a list of
{"stage", "parts": {part: {device: bytes}}, "ours": whether the extension sees to it}.
"""

import sys
from collections import Counter

from fastapi import FastAPI
from torch.nn.modules import module as torch_module

from modules import script_callbacks, shared

STAGES = {"text encoders": "encode", "unet": "denoise", "vae decoder": "decode", "vae encoder": "encode picture"}
seen, handles = [], []


def parts():
    model = shared.sd_model
    text = getattr(model, "conditioner", None) or model.cond_stage_model
    vae = model.first_stage_model
    return {
        "text encoders": text, "unet": model.model.diffusion_model,
        "vae decoder": vae.decoder, "vae encoder": vae.encoder,
    }  # fmt: skip


def devices_of(module):
    found = Counter()
    for tensor in (*module.parameters(), *module.buffers()):
        found[tensor.device.type] += tensor.nbytes
    return found


def on_done(module, args, output):
    of_model = parts()
    for name, part in of_model.items():
        if part is module:
            places = {key: devices_of(one) for key, one in of_model.items()}
            seen.append({"stage": STAGES[name], "parts": places, "ours": is_placed()})


def is_placed():
    """Whether the extension sees to where this very model is."""
    ours = sys.modules.get("sdxl_optim.hosts.webui.extension")
    weights = ours.extension().host.weights if ours is not None else None
    return getattr(getattr(weights, "placement", None), "model", None) is shared.sd_model


def off():
    for handle in handles:
        handle.remove()
    handles.clear()
    seen.clear()
    return {}


def watch():
    off()
    handles.append(torch_module.register_module_forward_hook(on_done))
    return {}


def on_app_started(_demo, app: FastAPI):
    app.post("/places/watch")(watch)
    app.get("/places/seen")(lambda: seen)
    app.post("/places/off")(off)


script_callbacks.on_app_started(on_app_started)
script_callbacks.on_script_unloaded(off)
