"""The models that a command's options name, loaded."""

from __future__ import annotations

import argparse
import sys


def load_models(
    args: argparse.Namespace, device, dtype_name: str, sampler: str | None = None, tiny: bool = True, **schedule
):
    """`generate.Models` of --model, with `tiny` also of --tiny-vae, and of --refiner where the command has it. Raises
    SettingsError.

    sampler: a name of `samplers.SAMPLERS`, or None for the model's own. schedule: changes to its configuration. A
    tiny VAE that can't be had is a line on standard error and a note of the models.
    """
    from sdxl_optim.errors import Unsupported
    from sdxl_optim.hosts.standalone import models as loading
    from sdxl_optim.hosts.standalone.generate import Models
    from sdxl_optim.sampling.note import Note
    from sdxl_optim.techniques.deepcache import calibration

    dtype = loading.pick_dtype(dtype_name, device)
    tiny_vae, notes = None, []
    if tiny:
        try:
            tiny_vae = loading.load_tiny_vae(args.tiny_vae, device, dtype)
        except Unsupported as error:
            notes.append(Note(error.feature, error.reason))
            sys.stderr.write(f"{notes[0]}\n")
    base = loading.load_base(args.model, device, dtype)
    refiner = loading.load_refiner(args.refiner, device, dtype) if getattr(args, "refiner", None) else None
    for pipe in filter(None, (base, refiner)):
        notes += loading.use_sampler(pipe, sampler, **schedule)
    return Models(base, refiner, tiny_vae, tuple(notes), calibration=calibration.find(args.model))
