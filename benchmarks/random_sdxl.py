"""Write a full-size SDXL of random fp16 weights in diffusers' format, offline, for `bench --model`.

    python benchmarks/random_sdxl.py --out FOLDER [--refiner] [--tiny-vae] [--tiny]

FOLDER/base is the model (7 GB), FOLDER/refiner the refiner (6 GB), FOLDER/tiny-vae a TAESD. They take the time and the
memory of the real ones, and their pictures show nothing. --tiny writes small networks, to try it without a GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo_model import tokenizer
from demo_model.networks import SCHEDULER  # SDXL's own

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GAIN = 0.3  # of each layer: with residual branches this small fp16 never overflows
PADS = ("<|endoftext|>", "!")

UNET = {  # https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0: unet/config.json
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 768 + 1280,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 1280 + 6 * 256,
    "use_linear_projection": True,
}
REFINER = UNET | {  # https://huggingface.co/stabilityai/stable-diffusion-xl-refiner-1.0
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "attention_head_dim": (6, 12, 24, 24),
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 1280 + 5 * 256,
}
VAE = {
    "sample_size": 1024,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
TEXT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu"}
TEXT_2 = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20, "hidden_act": "gelu"}

SMALL_UNET = {
    "sample_size": 16,
    "transformer_layers_per_block": 1,
    "cross_attention_dim": 32 + 64,
    "addition_time_embed_dim": 8,
}
SMALL = {
    "unet": SMALL_UNET
    | {
        "block_out_channels": (32, 64, 64),
        "attention_head_dim": (1, 2, 2),
        "projection_class_embeddings_input_dim": 64 + 6 * 8,
    },
    "refiner": SMALL_UNET
    | {
        "block_out_channels": (32, 64, 64, 64),
        "attention_head_dim": (1, 2, 2, 2),
        "cross_attention_dim": 64,
        "projection_class_embeddings_input_dim": 64 + 5 * 8,
    },
    "vae": {"sample_size": 128, "block_out_channels": (32, 32, 32, 32)},
    "text": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "text_2": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "tiny_vae": {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4},
}


class Writer:
    """small: see SMALL. Each model is made on the device, in half precision, from the one seed."""

    def __init__(self, folder: Path, small: bool):
        self.folder, self.small = folder, SMALL if small else {}

    def write_base(self) -> None:
        pipe = StableDiffusionXLPipeline(
            vae=self._vae(),
            text_encoder=filled(lambda: CLIPTextModel(self._text("text", TEXT))),
            text_encoder_2=self._text_encoder_2(),
            tokenizer=clip_tokenizer(PADS[0]),
            tokenizer_2=clip_tokenizer(PADS[1]),
            unet=self._unet("unet", UNET),
            scheduler=EulerDiscreteScheduler(**SCHEDULER),
            add_watermarker=False,
        )
        pipe.save_pretrained(self.folder / "base")

    def write_refiner(self) -> None:
        pipe = StableDiffusionXLImg2ImgPipeline(
            vae=self._vae(),
            text_encoder=None,
            text_encoder_2=self._text_encoder_2(),
            tokenizer=None,
            tokenizer_2=clip_tokenizer(PADS[1]),
            unet=self._unet("refiner", REFINER),
            scheduler=EulerDiscreteScheduler(**SCHEDULER),
            requires_aesthetics_score=True,
            add_watermarker=False,
        )
        pipe.save_pretrained(self.folder / "refiner")

    def write_tiny_vae(self) -> None:
        vae = filled(lambda: AutoencoderTiny(**self.small.get("tiny_vae", {})), gain=1.4)  # it has no norms
        vae.save_pretrained(self.folder / "tiny-vae")

    def _vae(self) -> AutoencoderKL:
        return filled(lambda: AutoencoderKL(**VAE | self.small.get("vae", {})))

    def _text_encoder_2(self) -> CLIPTextModelWithProjection:
        return filled(lambda: CLIPTextModelWithProjection(self._text("text_2", TEXT_2)))

    def _text(self, name: str, config: dict) -> CLIPTextConfig:
        config = config | self.small.get(name, {})
        width = config["hidden_size"]
        tokens = {"vocab_size": tokenizer.END + 1, "bos_token_id": tokenizer.START, "eos_token_id": tokenizer.END}
        return CLIPTextConfig(**config, **tokens, intermediate_size=4 * width, projection_dim=width, pad_token_id=1)

    def _unet(self, name: str, config: dict) -> UNet2DConditionModel:
        unet = filled(lambda: UNet2DConditionModel(**config | self.small.get(name, {})))
        check(unet)
        return unet


@torch.no_grad()
def filled(make, gain: float = GAIN) -> torch.nn.Module:
    """The model that `make` makes, with random weights, no biases, and norms that change nothing."""
    with torch.device("meta"):
        model = make()
    model = model.to(torch.float16).to_empty(device=DEVICE).eval()
    torch.manual_seed(0)
    for module in model.modules():
        is_norm = isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm))
        for name, p in module.named_parameters(recurse=False):
            if p.dim() > 1:
                p.normal_(0, gain / p[0].numel() ** 0.5)
            else:
                p.fill_(float(is_norm and name == "weight"))
    return model


@torch.no_grad()
def check(unet: UNet2DConditionModel) -> None:
    """Raises FloatingPointError where a call of the UNet on noise is not finite or does not depend on the noise."""
    config, size = unet.config, unet.config.sample_size
    x, text = _noise(2, 4, size, size), _noise(2, 77, config.cross_attention_dim)
    ids = 6 if len(config.block_out_channels) == 3 else 5
    pooled = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
    added = {"text_embeds": _noise(2, pooled), "time_ids": torch.ones(2, ids, device=DEVICE)}
    out = unet(x, 500, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)[0].float()
    if not (out.isfinite().all() and out.std() > 1e-3):
        raise FloatingPointError(f"the UNet answers noise with values of standard deviation {float(out.std())}")


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE).half()


def clip_tokenizer(pad: str) -> CLIPTokenizer:
    """CLIP's ids for bytes and a few words: any text becomes tokens, more of them than CLIP itself would make."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.write_vocabulary(Path(folder), pad)
        return CLIPTokenizer.from_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--refiner", action="store_true")
    parser.add_argument("--tiny-vae", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    writer = Writer(args.out, args.tiny)
    parts = [writer.write_base]
    parts += [writer.write_refiner] * args.refiner + [writer.write_tiny_vae] * args.tiny_vae
    for write in parts:
        started = time.perf_counter()
        write()
        sys.stdout.write(f"{write.__name__}: {time.perf_counter() - started:.1f} s\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
