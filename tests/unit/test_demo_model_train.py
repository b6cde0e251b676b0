"""The demo model's training: its parts, on a CPU and in seconds."""

import argparse
import json
import random

import pytest
import torch

from demo_model import captions, check, data

pytest.importorskip("diffusers")

from demo_model import networks, scenes, train, train_check, train_unet, train_vae, trainer


def run_in(folder, **more) -> trainer.Run:
    options = {"state": folder, "device": "cpu", "seed": 0, "toy": True, "workers": 0, "compile": False, "wait": False}
    return trainer.Run(argparse.Namespace(**options | {"within": 1e9, "stop_after": 1e9} | more))


def line_trainer(run, steps=40):
    """Learns y = 2x with a head beside it."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"net": torch.nn.Linear(1, 1), "head": torch.nn.Linear(1, 1)})

    def loss(x):
        error = (model["net"](x) - 2 * x).square().mean()
        return error + 0.01 * model["head"](x).square().mean(), error

    return trainer.Trainer("line", model, loss, trainer.Stage(8, steps, 1e9, 0.1, ema=0.5), run, prefix="net.")


def batches():
    generator = torch.Generator().manual_seed(1)
    while True:
        yield (torch.randn(8, 1, generator=generator),)


def test_a_stage_learns_logs_and_leaves_its_head_behind(tmp_path):
    run = run_in(tmp_path)
    trainer.finish(line_trainer(run, 200), batches())
    found = trainer.load_pieces(tmp_path, "line")
    assert sorted(found) == ["bias", "weight"]
    assert found["weight"].item() == pytest.approx(2, abs=0.1)
    rows = (tmp_path / "losses.csv").read_text().splitlines()
    assert rows[0] == "stage,step,seconds,loss"
    assert float(rows[-1].split(",")[-1]) < float(rows[1].split(",")[-1])


def test_a_stopped_stage_goes_on_where_it_was(tmp_path):
    first = line_trainer(run_in(tmp_path))
    stream = batches()
    for _ in range(10):
        first._call(next(stream))
        first.step += 1
    first.save(tmp_path)
    second = line_trainer(run_in(tmp_path))
    second.resume(tmp_path)
    assert second.step == 10
    for a, b in zip(first.parameters, second.parameters, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(first.averages, second.averages, strict=True):
        assert torch.allclose(a, b, atol=1e-3)
    assert sorted(trainer.unfinished(tmp_path, "line")) == ["bias", "weight"]


def test_a_run_out_of_time_saves_its_state(tmp_path):
    run = run_in(tmp_path, stop_after=-1.0)
    trainer.finish(line_trainer(run), batches())
    assert not run.is_done("line")
    assert json.loads((tmp_path / "line-state.json").read_text())["step"] == 0


@pytest.mark.parametrize("kernel", [1, 3])
def test_gradients_are_laid_out_as_their_parameters(kernel):
    p = torch.randn(8, 4, kernel, kernel).to(memory_format=torch.channels_last)
    p = torch.empty_strided(p.shape, (4 * kernel**2, 1, 4 * kernel, 4)).copy_(p)
    grad = torch.randn(8, 4, kernel, kernel)
    found = trainer.laid_out_as(p, grad)
    assert found.stride() == p.stride()
    assert torch.equal(found, grad)
    assert (found.data_ptr() == grad.data_ptr()) == (kernel == 1)
    assert trainer.laid_out_as(p, found) is found
    assert trainer.laid_out_as(p, None) is None


def test_pieces_are_small_and_the_first_comes_last(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "PIECE", 100)
    tensors = {name: torch.full((20,), float(i)) for i, name in enumerate("abc")}
    trainer.save_pieces(tensors, tmp_path, "x")
    assert len(list(tmp_path.glob("x-*.safetensors"))) == 3
    assert {k: v[0].item() for k, v in trainer.load_pieces(tmp_path, "x").items()} == {"a": 0, "b": 1, "c": 2}
    trainer.save_pieces({"a": torch.ones(1)}, tmp_path, "x")
    assert len(list(tmp_path.glob("x-*.safetensors"))) == 1


def test_the_clock_counts_over_runs(tmp_path):
    (tmp_path / "clock.json").write_text('{"seconds": 100.0}')
    clock = train.Clock(tmp_path)
    assert 100 <= clock.seconds() < 101
    clock.save()
    assert json.loads((tmp_path / "clock.json").read_text())["seconds"] >= 100


def test_every_stage_is_in_one_lane():
    assert sorted(name for lane in train.LANES for name in lane) == sorted(train.TRAIN)
    assert set(train.STAGES) == set(train.TRAIN)
    before_the_unet = train.STAGES["vae"].seconds + train.RESERVE
    assert before_the_unet < train.parser().get_default("within") / 2


def test_the_middle_of_the_unet_tells_and_the_unet_stays_as_it_is():
    torch.manual_seed(0)
    unet = networks.unet()
    context, pooled, numbers = torch.randn(1, 77, 320), torch.randn(1, 256), torch.zeros(1, 6)
    x, t = torch.randn(1, 4, 32, 32), torch.tensor([500])
    names = set(unet.state_dict())
    added = {"text_embeds": pooled, "time_ids": numbers}
    with torch.no_grad():
        before = unet(x, t, context, added_cond_kwargs=added).sample
    model = train_unet.Telling(unet)
    out, logits = model(x, t, context, pooled, numbers)
    assert torch.equal(out, before)
    assert logits.shape == (1, 9, sum(check.GROUPS.values()))
    labels = torch.tensor([scenes.cell_labels(data.Scene((data.Thing("star", "red", 4),)))])
    train_check.cell_loss(logits, labels).backward()
    assert unet.down_blocks[2].attentions[0].transformer_blocks[0].attn2.to_v.weight.grad.abs().sum() > 0
    assert {k.removeprefix("unet.") for k in model.state_dict() if k.startswith("unet.")} == names


def test_cell_loss_is_least_for_the_truth():
    scene = data.Scene((data.Thing("ring", "blue", 0, "large", "dotted"), data.Thing("star", "red", 8)))
    labels = torch.tensor([scenes.cell_labels(scene)])
    logits = torch.zeros(1, 9, sum(check.GROUPS.values()))
    logits[..., 0] = 20.0 * (2 * labels[..., 0] - 1)
    at = 1
    for i, (_, count) in enumerate(list(check.GROUPS.items())[1:], 1):
        for cell in (0, 8):
            logits[0, cell, at + int(labels[0, cell, i])] = 20.0
        at += count
    assert train_check.cell_loss(logits, labels) < 1e-3
    assert train_check.cell_loss(-logits, labels) > 10


def test_dense_scenes_are_full():
    rng = random.Random(0)
    for _ in range(50):
        things = data.sample_dense(rng).things
        assert len({t.cell for t in things}) == data.MAX_THINGS


def test_captions_labels_are_what_they_claim():
    rng = random.Random(1)
    for _ in range(50):
        told = captions.caption(data.sample_scene(rng), rng, 0.2)
        labels = scenes.caption_labels(told)
        for thing, row in zip(told.things, labels, strict=False):
            assert data.SHAPES[row[0]] == thing.shape
            assert data.COLOURS[row[1]] == thing.colour
            assert row[2] == (len(data.CELLS) if thing.cell is None else thing.cell)


def test_picture_loss_minds_the_colour_at_large():
    target, noise = torch.zeros(1, 3, 32, 32), 0.1 * torch.randn(1, 3, 32, 32).sign()
    assert train_vae.picture_loss(target, target) == 0
    flat = target + 0.1  # as far from the target in every pixel as the noise, without its edges
    rest = [train_vae.picture_loss(x, target) - train_vae.edges(x).abs().mean() for x in (flat, noise)]
    assert rest[0] > rest[1] + 0.05
