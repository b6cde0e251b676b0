"""Measuring and reporting, shared by the hosts."""
