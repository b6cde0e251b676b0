"""What can be seen of a request while it is made."""

from __future__ import annotations


class RequestObserver:
    """Told of a request's events, in this order: the sampler's once for each pass, the end once for the request, the
    others once for each batch. A request that fails ends without a word."""

    def sampling_begins(self, p) -> None:
        """The sampler is made, and prepares its loop next."""

    def loop_begins(self, p) -> None:
        """The sampler's loop begins. (Only where the extension is on.)"""

    def loop_ends(self, p) -> None:
        """The sampler's loop has ended, or failed. (Only where the extension is on.)"""

    def sampling_ends(self, p, latents) -> None:
        """All passes are done. latents: a tensor, or, after a hires pass, the pictures that the host has decoded."""

    def decode_ends(self, p) -> None:
        """The batch's pictures are there."""

    def ends(self, p, processed) -> None:
        """The request has come to its end. processed: the host's answer."""
