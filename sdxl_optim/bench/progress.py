"""A benchmark's progress on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sdxl_optim.bench.runner import Progress


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """Context manager: a function that shows the runner's progress as tqdm's bar."""
    from tqdm import tqdm

    with tqdm(unit="picture") as bar:

        def show(progress: Progress) -> None:
            bar.total = progress.total
            bar.set_description(progress.doing, refresh=False)
            bar.update(progress.done - bar.n)
            bar.refresh()

        yield show
