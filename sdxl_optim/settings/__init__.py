"""What the user asked for. No torch, no host."""

from sdxl_optim.settings.codec import (
    changed,
    flatten,
    from_dict,
    from_flat,
    from_given,
    preset_values,
    read_dict,
    to_dict,
    to_sparse_dict,
)
from sdxl_optim.settings.kinds import Declaration, choice, group, slider, toggle
from sdxl_optim.settings.schema import (
    INFOTEXT_PREFIX,
    Backend,
    CfgCutoff,
    DeepCache,
    Field,
    FieldPath,
    FreeU,
    Hires,
    Memory,
    Settings,
    Vae,
    acts,
    choices_that_act,
    field_named,
    fields,
    get,
)

__all__ = [
    "INFOTEXT_PREFIX", "Backend", "CfgCutoff", "Declaration", "DeepCache", "Field", "FieldPath", "FreeU", "Hires",
    "Memory", "Settings", "Vae", "acts", "changed", "choice", "choices_that_act",
    "field_named", "fields", "flatten", "from_dict", "from_flat", "from_given",
    "get", "group", "preset_values", "read_dict", "slider", "to_dict", "to_sparse_dict", "toggle",
]  # fmt: skip
