"""The techniques, in the order in which they are decided, attached and named. A new one is one folder and one line
here. No torch."""

from __future__ import annotations

from sdxl_optim.techniques.accumulation.rules import Fp16Accumulation
from sdxl_optim.techniques.attention import Attention
from sdxl_optim.techniques.backend import BackendTechnique
from sdxl_optim.techniques.base import PassTechnique, RequestTechnique
from sdxl_optim.techniques.cfg_cutoff import CfgCutoffTechnique
from sdxl_optim.techniques.deepcache.rules import DeepCacheTechnique
from sdxl_optim.techniques.freeu.rules import FreeUTechnique
from sdxl_optim.techniques.memory.rules import Offload, Weights
from sdxl_optim.techniques.tf32.rules import Tf32
from sdxl_optim.techniques.vae.rules import Decoder, Precision, Tiling

OF_THE_PASS: tuple[PassTechnique, ...] = (
    DeepCacheTechnique(),  # before FreeU, which acts on no block that keeps still
    CfgCutoffTechnique(),
    FreeUTechnique(),
    BackendTechnique(),
)

OF_THE_REQUEST: tuple[RequestTechnique, ...] = (
    Decoder(),
    Precision(),
    Tiling(),
    Weights(),
    Offload(),
    Attention(),
    Fp16Accumulation(),
    Tf32(),
)
