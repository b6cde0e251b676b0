"""Tiny random-weight models in the WebUI's layouts, for its own loader.

Run by the WebUI's interpreter: `python checkpoints.py WEBUI_DIR MODELS_DIR`. Deterministic; what is there already is
kept, and who comes while another process makes it waits. Every class is the host's own, so the layouts are right.

    Stable-diffusion/  tiny-sdxl, tiny-sdxl-b, tiny-sdxl-refiner, tiny-sdxl-inpaint,
                       tiny-sd15, tiny-sd15-edit (instruct-pix2pix), tiny-sd2; each with its YAML.
                       tiny-sdxl-b.ckpt has other weights than tiny-sdxl-b.safetensors and the same YAML:
                       between these two the host loads weights into the model that it has,
                       between any others it builds a new one.
    Lora/              tiny-lora (SDXL), named in a prompt as <lora:tiny-lora:1>
    VAE-taesd/         TAESD-layout encoders and decoders for SDXL and SD 1.x
    VAE-approx/        the preview network for SDXL
"""

import contextlib
import gzip
import importlib
import json
import os
import sys
from pathlib import Path

SDXL_NAMES = ("tiny-sdxl", "tiny-sdxl-b", "tiny-sdxl-refiner", "tiny-sdxl-inpaint")
NAMES = (*SDXL_NAMES, "tiny-sd15", "tiny-sd15-edit", "tiny-sd2")
TAESD = ("taesdxl_decoder.pth", "taesdxl_encoder.pth", "taesd_decoder.pth", "taesd_encoder.pth")
FOLDERS = ("Stable-diffusion", "Lora", "VAE-taesd", "VAE-approx")

CLIP_WIDTH = 64
OPEN_CLIP = "ViT-S-32-alt"  # the narrowest text tower that open_clip knows
OPEN_CLIP_WIDTH = 256
SIZE_DIM = 32  # of each of the numbers in a size, crop or aesthetic score
MODEL_CHANNELS = 32


