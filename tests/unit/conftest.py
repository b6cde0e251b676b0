"""What several files of tests here share, where they don't have one of their own."""

from __future__ import annotations

import ldm_unet
import pytest


@pytest.fixture
def unet():
    return ldm_unet.tiny_unet("sdxl", layers=2)


@pytest.fixture
def inputs(unet):
    return list(ldm_unet.random_inputs(unet.config, 2, (8, 8)).args)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with tiny models in diffusers' format: base, refiner and tiny."""
    from sdxl_optim.hosts.standalone import tiny

    folder = tmp_path_factory.mktemp("models")
    tiny.tiny_base().save_pretrained(folder / "base")
    tiny.tiny_refiner().save_pretrained(folder / "refiner")
    tiny.tiny_taesd().save_pretrained(folder / "tiny")
    return folder
