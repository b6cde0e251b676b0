"""A tiny SDXL with random weights: the pipelines' own classes from small configurations. Its pictures show
nothing.
"""

from __future__ import annotations

import json
import tempfile
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

WIDTH = 32  # of each text encoder
TIME_EMBEDDING = 8
START, END = "<|startoftext|>", "<|endoftext|>"


def tiny_base(seed: int = 0) -> StableDiffusionXLPipeline:
    """SDXL base's layout: three resolutions, two text encoders, [B, 4, H/8, W/8] latents."""
    torch.manual_seed(seed)
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config()),
        text_encoder_2=CLIPTextModelWithProjection(_text_config()),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=_unet(("Down", "Cross", "Cross"), (32, 64, 64), context=2 * WIDTH, numbers=6),
        scheduler=_scheduler(),
        add_watermarker=False,
    )


def tiny_refiner(seed: int = 1) -> StableDiffusionXLImg2ImgPipeline:
    """The refiner's layout: four resolutions, the second text encoder alone, an aesthetic score."""
    torch.manual_seed(seed)
    return StableDiffusionXLImg2ImgPipeline(
        vae=_vae(),
        text_encoder=None,
        text_encoder_2=CLIPTextModelWithProjection(_text_config()),
        tokenizer=None,
        tokenizer_2=_tokenizer(),
        unet=_unet(("Down", "Cross", "Cross", "Down"), (32, 64, 64, 64), context=WIDTH, numbers=5),
        scheduler=_scheduler(),
        requires_aesthetics_score=True,
        add_watermarker=False,
    )


def tiny_taesd(seed: int = 2) -> AutoencoderTiny:
    """TAESD's layout, eight times narrower."""
    torch.manual_seed(seed)
    return AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)


def _unet(blocks: tuple[str, ...], widths: tuple[int, ...], context: int, numbers: int) -> UNet2DConditionModel:
    down = {"Down": "DownBlock2D", "Cross": "CrossAttnDownBlock2D"}
    up = {"Down": "UpBlock2D", "Cross": "CrossAttnUpBlock2D"}
    return UNet2DConditionModel(
        sample_size=32,
        down_block_types=tuple(down[b] for b in blocks),
        up_block_types=tuple(up[b] for b in reversed(blocks)),
        block_out_channels=widths,
        layers_per_block=2,
        attention_head_dim=4,
        norm_num_groups=8,
        cross_attention_dim=context,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_EMBEDDING,
        projection_class_embeddings_input_dim=WIDTH + numbers * TIME_EMBEDDING,
        use_linear_projection=True,
    ).eval()


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.13025,
    ).eval()


def _scheduler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )


def _text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(_vocabulary()),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=_vocabulary()[START],
        eos_token_id=_vocabulary()[END],
        pad_token_id=_vocabulary()[END],
    )


def _tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer without merges: every byte is a token."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(_vocabulary()), "utf-8")
        Path(folder, "merges.txt").write_text("#version: 0.2\n", "utf-8")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def _vocabulary() -> dict[str, int]:
    """Bytes as byte-level BPE writes them: printable ones as themselves, the others shifted behind U+0100."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [b for b in range(256) if b not in printable]
    symbols = [chr(b) for b in sorted(printable)] + [chr(256 + k) for k in range(len(others))]
    tokens = [*symbols, *(s + "</w>" for s in symbols), START, END]
    return {token: i for i, token in enumerate(tokens)}
