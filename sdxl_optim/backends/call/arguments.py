"""The arguments of a UNet call as tensors and constants."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from sdxl_optim.backends.api import Tensors


@dataclass(frozen=True)
class Signature:
    """A call's arguments without the tensors' contents. Calls of equal signatures can share one prepared call."""

    structure: str
    constants: tuple
    tensors: tuple


class Arguments:
    """The arguments of one UNet call, split into tensors and the rest."""

    def __init__(self, args: tuple, kwargs: dict):
        leaves, self._structure = tree_flatten((args, kwargs))
        self._rest = [None if isinstance(leaf, torch.Tensor) else (leaf,) for leaf in leaves]
        self.tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def signature(self) -> Signature:
        """Raises TypeError if an argument that is no tensor can't be hashed."""
        shapes = tuple((tuple(t.shape), t.dtype, t.device) for t in self.tensors)
        signature = Signature(str(self._structure), tuple(self._rest), shapes)
        hash(signature)
        return signature

    def put_together(self, tensors: Tensors) -> tuple[tuple, dict]:
        """(args, kwargs) with `tensors` in place of this call's."""
        rest = iter(tensors)
        leaves = [next(rest) if kept is None else kept[0] for kept in self._rest]
        return tree_unflatten(leaves, self._structure)
