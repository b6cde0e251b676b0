"""What other people's extensions do to a generation, once, on request: POST /others {"act": …, "where": …}.

    nest       generate a picture inside a generation, with settings for the extension or none (ADetailer)
    nest_copy  the same by a copy of the request, without any scripts
    pag        call the UNet once more in each step, as Perturbed-Attention Guidance does, for a whole job
    reference  run the UNet's blocks twice in each call, as ControlNet's reference-only does, for a whole job

Nothing here is armed again by itself. The foreign UNet is the entry "[probe] foreign" of the setting SD Unet.
"""

import base64
import copy
import inspect
import io
import tracemalloc

import torch
from fastapi import Body, FastAPI, HTTPException

from modules import infotext_utils, processing, script_callbacks, scripts, sd_unet, sd_vae_taesd, shared

ACTS = ("nest", "nest_copy", "pag", "reference")
PLACES = ("process", "before_hr", "cfg_denoiser", "postprocess_batch", "postprocess_image")
REQUEST = {
    "prompt": "a blue bird", "negative_prompt": "", "seed": 5, "sampler_name": "Euler", "scheduler": "Automatic",
    "steps": 6, "width": 64, "height": 64, "cfg_scale": 5.0,
}  # fmt: skip


class Others:
    def __init__(self):
        self.act = None
        self.where = None
        self.settings = None
        self.made = []
        self.inputs = None
        self.restore = None

    def at(self, where, p):
        if self.where != where or self.act not in ("nest", "nest_copy"):
            return
        act, self.act = self.act, None
        inner = copy.copy(p) if act == "nest_copy" else processing.StableDiffusionProcessingTxt2Img(
            sd_model=shared.sd_model, do_not_save_samples=True, do_not_save_grid=True, **REQUEST
        )  # fmt: skip
        if act == "nest":
            inner.scripts = copy.copy(scripts.scripts_txt2img)
            # The host's own scripts would set sampler, seed and refiner anew by their components.
            inner.scripts.alwayson_scripts = [s for s in inner.scripts.alwayson_scripts if s.title() == "SDXL Optim"]
            inner.scripts.callback_map = {}
            inner.script_args = arguments(inner.scripts, self.settings)
        else:
            inner.scripts = None
        result = processing.process_images(inner)
        for image, text in zip(result.images, result.infotexts, strict=True):
            file = io.BytesIO()
            image.save(file, "PNG")
            self.made.append({"image": base64.b64encode(file.getvalue()).decode(), "infotext": text})


others = Others()


def arguments(runner, settings):
    args = [getattr(component, "value", None) for component in runner.inputs]
    args[0] = 0
    for script in runner.alwayson_scripts:
        if script.title() == "SDXL Optim" and settings is not None:
            args[script.args_from] = settings
    return args


class OthersScript(scripts.Script):
    def title(self):
        return "others"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process(self, p, *args):
        others.at("process", p)

    def before_hr(self, p, *args):
        others.at("before_hr", p)

    def process_before_every_sampling(self, p, *args, **kwargs):
        others.p = p
        if others.act == "reference" and others.restore is None:
            unet = shared.sd_model.model.diffusion_model
            original = unet.forward

            def twice(*args, **kwargs):
                original(*args, **kwargs)
                return original(*args, **kwargs)

            unet.forward = twice
            others.restore = lambda: vars(unet).pop("forward")

    def postprocess_batch(self, p, *args, **kwargs):
        if others.restore:
            others.restore()
            others.restore = others.act = None
        others.at("postprocess_batch", p)

    def postprocess_image(self, p, *args):
        others.at("postprocess_image", p)

    def postprocess(self, p, processed, *args):
        if others.act == "pag":
            others.act = None


def on_cfg_denoiser(params):
    if others.act == "pag":
        rows = params.text_cond.shape[0]
        others.inputs = params.x[:rows], params.sigma[:rows], params.text_cond, params.image_cond[:rows]
    if others.where == "cfg_denoiser":
        others.at("cfg_denoiser", others.p)


def on_cfg_denoised(params):
    if others.act == "pag":
        x, sigma, text, image = others.inputs
        crossattn = text if isinstance(text, dict) else {"c_crossattn": [text]}
        condition = {**crossattn, "c_concat": [image]}
        extra = params.inner_model(x, sigma, cond=condition)
        params.x[: x.shape[0]] += 0.1 * (params.x[: x.shape[0]] - extra)


class ForeignUNet(sd_unet.SdUnet):
    def forward(self, x, timesteps, context, *args, **kwargs):
        return 0.9 * torch.tanh(x) + context.mean()


class ForeignOption(sd_unet.SdUnetOption):
    label = "[probe] foreign"
    model_name = ""

    def create_unet(self):
        return ForeignUNet()


def arm(act: str = Body(...), where: str = Body("postprocess_image"), settings: dict = Body(None)):  # noqa: B008
    if act not in ACTS or where not in PLACES:
        raise HTTPException(422, f"act: {', '.join(ACTS)}; where: {', '.join(PLACES)}")
    others.__init__()
    others.act, others.where, others.settings = act, where, settings
    return {}


def infotext_roundtrip(settings: list = Body(..., embed=True)):  # noqa: B008
    """Each of `settings` as infotext, read by the host, and by the functions that fill the page's components."""
    from sdxl_optim import settings as declared
    from sdxl_optim.hosts.webui import arguments, infotext

    answers = []
    for given in settings:
        entries = infotext.write(declared.from_dict(given))
        line = ", ".join(f"{key}: {infotext_utils.quote(value)}" for key, value in entries.items())
        text = f"a prompt\nNegative prompt: none\nSteps: 20, Sampler: Euler, CFG scale: 7.0, Seed: 1, {line}"
        params = infotext_utils.parse_generation_parameters(text)
        pasted = {field.path: infotext.FieldReader(field)(params) for field in arguments.ui_fields()}
        answers.append({
            "infotext": line,
            "read": declared.to_dict(infotext.read(params)),
            "pasted": declared.to_dict(declared.from_flat(pasted)),
        })  # fmt: skip
    return {"answers": answers}


def forget_tiny():
    """Drop the loaded Tiny VAEs, so that their files are looked for again."""
    sd_vae_taesd.sd_vae_taesd_models.clear()
    return {}


def forget_option(name: str = Body(..., embed=True)):
    """As if the config lacked it."""
    shared.opts.data.pop(name, None)
    return {}


def process_images_source():
    return {"source": inspect.getsource(processing.process_images)}


def stop_tracing():
    tracemalloc.stop()
    return {}


def on_app_started(_demo, app: FastAPI):
    app.post("/others/forget_tiny")(forget_tiny)
    app.post("/others/forget_option")(forget_option)
    app.post("/others/stop_tracing")(stop_tracing)
    app.get("/others/process_images")(process_images_source)
    app.post("/others")(arm)
    app.get("/others/made")(lambda: {"made": others.made})
    app.post("/others/infotext_roundtrip")(infotext_roundtrip)


script_callbacks.on_app_started(on_app_started)
script_callbacks.on_cfg_denoiser(on_cfg_denoiser)
script_callbacks.on_cfg_denoised(on_cfg_denoised)
script_callbacks.on_list_unets(lambda options: options.append(ForeignOption()))
