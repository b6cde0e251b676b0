"""Python that others put into a UNet. A captured call runs it once and never again, so it may not be there."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

OURS = __name__.split(".")[0]
MOVES = f"{OURS}.memory"  # ours, too, but weights that come and go can't be in a captured call


def foreign_python(unet: nn.Module, harmless: Callable[[nn.Module], bool] = lambda module: False) -> str | None:
    """Who has replaced a `forward` or hooked a layer inside `unet`, in a sentence, or None. Of our own, offload and fp8
    count.

    Hooks on the UNet itself run outside what is captured. harmless: of a module, whose replaced `forward` is idle.
    """
    own = vars(unet).get("forward")
    if own is not None and own != type(unet).forward.__get__(unet) and not _is_ours(own):
        return f"the UNet's forward was replaced by {_origin(own)}"
    for name, module in unet.named_modules():
        if module is unet:
            continue
        replaced = vars(module).get("forward")
        if replaced is not None and not _is_ours(replaced) and not harmless(module):
            return f"{name} is replaced by {_origin(replaced)}"
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            if not _is_ours(hook):
                return f"{name} is hooked by {_origin(hook)}"
    return None


def global_python() -> str | None:
    """Who has hooked all modules at once by torch's global hooks, in a sentence, or None."""
    from torch.nn.modules import module

    for hook in (*module._global_forward_pre_hooks.values(), *module._global_forward_hooks.values()):
        return f"every module is hooked by {_origin(hook)}"
    return None


def _is_ours(function) -> bool:
    module = _module(function)
    return module.split(".")[0] == OURS and not module.startswith(MOVES)


def _module(function) -> str:
    function = getattr(function, "func", function)  # of a partial
    return getattr(function, "__module__", None) or type(function).__module__


def _origin(function) -> str:
    return f"{getattr(function, '__qualname__', type(function).__name__)} of {_module(function)}"
