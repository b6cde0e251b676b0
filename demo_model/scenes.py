"""Endless scenes for training, from worker processes: numbers to render from, captions' tokens, and labels."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import torch

from . import captions, data, tokenizer
from .trainer import ABSENT

CAPTIONS = 4  # of each scene
TEXT_GROUPS = {
    "shape": len(data.SHAPES),
    "colour": len(data.COLOURS),
    "cell": len(data.CELLS) + 1,
    "size": len(data.SIZES) + 1,
    "texture": len(data.TEXTURES) + 1,
}
LABELS = len(TEXT_GROUPS) + 1  # and the token at which a thing's words end


class Scenes(torch.utils.data.IterableDataset):
    """Endless chunks of N scenes.

    rows [N, ROW], micro [N, 6], ids [N, CAPTIONS, 77], cells [N, 9, 5] (see `cell_labels`); with `labels` also what the
    captions claim, labels [N, CAPTIONS, 4, LABELS]. `dense`: rows alone, of scenes full of things.
    """

    def __init__(self, seed: int, chunk: int, labels: bool = False, dense: bool = False):
        super().__init__()
        self.seed, self.chunk, self.labels, self.dense = seed, chunk, labels, dense

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(self.seed * 1000 + (worker.id if worker else 0))
        while True:
            yield self._dense(rng) if self.dense else self._chunk(rng)

    def _dense(self, rng: random.Random) -> dict[str, torch.Tensor]:
        found = [data.rasterise(data.sample_dense(rng), rng)[0] for _ in range(self.chunk)]
        return {"rows": torch.from_numpy(np.stack(found))}

    def _chunk(self, rng: random.Random) -> dict[str, torch.Tensor]:
        rows, micros, ids, labels, cells = [], [], [], [], []
        for _ in range(self.chunk):
            scene = data.sample_scene(rng)
            row, micro = data.rasterise(scene, rng)
            told = [captions.caption(scene, rng, captions.WRONG) for _ in range(CAPTIONS)]
            rows.append(row)
            micros.append(micro)
            ids.append([tokenizer.encode(c.text) for c in told])
            labels.append([caption_labels(c) for c in told] if self.labels else [])
            cells.append(cell_labels(scene))
        chunk = {"rows": np.stack(rows), "micro": np.stack(micros), "ids": np.array(ids, np.int32)}
        chunk["cells"] = np.array(cells, np.int64)
        if self.labels:
            chunk["labels"] = np.array(labels, np.int64)
        return {name: torch.from_numpy(values) for name, values in chunk.items()}


def scenes(seed: int, chunk: int, workers: int, **options) -> Iterator[dict[str, torch.Tensor]]:
    """Chunks from worker processes (none: from this one)."""
    loader = torch.utils.data.DataLoader(
        Scenes(seed, chunk, **options),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


def caption_labels(caption: captions.Caption) -> list[list[int]]:
    """For each of three things, in the caption's order: classes by TEXT_GROUPS and its last token. Then background."""
    out = []
    for thing, end in zip(caption.things, caption.ends, strict=True):
        out.append(
            [
                data.SHAPES.index(thing.shape),
                data.COLOURS.index(thing.colour),
                len(data.CELLS) if thing.cell is None else thing.cell,
                data.SIZES.index(thing.size) if thing.size else len(data.SIZES),
                data.TEXTURES.index(thing.texture) if thing.texture else len(data.TEXTURES),
                len(tokenizer.ids_of(caption.text[:end])),
            ]
        )
    out += [[ABSENT] * (LABELS - 1) + [0]] * (data.MAX_THINGS - len(out))
    names = data.BACKGROUNDS
    background = names.index(caption.background) if caption.background else len(names)
    return [*out, [background, *[ABSENT] * (LABELS - 2), 0]]


def cell_labels(scene: data.Scene) -> list[list[int]]:
    """For each of nine cells: present, shape, colour, texture, size."""
    out = [[0, *[ABSENT] * 4] for _ in data.CELLS]
    for t in scene.things:
        kinds = (data.SHAPES.index(t.shape), data.COLOURS.index(t.colour), data.TEXTURES.index(t.texture))
        out[t.cell] = [1, *kinds, data.SIZES.index(t.size)]
    return out
