"""SD 1.5 and SDXL at their full size with random fp16 weights (2 and 7 GB each on disk): Forge and reForge know a model
by its layers' shapes and would take no tiny one.

Run by the interpreter of AUTOMATIC1111's WebUI, whose classes tell the layouts:
`python checkpoints.py WEBUI_DIR MODELS_DIR NAME…`. What is there already is kept.

    Stable-diffusion/  full-sd15, full-sdxl, and full-sd15-b, which has other weights
    VAE-taesd/         tiny decoders for both
"""

import json
import math
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

TESTS = Path(__file__).resolve().parents[1] / "webui"
SD15, SDXL = "configs/v1-inference.yaml", "configs/sd_xl_inpaint.yaml"
MODELS = {"full-sd15": (SD15, 30), "full-sd15-b": (SD15, 31), "full-sdxl": (SDXL, 30)}  # layout and seed
PARTS = ("network_config", "unet_config", "first_stage_config", "cond_stage_config", "conditioner_config")
PREFIXES = ("model.diffusion_model.", "model.diffusion_model.", "first_stage_model.", "cond_stage_model.",
            "conditioner.")  # fmt: skip
# The last layers of residual branches: kept small, so that fp16 never overflows.
BRANCH_ENDS = ("out_layers.3.weight", "proj_out.weight", "to_out.0.weight", "ff.net.2.weight", "conv2.weight")


def shapes_of(name: str, webui: Path) -> dict:
    """{key: shape} of the checkpoint's floating tensors, by the host's own classes without memory of their own."""
    import ldm.modules.encoders.modules as ldm_encoders
    import open_clip
    import sgm.modules.encoders.modules as sgm_encoders
    import torch
    from omegaconf import OmegaConf
    from sgm.util import instantiate_from_config
    from transformers import CLIPTextConfig, CLIPTextModel

    large = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    for encoders in (ldm_encoders, sgm_encoders):
        encoders.CLIPTextModel = SimpleNamespace(from_pretrained=lambda *args: CLIPTextModel(large))
        encoders.CLIPTokenizer = SimpleNamespace(from_pretrained=lambda *args: None)
    create = open_clip.create_model_and_transforms
    open_clip.create_model_and_transforms = lambda arch, **kwargs: create(arch, **{**kwargs, "device": "meta"})
    params = OmegaConf.load(webui / MODELS[name][0]).model.params
    params.first_stage_config.params.ddconfig.attn_type = "vanilla"
    if "network_config" in params:
        params.network_config.params.in_channels = 4  # the inpainting model's has 9, and is else the same
    shapes = {}
    for part, prefix in zip(PARTS, PREFIXES, strict=True):
        if part in params:
            with torch.device("meta"):
                model = instantiate_from_config(params[part])
            shapes |= {prefix + k: tuple(v.shape) for k, v in model.state_dict().items() if v.is_floating_point()}
    return shapes


def random_tensor(key: str, shape: tuple):
    import torch

    if not shape:
        return torch.full((), 2.66)
    if key.endswith(("final_layer_norm.bias", "ln_final.bias")):
        return torch.full(shape, 0.1)  # the host divides by the mean of what the text encoder gives
    if len(shape) == 1:
        return torch.zeros(shape) if key.endswith("bias") else torch.ones(shape)
    fan = shape[1] * math.prod(shape[2:])
    deviation = 0.02 if "embedding" in key else fan**-0.5
    if key.endswith(BRANCH_ENDS):
        deviation *= 0.3
    if key.endswith("attn2.to_out.0.weight"):  # … but the prompt's way into the UNet, so that guidance matters
        deviation *= 10
    return torch.randn(shape) * deviation


def write(path: Path, shapes: dict, seed: int) -> None:
    """As safetensors, one tensor at a time."""
    import torch

    torch.manual_seed(seed)
    header, end = {}, 0
    for key, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key, shape in shapes.items():
            file.write(random_tensor(key, shape).half().numpy().tobytes())
    part.rename(path)


def main(webui: Path, models: Path, *names: str) -> None:
    sys.path.insert(0, str(TESTS))
    import checkpoints as tiny

    with tiny.making(models):
        wanted = [name for name in names if not (models / "Stable-diffusion" / f"{name}.safetensors").is_file()]
        for folder in ("Stable-diffusion", "VAE-taesd", "VAE-approx"):
            (models / folder).mkdir(exist_ok=True)
        if wanted:
            tiny.import_host(webui)
            tiny.write_small_vaes(models)
        for name in wanted:
            write(models / "Stable-diffusion" / f"{name}.safetensors", shapes_of(name, webui), MODELS[name][1])


if __name__ == "__main__":
    main(*(Path(argument).resolve() for argument in sys.argv[1:3]), *sys.argv[3:])
