"""SD 1.5 at its full size and a ControlNet for it, both with random weights (2.6 GB on disk).

Run by the WebUI's interpreter: `python checkpoints_controlnet.py WEBUI_DIR MODELS_DIR CONTROLNET_DIR`, where
CONTROLNET_DIR is the extension sd-webui-controlnet, whose own class tells the layout. What is there already is kept.
"""

import sys
from pathlib import Path

CHECKPOINT = "full-sd15"
CONTROLNET = "random-controlnet-sd15"
# SD 1.5's own numbers, https://github.com/lllyasviel/ControlNet/blob/main/models/cldm_v15.yaml
UNET = {
    "in_channels": 4, "model_channels": 320, "num_res_blocks": 2, "attention_resolutions": [4, 2, 1],
    "channel_mult": [1, 2, 4, 4], "num_heads": 8, "transformer_depth": 1, "context_dim": 768,
}  # fmt: skip


def halves(module) -> dict:
    return {key: value.half().contiguous() for key, value in module.state_dict().items() if value.is_floating_point()}


def write_checkpoint(webui: Path, models: Path) -> None:
    import checkpoints
    import torch
    from omegaconf import OmegaConf
    from safetensors.torch import save_file
    from sgm.util import instantiate_from_config

    checkpoints.CLIP_WIDTH = UNET["context_dim"]
    checkpoints.write_clip_folder(models / "sd15-clip")
    config = OmegaConf.load(webui / "configs" / "v1-inference.yaml")
    params = config.model.params
    params.first_stage_config.params.ddconfig.update(ch=32, ch_mult=[1, 1, 2, 2], num_res_blocks=1)
    params.cond_stage_config.params = {"version": str(models / "sd15-clip")}
    params.pop("scheduler_config", None)
    config.pop("data", None)
    torch.manual_seed(20)
    model = instantiate_from_config(config.model)
    checkpoints.fill_zeros(model)
    save_file(halves(model), models / "Stable-diffusion" / f"{CHECKPOINT}.safetensors")
    OmegaConf.save(config, models / "Stable-diffusion" / f"{CHECKPOINT}.yaml")


def write_controlnet(models: Path, extension: Path) -> None:
    import checkpoints
    import torch
    from safetensors.torch import save_file

    sys.path.insert(0, str(extension))
    from scripts.cldm import ControlNet

    torch.manual_seed(21)
    net = ControlNet(**UNET, hint_channels=3, use_fp16=False)
    checkpoints.fill_zeros(net)
    folder = models / "ControlNet"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(halves(net), folder / f"{CONTROLNET}.safetensors")


def main(webui: Path, models: Path, extension: Path) -> None:
    import checkpoints

    complete = models / "complete-controlnet"
    with checkpoints.making(models):
        if complete.is_file():
            return
        checkpoints.import_host(webui)
        write_controlnet(models, extension)
        write_checkpoint(webui, models)
        complete.touch()


if __name__ == "__main__":
    main(*(Path(argument).resolve() for argument in sys.argv[1:4]))