def write_clip_folder(folder: Path) -> None:
    """A two-layer CLIP text config with the vocabulary that open_clip ships."""
    import open_clip
    from open_clip.tokenizer import bytes_to_unicode

    folder.mkdir(parents=True, exist_ok=True)
    packed = (Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    words = letters + [f"{letter}</w>" for letter in letters] + ["".join(merge.split()) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    ids = {word: i for i, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    special = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": words[-1]}
    tokenizer = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    config = {
        "model_type": "clip_text_model", "architectures": ["CLIPTextModel"], "vocab_size": len(words),
        "hidden_size": CLIP_WIDTH, "intermediate_size": 2 * CLIP_WIDTH, "num_attention_heads": 2,
        "num_hidden_layers": 2, "projection_dim": CLIP_WIDTH, "max_position_embeddings": 77,
        "hidden_act": "quick_gelu", "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def tiny_config(name: str, webui: Path, clip: Path):
    """The host's YAML of this kind of model with its numbers made small."""
    from omegaconf import OmegaConf

    source = {"tiny-sd15": "v1-inference", "tiny-sd2": "v1-inference", "tiny-sd15-edit": "instruct-pix2pix"}
    config = OmegaConf.load(webui / "configs" / f"{source.get(name, 'sd_xl_inpaint')}.yaml")
    params = config.model.params
    unet = params["network_config" if name in SDXL_NAMES else "unet_config"].params
    unet.model_channels = MODEL_CHANNELS
    params.first_stage_config.params.ddconfig.update(ch=32, ch_mult=[1, 1, 2, 2], num_res_blocks=1)
    params.pop("scheduler_config", None)
    config.pop("data", None)
    if name in SDXL_NAMES:
        tiny_sdxl_config(name, params, unet, clip)
    elif name == "tiny-sd2":
        unet.pop("num_heads")
        unet.update(context_dim=OPEN_CLIP_WIDTH, num_head_channels=32, use_linear_in_transformer=True)
        params.cond_stage_config = {
            "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
            "params": {"arch": OPEN_CLIP, "freeze": True, "layer": "penultimate"},
        }
    else:
        unet.update(context_dim=CLIP_WIDTH, num_heads=2)
        params.cond_stage_config.params = {"version": str(clip)}
    return config


def tiny_sdxl_config(name: str, params, unet, clip: Path) -> None:
    unet.update(in_channels=9 if name == "tiny-sdxl-inpaint" else 4, num_head_channels=32)
    unet.update(transformer_depth=[1, 1, 2], context_dim=CLIP_WIDTH + OPEN_CLIP_WIDTH)
    unet.adm_in_channels = OPEN_CLIP_WIDTH + 6 * SIZE_DIM
    params.first_stage_config.params.ddconfig.attn_type = "vanilla"
    embedders = params.conditioner_config.params.emb_models
    embedders[0].params.update(version=str(clip), layer_idx=1)
    embedders[1].params.update(arch=OPEN_CLIP, version=None)
    for size in embedders[2:]:
        size.params.outdim = SIZE_DIM
    if name == "tiny-sdxl-refiner":
        unet.update(channel_mult=[1, 2, 4, 4], transformer_depth=1, context_dim=OPEN_CLIP_WIDTH)
        unet.adm_in_channels = OPEN_CLIP_WIDTH + 5 * SIZE_DIM  # two sizes of two numbers, one score
        embedders[4].input_key = "aesthetic_score"
        params.conditioner_config.params.emb_models = embedders[1:]


def save(state: dict, path: Path) -> None:
    """In torch's older format: the host refuses the archives of newer versions of torch."""
    import torch

    torch.save(state, path, _use_new_zipfile_serialization=False)


def fill_zeros(model) -> None:
    """Give layers that training starts from zero a random start; else the picture is flat.

    The last layer is scaled so that the predicted noise has a deviation of 1, and the prompt's way into the
    UNet so that guidance matters. The text encoder's last norm gets a bias, as a trained one has: without it the
    mean of what it gives is zero but for rounding, and the host divides by that mean.
    """
    import torch

    layers = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv1d)
    for name, module in model.named_modules():
        if isinstance(module, layers) and not module.weight.any():
            module.reset_parameters()
        if name.endswith("diffusion_model.out.2"):
            module.weight.data *= 3
        if name.endswith("attn2.to_out.0"):
            module.weight.data *= 20
        if name.startswith("cond_stage_model") and name.endswith(("text_model.final_layer_norm", "model.ln_final")):
            torch.nn.init.constant_(module.bias, 0.1)


def write_checkpoint(name: str, webui: Path, models: Path) -> None:
    import torch
    from omegaconf import OmegaConf
    from safetensors.torch import save_file
    from sgm.util import instantiate_from_config

    config = tiny_config(name, webui, models / "tiny-clip")
    torch.manual_seed(NAMES.index(name))
    model = instantiate_from_config(config.model)
    fill_zeros(model)
    state = {key: value.half() for key, value in model.state_dict().items() if value.is_floating_point()}
    save_file(state, models / "Stable-diffusion" / f"{name}.safetensors")
    OmegaConf.save(config, models / "Stable-diffusion" / f"{name}.yaml")
    if name == "tiny-sdxl-b":
        twin = {key: value.flip(0) if "diffusion_model" in key else value for key, value in state.items()}
        save({"state_dict": twin}, models / "Stable-diffusion" / f"{name}.ckpt")
    if name == "tiny-sdxl":
        write_lora(model.model.diffusion_model, models / "Lora" / "tiny-lora.safetensors")


def write_lora(unet, path: Path) -> None:
    """Rank 4 on every attention projection, in kohya's names."""
    import torch
    from safetensors.torch import save_file

    state = {}
    for name, module in unet.named_modules():
        if name.rsplit(".", 1)[-1] in ("to_q", "to_k", "to_v"):
            key = f"lora_unet_{name.replace('.', '_')}"
            state[f"{key}.lora_down.weight"] = torch.randn(4, module.in_features) / module.in_features**0.5
            state[f"{key}.lora_up.weight"] = torch.randn(module.out_features, 4)
            state[f"{key}.alpha"] = torch.tensor(4.0)
    save_file(state, path)


def write_small_vaes(models: Path) -> None:
    import torch

    from modules import sd_vae_approx, sd_vae_taesd

    for seed, name in enumerate(TAESD):
        torch.manual_seed(seed)
        net = sd_vae_taesd.decoder() if "decoder" in name else sd_vae_taesd.encoder()
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):  # He's gain: the default one fades to grey over 14 blocks
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                module.weight.data *= 0.5
        if "decoder" in name:
            torch.nn.init.constant_(net[-1].bias, 0.5)
        save(net.state_dict(), models / "VAE-taesd" / name)
    save(sd_vae_approx.VAEApprox().state_dict(), models / "VAE-approx" / "vaeapprox-sdxl.pt")


def import_host(webui: Path) -> None:
    """Put the WebUI's packages on the path, and build text encoders from their configuration alone."""
    sys.argv = [str(webui / "launch.py"), "--skip-torch-cuda-test"]
    sys.path.insert(0, str(webui))
    os.chdir(webui)
    importlib.import_module("modules.paths")  # puts ldm and sgm on the path
    import ldm.modules.encoders.modules as ldm_encoders
    import open_clip
    import sgm.modules.encoders.modules as sgm_encoders
    from transformers import CLIPTextConfig, CLIPTextModel

    def untrained(folder):
        return CLIPTextModel(CLIPTextConfig.from_pretrained(folder))

    create = open_clip.create_model_and_transforms
    open_clip.create_model_and_transforms = lambda arch, pretrained=None, **kwargs: create(arch, **kwargs)
    for encoders in (ldm_encoders, sgm_encoders):
        encoders.CLIPTextModel = type("Untrained", (), {"from_pretrained": staticmethod(untrained)})


@contextlib.contextmanager
def making(models: Path):
    """Alone with this folder; what another process was making is there."""
    from filelock import FileLock

    models.mkdir(parents=True, exist_ok=True)
    with FileLock(models / "lock"):
        yield


def main(webui: Path, models: Path) -> None:
    complete = models / "complete"
    with making(models):
        if complete.is_file():
            return
        for folder in FOLDERS:
            (models / folder).mkdir(exist_ok=True)
        import_host(webui)
        write_clip_folder(models / "tiny-clip")
        write_small_vaes(models)
        for name in NAMES:
            write_checkpoint(name, webui, models)
        complete.touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
