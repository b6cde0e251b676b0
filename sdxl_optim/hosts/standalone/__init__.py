"""The standalone host: the same settings, plans and reports over diffusers' SDXL pipelines."""
