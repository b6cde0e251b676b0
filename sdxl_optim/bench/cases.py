"""What is compared: prompts with their seeds, and settings by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    name: str
    text: str
    seed: int


# Felix Sanz, Ultimate guide to optimizing Stable Diffusion XL: "Prompts and seeds".
ARTICLE_PROMPTS = (
    Prompt(
        "Portrait",
        "3/4 shot, candid photograph of a beautiful 30 year old redhead woman with messy dark"
        " hair, peacefully sleeping in her bed, night, dark, light from window, dark shadows, masterpiece, uhd,"
        " moody",
        877866765,
    ),
    Prompt(
        "Interior",
        "futuristic living room with big windows, brown sofas, coffee table, plants, cyberpunk city,"
        " concept art, earthy colors",
        5567822456,
    ),
    Prompt("Macro", "macro shot of a bee collecting nectar from lavender flowers", 2257899453),
    Prompt("3D", "3d rendered isometric fiji island beach, 3d tile, polygon, cartoony, mobile game", 987867834),
)

# In the words of the demo model, which knows nothing else.
DEMO_MODEL_PROMPTS = (
    Prompt("Stars", "three small yellow stars in a row on a purple gradient background", 1),
    Prompt(
        "Triangle and ring",
        "a large dotted blue triangle at the top left, a green ring at the bottom right, on a gray background",
        1,
    ),
    Prompt("Square and circle", "a large checkered purple square above a white circle on a green background", 1),
    Prompt("Hearts", "two large striped red hearts side by side on a white background", 1),
)

TECHNIQUES = {
    "FreeU": {"freeu": {"enabled": True}},
    "CFG cutoff": {"cfg_cutoff": {"enabled": True}},
    "DeepCache": {"deepcache": {"enabled": True}},
    "Tiny VAE": {"vae": {"decoder": "tiny"}},
}
STOCK, ALL = "Stock", "All together"
DEMO_CASES = {
    STOCK: {"enabled": False},
    **TECHNIQUES,
    ALL: {k: v for t in TECHNIQUES.values() for k, v in t.items()},
}
