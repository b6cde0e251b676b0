"""What the header of a single-file checkpoint tells, before its weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"  # [width, channels that the UNet takes, 3, 3]
REFINER = "conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias"
PLAYGROUND = "edm_mean"

# By these keys trainers say how a checkpoint was trained.
TRAINED_WITH: dict[str, dict[str, Any]] = {
    "v_pred": {"prediction_type": "v_prediction"},
    "ztsnr": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},  # the last timestep is pure noise
}


class SingleFile:
    """The names and the sizes of a file's tensors; none are known of a file that is no .safetensors.

    Raises safetensors' error for a file that is broken.
    """

    def __init__(self, path: str | Path):
        self._names: frozenset[str] = frozenset()
        self.in_channels: int | None = None
        if Path(path).suffix != ".safetensors":
            return
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            self._names = frozenset(file.keys())
            if FIRST_LAYER in self._names:
                self.in_channels = file.get_slice(FIRST_LAYER).get_shape()[1]

    @property
    def configuration(self) -> str:
        """The model on the Hugging Face hub whose configuration diffusers gives the file's pipeline."""
        if PLAYGROUND in self._names:
            return "playgroundai/playground-v2.5-1024px-aesthetic"
        if REFINER in self._names:
            return "stabilityai/stable-diffusion-xl-refiner-1.0"
        return "stabilityai/stable-diffusion-xl-base-1.0"

    @property
    def schedule(self) -> dict[str, Any]:
        """What the file's scheduler is to have otherwise than SDXL's."""
        return {name: value for key in TRAINED_WITH if key in self._names for name, value in TRAINED_WITH[key].items()}
