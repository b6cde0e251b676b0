"""A demo model: SDXL's layout with 10 million parameters, trained on coloured shapes; its card is README.md here.

It shows offline, in seconds and on a CPU what the optimisations do to a trained denoiser. `export` writes its files,
`check` has the caption check, `captions` the held prompts; none of the three needs diffusers or transformers, but for
writing diffusers' folders.
"""
