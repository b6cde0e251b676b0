"""The host's own options, set for one job and put back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from modules.shared import opts
from sdxl_optim.unet.patching import replaced

_MISSING = object()


class HostOptions:
    """The host's options that are ours at present, also of generations inside generations."""

    def __init__(self):
        self._ours: list[tuple] = []  # (name, our value, what was there before)

    @contextmanager
    def held(self, name: str, value) -> Iterator[None]:
        """Context manager: the host's option has this value. Afterwards it is as before, also where its config lacked
        it, unless the user has changed it meanwhile. A config that is saved meanwhile has the user's value."""
        entry = name, value, opts.data.get(name, _MISSING)
        self._ours.append(entry)
        opts.data[name] = value  # not by `opts.set`: with --freeze-settings it is users who may not
        try:
            with replaced(opts, "save", lambda original: self._save):
                yield
        finally:
            self._ours.remove(entry)
            _put_back(opts.data, *entry)

    def _save(self, filename) -> None:
        kept = copy.copy(opts)
        kept.data = dict(opts.data)
        for entry in self._ours[::-1]:
            _put_back(kept.data, *entry)
        type(opts).save(kept, filename)


def override(p, name: str, value) -> None:
    """As if the request had asked for it by `override_settings`, where settings are not frozen. The host puts back what
    its config has, so it has to have it."""
    before = opts.data.setdefault(name, opts.get_default(name))
    try:
        setattr(opts, name, before)
    except (AssertionError, RuntimeError):  # as it would in the host, which would end the request
        return
    p.override_settings = {**p.override_settings, name: value}


def _put_back(data: dict, name: str, value, before) -> None:
    if data.get(name) != value:
        return
    if before is _MISSING:
        data.pop(name)
    else:
        data[name] = before
