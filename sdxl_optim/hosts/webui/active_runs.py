"""The runs that are sampling at present, and how a call finds the one that it belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sdxl_optim.run import Run


class ActiveRuns:
    """Innermost last; one, but for scripts that generate inside a generation."""

    def __init__(self):
        self._samplings: list[tuple[object, Run]] = []  # sampler, run

    def __bool__(self) -> bool:
        return bool(self._samplings)

    def run_of(self, denoiser) -> Run | None:
        """The run that this CFGDenoiser's calls belong to."""
        sampler = getattr(denoiser, "sampler", None)
        return next((run for its_sampler, run in self._samplings if its_sampler is sampler), None)

    def foreign_call_begins(self) -> None:
        """A call that belongs to no run begins, perhaps inside a generation of ours, whose run shall not take it for
        one of its own."""
        if self._samplings:
            self._samplings[-1][1].foreign_call_begins()

    @contextmanager
    def sampling(self, sampler, run: Run) -> Iterator[None]:
        """Context manager: the calls of `sampler` belong to `run`."""
        entry = sampler, run
        self._samplings.append(entry)
        try:
            yield
        finally:
            self._samplings.remove(entry)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Context manager: another loop begins inside these, which it shall not notice."""
        runs = [run for _, run in self._samplings]
        for run in runs:
            run.suspend()
        try:
            yield
        finally:
            for run in runs:
                run.resume()
