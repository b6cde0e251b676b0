"""The demo model's configurations for sgm, which the WebUI reads beside a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from . import networks
from .networks import TEXT

_SIZES = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
_SIZE_YAML = """\
          - is_trainable: False
            input_key: {key}
            target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND
            params:
              outdim: 32"""
_CLIP_YAML = """\
          - is_trainable: False
            input_key: txt
            target: sgm.modules.encoders.modules.FrozenCLIPEmbedder
            params:
              version: {folder}
              layer: hidden
              layer_idx: {layer}
"""
_OPEN_CLIP_YAML = """\
          - is_trainable: False
            input_key: txt
            target: sgm.modules.encoders.modules.FrozenOpenCLIPEmbedder2
            params:
              arch: ViT-S-32-alt
              version: none
              freeze: True
              layer: penultimate
              always_return_pooled: True
              legacy: False
"""
_YAML = """\
model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    scale_factor: 0.13025
    disable_first_stage_autocast: True

    denoiser_config:
      target: sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser
      params:
        num_idx: 1000
        weighting_config:
          target: sgm.modules.diffusionmodules.denoiser_weighting.EpsWeighting
        scaling_config:
          target: sgm.modules.diffusionmodules.denoiser_scaling.EpsScaling
        discretization_config:
          target: sgm.modules.diffusionmodules.discretizer.LegacyDDPMDiscretization

    network_config:
      target: sgm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        adm_in_channels: {adm}
        num_classes: sequential
        use_checkpoint: False
        in_channels: 4
        out_channels: 4
        model_channels: 32
        attention_resolutions: [4, 2]
        num_res_blocks: 2
        channel_mult: {multiples}
        num_head_channels: 16
        use_spatial_transformer: True
        use_linear_in_transformer: True
        transformer_depth: {depth}
        context_dim: {context}
        spatial_transformer_attn_type: softmax
        legacy: False

    conditioner_config:
      target: sgm.modules.GeneralConditioner
      params:
        emb_models:
{embedders}

    first_stage_config:
      target: sgm.models.autoencoder.AutoencoderKLInferenceWrapper
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          attn_type: vanilla
          double_z: true
          z_channels: 4
          resolution: 256
          in_channels: 3
          out_ch: 3
          ch: 64
          ch_mult: [1, 1, 1, 1]
          num_res_blocks: 1
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
"""


def base(clip: Path) -> str:
    """The base model's configuration for sgm; `clip` is the folder of the first encoder's configuration."""
    unet, vector = networks.UNET, "\n".join(_SIZE_YAML.format(key=key) for key in _SIZES)
    embedders = _CLIP_YAML.format(folder=json.dumps(clip.as_posix()), layer=TEXT.host_layers - 1) + _OPEN_CLIP_YAML
    return _YAML.format(
        adm=unet["projection_class_embeddings_input_dim"],
        multiples="[1, 2, 4]",
        context=unet["cross_attention_dim"],
        depth="[1, 1, 1]",
        embedders=embedders + vector,
    )


def refiner() -> str:
    """The refiner's configuration for sgm."""
    unet, keys = networks.REFINER_UNET, (*_SIZES[:2], "aesthetic_score")
    return _YAML.format(
        adm=unet["projection_class_embeddings_input_dim"],
        multiples="[1, 1, 1, 1]",
        context=unet["cross_attention_dim"],
        depth="[1, 1, 1, 1]",
        embedders=_OPEN_CLIP_YAML + "\n".join(_SIZE_YAML.format(key=key) for key in keys),
    )
