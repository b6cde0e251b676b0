"""Training of the two text encoders."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from . import data, networks
from .scenes import CAPTIONS, TEXT_GROUPS, scenes
from .trainer import ABSENT, Run, Stage, Trainer, finish


def train_text(run: Run, stage: Stage) -> None:
    """Both text encoders learn to tell, at a thing's last word and in the pooled output, what the caption claims."""
    encoders = networks.TextEncoders().to(run.device)
    groups = list(TEXT_GROUPS.values())
    heads = nn.ModuleDict(
        {
            "one": nn.Linear(networks.TEXT.width, sum(groups)),
            "two": nn.Linear(networks.TEXT_2.width, sum(groups)),
            "pooled": nn.Linear(networks.TEXT_2.projection, data.MAX_THINGS * sum(groups) + len(data.BACKGROUNDS) + 1),
        }
    ).to(run.device)

    def cross_entropy(logits, labels):
        parts = logits.float().split(groups, -1)
        return sum(
            F.cross_entropy(part.flatten(0, 1), labels[..., i].flatten(), ignore_index=ABSENT)
            for i, part in enumerate(parts)
        )

    def loss(ids, labels):
        context, pooled = encoders(ids)
        things, background = labels[:, :-1], labels[:, -1, 0]
        ends = things[..., -1, None].expand(-1, -1, context.shape[-1])
        one, two = context.gather(1, ends).split([networks.TEXT.width, networks.TEXT_2.width], -1)
        whole = heads["pooled"](pooled)
        whole, ground = whole[:, : -len(data.BACKGROUNDS) - 1], whole[:, -len(data.BACKGROUNDS) - 1 :]
        whole = whole.view(len(ids), data.MAX_THINGS, -1)
        told = cross_entropy(heads["one"](one), things) + cross_entropy(heads["two"](two), things)
        total = told + cross_entropy(whole, things) + F.cross_entropy(ground.float(), background)
        return total, total

    def batches():
        for chunk in map(run.to_device, scenes(run.seed + 1, stage.batch // CAPTIONS, 2 * run.workers, labels=True)):
            yield chunk["ids"].flatten(0, 1).long(), chunk["labels"].flatten(0, 1)

    both = nn.ModuleDict({"encoders": encoders, "heads": heads})
    trainer = Trainer("text", both, loss, stage, run, prefix="encoders.")
    trainer.resume(run.state)
    finish(trainer, batches())
