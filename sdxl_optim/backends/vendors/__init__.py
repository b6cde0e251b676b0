"""Backends that another project's package provides."""
