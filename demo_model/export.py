"""The trained weights in the layouts that hosts load: diffusers folders, and a WebUI checkpoint with its YAML.

The shipped files are float16 safetensors under `weights/`, named as diffusers names them (the text encoders: as
`networks` does). What a seed or a zero makes is not stored: token embeddings, text layers that pass their input on,
and the dead channels of TAESD's 64.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sdxl_optim.techniques.deepcache.calibration import ENDING, path_beside

from . import networks, tokenizer, webui_yaml
from .networks import TEXT, TEXT_2, TextConfig

WEIGHTS = Path(__file__).with_name("weights")
NAME = "sdxl-optim-demo"
log = logging.getLogger("demo_model")
Tensors = dict[str, torch.Tensor]


def load(name: str, folder: Path = WEIGHTS) -> Tensors:
    """One network's shipped tensors: text, vae, unet, tiny, refiner or classifier."""
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"weights: {path} is missing; demo_model.train writes it")
    return load_file(path)


def write_diffusers(folder: str | Path, weights: Path = WEIGHTS) -> Path:
    """Write a folder for `StableDiffusionXLPipeline.from_pretrained` (needs diffusers); about 60 MB."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    folder = Path(folder)
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(weights),
        text_encoder=_clip_model(TEXT, weights),
        text_encoder_2=_clip_model(TEXT_2, weights),
        tokenizer=_tokenizer(folder / "tokenizer", TEXT),
        tokenizer_2=_tokenizer(folder / "tokenizer_2", TEXT_2),
        unet=_filled(networks.unet(), load("unet", weights)),
        scheduler=EulerDiscreteScheduler(**networks.SCHEDULER),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    _save(pipeline, folder)
    _copy_calibration(weights, folder)
    return folder


def write_diffusers_refiner(folder: str | Path, weights: Path = WEIGHTS) -> Path:
    """Write a folder for `StableDiffusionXLImg2ImgPipeline.from_pretrained`: the refiner."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline

    folder = Path(folder)
    pipeline = StableDiffusionXLImg2ImgPipeline(
        vae=_vae(weights),
        text_encoder=None,
        text_encoder_2=_clip_model(TEXT_2, weights),
        tokenizer=None,
        tokenizer_2=_tokenizer(folder / "tokenizer_2", TEXT_2),
        unet=_filled(networks.refiner_unet(), load("refiner", weights)),
        scheduler=EulerDiscreteScheduler(**networks.SCHEDULER),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    return _save(pipeline, folder)


def tiny_vae(weights: Path = WEIGHTS):
    """The tiny VAE as diffusers' AutoencoderTiny, float32, of TAESD's full width; needs diffusers."""
    model = networks.tiny_vae(64, 64)
    model.load_state_dict({k: v.float() for k, v in _wide_tiny(load("tiny", weights)).items()})
    return model.eval()


def write_tiny_vae(folder: str | Path, weights: Path = WEIGHTS) -> Path:
    """Write a folder for `AutoencoderTiny.from_pretrained`."""
    tiny_vae(weights).half().save_pretrained(folder)
    return Path(folder)


def write_webui(webui: str | Path, weights: Path = WEIGHTS) -> list[Path]:
    """Put checkpoint, refiner, their YAMLs, the tiny VAE and the CLIP folder where a WebUI looks for them.

    Needs neither diffusers nor transformers. A tiny VAE of another model that is there already stays; the log says so.
    webui: its own folder, or the one that it is given by --data-dir. Raises NotADirectoryError where `webui` is
    neither, as there is no folder `models` in it. Returns the demo model's files.
    """
    webui = Path(webui).resolve()
    if not (webui / "models").is_dir():
        raise NotADirectoryError(f"webui: {str(webui)!r} has no folder models; name the WebUI's own one, or its data")
    clip = webui / "models" / NAME / "clip"
    tokenizer.write_vocabulary(clip)
    (clip / "config.json").write_text(json.dumps(_clip_config(TEXT), indent=2), "utf-8")
    checkpoints = webui / "models" / "Stable-diffusion"
    tiny = webui / "models" / "VAE-taesd"
    checkpoints.mkdir(exist_ok=True)
    tiny.mkdir(exist_ok=True)
    base, refiner = checkpoints / f"{NAME}.safetensors", checkpoints / f"{NAME}-refiner.safetensors"
    save_file(webui_checkpoint(weights), base)
    save_file(webui_refiner(weights), refiner)
    texts = {base: webui_yaml.base(clip), refiner: webui_yaml.refiner()}
    for path, text in texts.items():
        path.with_suffix(".yaml").write_text(text, "utf-8")
    tensors = _wide_tiny(load("tiny", weights))
    parts = {tiny / f"taesdxl_{part}.pth": taesd(tensors, part) for part in ("decoder", "encoder")}
    for path, part in list(parts.items()):
        if path.exists() and not _holds(path, part):
            log.warning("%s is another model's, and stays; Tiny VAE would not decode the demo model's pictures", path)
            del parts[path]
            continue
        # The WebUI takes no archive with members that it does not know, and new versions of torch add some.
        torch.save(part, path, _use_new_zipfile_serialization=False)
    yamls = [path.with_suffix(".yaml") for path in texts]
    return [base, refiner, *yamls, *parts, clip, *_copy_calibration(weights, base)]


def _holds(path: Path, tensors: Tensors) -> bool:
    """Whether the file holds just these."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        return found.keys() == tensors.keys() and all(torch.equal(found[k], v) for k, v in tensors.items())
    except Exception:  # whatever a file of somebody else's holds
        return False


def _copy_calibration(weights: Path, model: Path) -> list[Path]:
    return [Path(shutil.copyfile(weights / ENDING, path_beside(model)))] if (weights / ENDING).is_file() else []


def webui_checkpoint(weights: Path = WEIGHTS) -> Tensors:
    """The base model in the layout of Stability's SDXL checkpoint, float16."""
    layers = networks.UNET["layers_per_block"]
    out = {f"model.diffusion_model.{sgm_unet_name(k, layers)}": v for k, v in load("unet", weights).items()}
    out |= {f"first_stage_model.{k}": v for k, v in sgm_vae(load("vae", weights)).items()}
    out |= {f"conditioner.embedders.0.transformer.{k}": v for k, v in clip_tensors(TEXT, weights).items()}
    positions = torch.arange(tokenizer.LENGTH)[None]
    out["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = positions
    return _own(out | {f"conditioner.embedders.1.model.{k}": v for k, v in open_clip_tensors(weights).items()})


def webui_refiner(weights: Path = WEIGHTS) -> Tensors:
    """The refiner in the layout of Stability's SDXL refiner checkpoint, float16."""
    layers = networks.REFINER_UNET["layers_per_block"]
    out = {f"model.diffusion_model.{sgm_unet_name(k, layers)}": v for k, v in load("refiner", weights).items()}
    out |= {f"first_stage_model.{k}": v for k, v in sgm_vae(load("vae", weights)).items()}
    return _own(out | {f"conditioner.embedders.0.model.{k}": v for k, v in open_clip_tensors(weights).items()})


def sgm_unet_name(name: str, layers: int) -> str:
    """A diffusers UNet parameter's name in sgm's UNetModel; `layers` is layers_per_block."""
    fixed = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for ours, theirs in fixed.items():
        if name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    resnet = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    found = re.fullmatch(
        r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)",
        name,
    )
    if found is None:
        raise ValueError(f"{name}: no parameter of a diffusers UNet")
    block, kind, index, rest = found[1], found[2], int(found[3]), found[4]
    if kind == "resnets":
        part, _, leaf = rest.partition(".")
        rest = f"{resnet[part]}.{leaf}"
    if block == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{rest}"
    side, number = block.split(".")
    if side == "down_blocks":
        at = (layers + 1) * int(number) + 1
        if kind == "downsamplers":
            return f"input_blocks.{at + layers}.0.{rest.replace('conv.', 'op.')}"
        return f"input_blocks.{at + index}.{int(kind == 'attentions')}.{rest}"
    at = (layers + 1) * int(number)
    if kind == "upsamplers":
        return f"output_blocks.{at + layers}.UP.{rest}"
    return f"output_blocks.{at + index}.{int(kind == 'attentions')}.{rest}"


def sgm_vae(tensors: Tensors) -> Tensors:
    """A diffusers AutoencoderKL's tensors with the names (and the 1x1 convolutions) of sgm's."""
    levels = len(networks.VAE["block_out_channels"])
    swaps = [
        (r"^(encoder)\.down_blocks\.(\d)\.resnets\.(\d)\.", r"\1.down.\2.block.\3."),
        (r"^(encoder)\.down_blocks\.(\d)\.downsamplers\.0\.", r"\1.down.\2.downsample."),
        (r"^(decoder)\.up_blocks\.(\d)\.resnets\.(\d)\.", r"\1.up.\2.block.\3."),
        (r"^(decoder)\.up_blocks\.(\d)\.upsamplers\.0\.", r"\1.up.\2.upsample."),
        (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
        (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
        (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
        (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
        (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
        (r"\.conv_shortcut\.", ".nin_shortcut."),
        (r"\.conv_norm_out\.", ".norm_out."),
    ]
    out = {}
    for name, tensor in tensors.items():
        is_projection = ".attentions." in name and tensor.ndim == 2
        for pattern, replacement in swaps:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"^decoder\.up\.(\d)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}", name)
        out[name] = tensor[:, :, None, None] if is_projection else tensor
    return out


def clip_tensors(config: TextConfig, weights: Path = WEIGHTS) -> Tensors:
    """A text encoder with transformers' names, float16, identity layers and token embeddings filled in."""
    prefix = "one." if config is TEXT else "two."
    own = {k.removeprefix(prefix): v for k, v in load("text", weights).items() if k.startswith(prefix)}
    width, half = config.width, torch.float16
    out = {
        "embeddings.token_embedding.weight": networks.token_embeddings(config),
        "embeddings.position_embedding.weight": own["position"],
        "final_layer_norm.weight": own.get("norm.weight", torch.ones(width, dtype=half)),
        "final_layer_norm.bias": own.get("norm.bias", torch.zeros(width, dtype=half)),
    }
    for i in range(config.host_layers):
        layer = f"encoder.layers.{i}."
        mine = f"layers.{i}." if i < config.layers else None
        for j, norm in ((1, "norm1"), (2, "norm2")):
            out[f"{layer}layer_norm{j}.weight"] = own[f"{mine}{norm}.weight"] if mine else torch.ones(width, dtype=half)
            out[f"{layer}layer_norm{j}.bias"] = own[f"{mine}{norm}.bias"] if mine else torch.zeros(width, dtype=half)
        for end in ("weight", "bias"):
            qkv = own[f"{mine}qkv.{end}"].chunk(3) if mine else ()
            empty = (width, width)[: 2 if end == "weight" else 1]
            for j, name in enumerate(("q_proj", "k_proj", "v_proj")):
                out[f"{layer}self_attn.{name}.{end}"] = qkv[j] if mine else torch.zeros(empty, dtype=half)
            out[f"{layer}self_attn.out_proj.{end}"] = (
                own[f"{mine}out.{end}"] if mine else torch.zeros(empty, dtype=half)
            )
        shapes = {"fc1.weight": (config.host_hidden, width), "fc1.bias": (config.host_hidden,)}
        shapes |= {"fc2.weight": (width, config.host_hidden), "fc2.bias": (width,)}
        for name, shape in shapes.items():
            out[f"{layer}mlp.{name}"] = _padded(own[mine + name] if mine else torch.zeros(0, dtype=half), shape)
    out = {f"text_model.{k}": v for k, v in out.items()}
    if config.projection:
        out["text_projection.weight"] = own["projection.weight"]
    return out


def open_clip_tensors(weights: Path = WEIGHTS) -> Tensors:
    """The second text encoder with open_clip's names (ViT-S-32-alt's text half), float16."""
    clip = {k.removeprefix("text_model."): v for k, v in clip_tensors(TEXT_2, weights).items()}
    out = {
        "token_embedding.weight": clip["embeddings.token_embedding.weight"],
        "positional_embedding": clip["embeddings.position_embedding.weight"],
        "ln_final.weight": clip["final_layer_norm.weight"],
        "ln_final.bias": clip["final_layer_norm.bias"],
        "text_projection": clip["text_projection.weight"].T,
        "logit_scale": torch.tensor(100.0).log().half(),
    }
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names["self_attn.out_proj"] = "attn.out_proj"
    for i in range(TEXT_2.host_layers):
        theirs, ours = f"transformer.resblocks.{i}.", f"encoder.layers.{i}."
        for end in ("weight", "bias"):
            qkv = [clip[f"{ours}self_attn.{p}_proj.{end}"] for p in "qkv"]
            out[f"{theirs}attn.in_proj_{end}"] = torch.cat(qkv)
            out |= {f"{theirs}{new}.{end}": clip[f"{ours}{old}.{end}"] for old, new in names.items()}
    return out


def taesd(tensors: Tensors, part: str) -> Tensors:
    """TAESD's own names for the `part` ("decoder" or "encoder"): its decoder counts a clamp as layer 0."""
    shift = 1 if part == "decoder" else 0
    out = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{part}.layers."):
            index, _, rest = name.removeprefix(f"{part}.layers.").partition(".")
            out[f"{int(index) + shift}.{rest}"] = tensor
    return _own(out)


def _vae(weights: Path):
    return _filled(networks.vae(), load("vae", weights))


def _clip_config(config: TextConfig) -> dict:
    return {
        "architectures": ["CLIPTextModelWithProjection" if config.projection else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": tokenizer.END + 1,
        "hidden_size": config.width,
        "intermediate_size": config.host_hidden,
        "num_hidden_layers": config.host_layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": tokenizer.LENGTH,
        "hidden_act": "quick_gelu" if config.quick_gelu else "gelu",
        "projection_dim": config.projection or config.width,
        "bos_token_id": tokenizer.START,
        "eos_token_id": tokenizer.END,
        "pad_token_id": config.pad,
    }


def _clip_model(config: TextConfig, weights: Path):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if config.projection else CLIPTextModel
    model = kind(CLIPTextConfig(**_clip_config(config)))
    tensors = clip_tensors(config, weights)
    if not any(k.startswith("text_model.") for k in model.state_dict()):  # transformers 5's CLIPTextModel
        tensors = {k.removeprefix("text_model."): v for k, v in tensors.items()}
    if not any("position_ids" in k for k in tensors):
        tensors |= {k: v for k, v in model.state_dict().items() if k.endswith("position_ids")}
    return _filled(model, tensors)


def _tokenizer(folder: Path, config: TextConfig):
    from transformers import CLIPTokenizer

    tokenizer.write_vocabulary(folder, "!" if config.pad == 0 else "<|endoftext|>")
    return CLIPTokenizer.from_pretrained(folder)


def _filled(model, tensors: Tensors):
    model.load_state_dict({k: v if "position_ids" in k else v.float() for k, v in tensors.items()})
    return model.eval()


def _save(pipeline, folder: Path) -> Path:
    """Save in float16; loaded without a dtype, the text encoders come up in float32 like the rest."""
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
    for path in folder.glob("text_encoder*/config.json"):
        config = json.loads(path.read_text("utf-8"))
        config = {k: v for k, v in config.items() if k not in ("dtype", "torch_dtype")} | {"dtype": "float32"}
        path.write_text(json.dumps(config, indent=2), "utf-8")
    for path in folder.glob("tokenizer*"):
        pad = json.loads((path / "tokenizer_config.json").read_text("utf-8"))["pad_token"]
        tokenizer.write_vocabulary(path, pad if isinstance(pad, str) else pad["content"])
    return folder


def _padded(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """`tensor` in the first corner of zeros of `shape`; float16."""
    out = torch.zeros(shape, dtype=torch.float16)
    if tensor.numel():
        out[tuple(slice(n) for n in tensor.shape)] = tensor
    return out


def _wide_tiny(tensors: Tensors) -> Tensors:
    """The tiny VAE's tensors at TAESD's 64 channels: the ones that are not live are zero and stay zero."""
    out = {}
    for name, tensor in tensors.items():
        ends = {"encoder.layers.0.": (64, 3), "encoder.layers.14.": (4, 64)}
        ends |= {"decoder.layers.0.": (64, 4), "decoder.layers.18.": (3, 64)}
        shape = next((s for start, s in ends.items() if name.startswith(start)), (64, 64))
        out[name] = _padded(tensor, (*shape, 3, 3) if tensor.ndim == 4 else shape[:1])
    return out


def _own(tensors: Tensors) -> Tensors:
    """Contiguous tensors that share no memory, as safetensors wants them; upsamplers get their place (see sgm)."""
    out = {}
    for name, tensor in tensors.items():
        if ".UP." in name:
            block = name.split(".UP.")[0]
            name = name.replace(".UP.", ".2." if any(k.startswith(f"{block}.1.") for k in tensors) else ".1.")
        out[name] = tensor.clone().contiguous()
    return out
