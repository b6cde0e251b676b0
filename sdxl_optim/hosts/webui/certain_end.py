"""An end of a request that always comes.

The host's `postprocess` event stays away after an exception, also one of a checkpoint that fails to load. What
`process_images(p)` of modules/processing.py does in any case is its `finally`:

        # restore opts to original state
        if p.override_settings_restore_afterwards:
            for k, v in stored_opts.items():

The end is tied to that question: the attribute is replaced by an object whose `__bool__` answers it, after calling what
shall be called. It relies on the question being asked once in `process_images` itself, whose request is the local
variable `p`; tests/webui/test_ends.py holds the host's source against that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

ASKED = "if p.override_settings_restore_afterwards:"  # the host's line


def at_the_end_of(p, end: Callable[[], None]) -> None:
    """Call `end` when the process_images of this very `p` ends, whatever happened. A former `end` is forgotten."""
    forget(p)
    p.override_settings_restore_afterwards = _End(p, end, bool(p.override_settings_restore_afterwards))


def forget(p) -> None:
    """Put the plain answer back, on `p` or on a copy of one that has an end."""
    if isinstance(p.override_settings_restore_afterwards, _End):
        p.override_settings_restore_afterwards = p.override_settings_restore_afterwards.answer


class _End:
    """In the place of `override_settings_restore_afterwards`, whose value was `answer`."""

    def __init__(self, p, end: Callable[[], None], answer: bool):
        self.p, self.end, self.answer = p, end, answer

    def __bool__(self) -> bool:
        # A script may copy `p` and generate from the copy, without any scripts, while `p` itself is still at work.
        asking = sys._getframe(1).f_locals
        if "p" in asking and asking["p"] is self.p:
            if self.p.override_settings_restore_afterwards is self:
                forget(self.p)
            self.end()
        return self.answer
