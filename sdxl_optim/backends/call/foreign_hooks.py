"""Hooks and replaced forwards of other extensions. A captured call would run them only once, so such a UNet is not
captured."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from sdxl_optim.wording import Text, message

OURS = __name__.split(".")[0]
MOVES = f"{OURS}.techniques.memory"  # ours as well, but a captured call can't contain weights that come and go


def why_not_capturable(
    unet: nn.Module, is_idle_patch: Callable[[nn.Module], bool] = lambda module: False, before_undo: bool = False
) -> Text | None:
    """A sentence that names whoever replaced the `forward` of a layer inside `unet` or hooked one, or None.

    Our own patches do not count, except offload and fp8. Neither do hooks on the UNet itself: they run outside of what
    is captured. is_idle_patch: whether the replaced `forward` of a module does nothing at present. before_undo: our own
    offload and fp8 are undone before the first call, and so they do not count either.
    """
    for name, module in unet.named_modules():
        if module is unet:
            continue
        replaced = foreign_forward(module)
        if replaced is not None and not is_idle_patch(module):
            return message("{layer} is replaced by {origin}", layer=name, origin=_origin(replaced))
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            if not (_is_ours(hook) or (before_undo and _module(hook).startswith(MOVES))):
                return message("{layer} is hooked by {origin}", layer=name, origin=_origin(hook))
    return None


def replaced_forward(unet: nn.Module) -> Text | None:
    """A sentence that names whoever replaced the UNet's own `forward`, or None."""
    replaced = foreign_forward(unet)
    if replaced is None:
        return None
    return message("the UNet's forward was replaced by {origin}", origin=_origin(replaced))


def foreign_forward(module: nn.Module):
    """The `forward` by which others replaced the module's own, or None.

    Some put the original there when they are done."""
    replaced = vars(module).get("forward")
    if replaced is None or replaced == type(module).forward.__get__(module) or _is_ours(replaced):
        return None
    return replaced


def is_untouched(block: nn.Module) -> bool:
    """Whether no other extension's Python runs in a block, except for hooks on the block itself."""
    return replaced_forward(block) is None and why_not_capturable(block) is None


def global_hook() -> Text | None:
    """A sentence that names whoever hooked all modules at once by torch's global hooks, or None."""
    from torch.nn.modules import module

    for hook in (*module._global_forward_pre_hooks.values(), *module._global_forward_hooks.values()):
        return message("every module is hooked by {origin}", origin=_origin(hook))
    return None


def _is_ours(function) -> bool:
    module = _module(function)
    return module.split(".")[0] == OURS and not module.startswith(MOVES)


def _module(function) -> str:
    function = getattr(function, "func", function)  # of a partial
    return getattr(function, "__module__", None) or type(function).__module__


def _origin(function) -> str:
    return f"{getattr(function, '__qualname__', type(function).__name__)} of {_module(function)}"
