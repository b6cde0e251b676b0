"""The WebUI runs this at its start. There is nothing to install: the WebUI's own packages are enough."""
