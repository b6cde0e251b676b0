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
