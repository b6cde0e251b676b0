"""Backends that need a package of somebody else's."""
