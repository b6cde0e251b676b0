"""Optimisations for Stable Diffusion XL that compose, prove that they ran, and leave no trace when off."""

__version__ = "0.1.0"
