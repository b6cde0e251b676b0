"""What is compared: prompts with their seeds, and settings by name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sdxl_optim.settings import Settings, from_dict, overrides


@dataclass(frozen=True)
class Prompt:
    name: str
    text: str
    seed: int


@dataclass(frozen=True)
class Case:
    """One row of a table: the request's settings, and what else differs from the stock row.

    steps, cfg: the request's own where None.
    change: the name of something done to the whole pipeline that is no setting ("fp32", …).
    together: all prompts are encoded, then all pictures denoised, then all decoded.
    switch_at: with a refiner, as an ensemble of experts. refiner_steps: with a refiner, as image-to-image.
    """

    name: str
    settings: Settings = field(default_factory=Settings)
    steps: int | None = None
    cfg: float | None = None
    change: str = ""
    together: bool = False
    switch_at: float | None = None
    refiner_steps: int | None = None

    @property
    def stock(self) -> bool:
        """Whether its pictures are those of a stock request."""
        return replace(self, together=False) == Case(self.name)

    @property
    def refines(self) -> bool:
        return self.switch_at is not None or self.refiner_steps is not None


def combination(text: str, name: str = "", **more) -> Case:
    """The case of a combination such as "freeu+cutoff 0.75". Raises SettingsError."""
    return Case(name or text, overrides.apply(Settings(), overrides.read_combination(text)), **more)


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


def demo_cases() -> list[Case]:
    """Stock, each technique alone, and all of them together."""
    alone: dict[str, dict[str, dict]] = {
        "FreeU": {"freeu": {"enabled": True}},
        "CFG cutoff": {"cfg_cutoff": {"enabled": True}},
        "DeepCache": {"deepcache": {"enabled": True}},
        "Tiny VAE": {"vae": {"decoder": "tiny"}},
    }
    together = {name: group for settings in alone.values() for name, group in settings.items()}
    return [
        Case("Stock"),
        *(Case(name, from_dict(settings)) for name, settings in alone.items()),
        Case("All together", from_dict(together)),
    ]
