"""Replace an attribute of one instance, and take it back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def replaced(target: object, name: str, make: Callable) -> Iterator[None]:
    """While entered, `target.name` is make(original), as an instance attribute.

    On exit the attribute is put back only if it is still ours; if somebody wrapped it meanwhile, theirs stays, and
    what we put there calls the original from then on: a restore that clobbers a later patch would do more harm.
    """
    original = getattr(target, name)
    had_own = name in vars(target)
    active = make(original)

    def replacement(*args, **kwargs):
        return active(*args, **kwargs)

    setattr(target, name, replacement)
    try:
        yield
    finally:
        active = original
        if vars(target).get(name) is replacement:
            if had_own:
                setattr(target, name, original)
            else:
                delattr(target, name)


@contextmanager
def forwards_replaced(makes: Iterable[tuple[object, Callable]]) -> Iterator[None]:
    """While entered, each module's `forward` is its make(original). makes: (module, make)."""
    with ExitStack() as stack:
        for module, make in makes:
            stack.enter_context(replaced(module, "forward", make))
        yield
