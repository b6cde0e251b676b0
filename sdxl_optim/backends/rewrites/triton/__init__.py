"""Triton kernels, and where a traced block takes them."""
