"""Python that others put into a UNet. A captured call runs it once and never again, so it may not be there."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

OURS = __name__.split(".")[0]
MOVES = f"{OURS}.techniques.memory"  # ours, too, but weights that come and go can't be in a captured call


def foreign_python(unet: nn.Module, harmless: Callable[[nn.Module], bool] = lambda module: False) -> str | None:
    """Who has replaced the `forward` of a layer inside `unet` or hooked one, in a sentence, or None. Of our own,
    offload and fp8 count.

    Hooks on the UNet itself run outside what is captured. harmless: of a module, whose replaced `forward` is idle.
    """
    for name, module in unet.named_modules():
        if module is unet:
            continue
        replaced = foreign_forward(module)
        if replaced is not None and not harmless(module):
            return f"{name} is replaced by {_origin(replaced)}"
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            if not _is_ours(hook):
                return f"{name} is hooked by {_origin(hook)}"
    return None


def replaced_forward(unet: nn.Module) -> str | None:
    """Who runs the UNet's blocks in a way of their own, in a sentence, or None."""
    replaced = foreign_forward(unet)
    return None if replaced is None else f"the UNet's forward was replaced by {_origin(replaced)}"


def foreign_forward(module: nn.Module):
    """A `forward` that others laid over the module's own, or None. Some put the own one there when they are done."""
    replaced = vars(module).get("forward")
    if replaced is None or replaced == type(module).forward.__get__(module) or _is_ours(replaced):
        return None
    return replaced


def is_untouched(block: nn.Module) -> bool:
    """Whether nobody else's Python runs in a block, hooks on itself apart."""
    return replaced_forward(block) is None and foreign_python(block) is None


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
