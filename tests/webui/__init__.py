"""Tests on a live WebUI, and the tools that they share."""
