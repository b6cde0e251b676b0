"""What diffusers refuses, as one sentence: errors of libraries before the first step is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import torch

from sdxl_optim.errors import Refused, SettingsError

OURS = __name__.split(".")[0]
LONGEST = 200  # characters of a library's own words


@contextmanager
def refusals_of(name: str, begun: Callable[[], bool]) -> Iterator[None]:
    """Context manager: what a library raises becomes `Refused`, which names `name`.

    Errors stay as they are once `begun` says that a step is done, where memory ran out, and where our own code raised
    them: those are no refusals.
    """
    try:
        yield
    except (MemoryError, torch.cuda.OutOfMemoryError, ImportError):
        raise
    except Exception as error:
        if begun() or _raised_by_us(error.__traceback__):
            raise
        raise Refused(f"{name} can't do this: {one_line(error)}") from error


def set_timesteps(scheduler, steps: int, option: str = "--steps") -> None:
    """`scheduler.set_timesteps`. Raises SettingsError with the largest number that the scheduler takes."""
    error = _refused_steps(scheduler, steps)
    if error is None:
        return
    name, words = type(scheduler).__name__, one_line(error)
    most = next((n for n in range(steps - 1, 0, -1) if _refused_steps(scheduler, n) is None), None)
    allowed = f"what {name} takes ({words})" if most is None else f"{most} or fewer with {name}"
    raise SettingsError(option, steps, allowed) from error


def _refused_steps(scheduler, steps: int) -> Exception | None:
    try:
        scheduler.set_timesteps(steps)
    except Exception as error:
        return error
    return None


def one_line(error: Exception) -> str:
    """The first line of an error's words, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:LONGEST] if lines else type(error).__name__


def _raised_by_us(at: TracebackType | None) -> bool:
    """Whether the innermost Python frame is in a file of this package."""
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and at.tb_frame.f_globals.get("__name__", "").split(".")[0] == OURS
