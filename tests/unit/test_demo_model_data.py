"""The demo model's pictures, captions and token ids."""

import random

import numpy as np
import pytest
import torch

from demo_model import captions, data, tokenizer


def rows(seed, count, **options):
    rng = random.Random(seed)
    return torch.from_numpy(np.stack([data.rasterise(data.sample_scene(rng), rng, **options)[0] for _ in range(count)]))


def test_the_same_seed_draws_the_same_pictures():
    assert torch.equal(data.render(rows(5, 4), 64), data.render(rows(5, 4), 64))
    assert not torch.equal(data.render(rows(5, 4), 64), data.render(rows(6, 4), 64))


@pytest.mark.parametrize("shape", data.SHAPES)
def test_a_thing_is_drawn_in_its_place_and_colour(shape):
    scene = data.Scene((data.Thing(shape, "red", 8, "large"),), "white")
    row, micro = data.rasterise(scene, random.Random(0), vary=False)
    picture = data.render(torch.from_numpy(row)[None])[0]
    is_red = (picture[0] > 0.5) & (picture[1] < 0.35) & (picture[2] < 0.35)
    y, x = torch.nonzero(is_red, as_tuple=True)
    assert len(x) > 1000
    assert abs(x.float().mean() - 204) < 16
    assert abs(y.float().mean() - 204) < 16
    assert micro.tolist() == [256, 256, 0, 0, 256, 256]


def test_things_keep_apart():
    rng = random.Random(1)
    for _ in range(300):
        things = data.sample_scene(rng).things
        for i, a in enumerate(things):
            for b in things[i + 1 :]:
                gap = np.hypot(
                    data.CENTRES[a.column] - data.CENTRES[b.column], data.CENTRES[a.row] - data.CENTRES[b.row]
                )
                assert gap > data.RADIUS[a.size] + data.RADIUS[b.size]


def test_training_never_sees_a_withheld_combination():
    rng = random.Random(2)
    for _ in range(2000):
        scene = data.sample_scene(rng)
        assert not data.is_held(scene.things)
        told = captions.caption(scene, rng, wrong=0.5, full=True).things
        full = [t for t in told if None not in (t.cell, t.colour)]
        assert len(full) != len(scene.things) or not data.is_held(full)


def test_held_prompts_name_withheld_combinations():
    prompts = captions.held_prompts()
    assert len(set(prompts)) == 64
    for prompt in prompts:
        assert data.is_held(captions.parse(prompt)[0])


def test_parse_reads_back_every_caption():
    rng = random.Random(3)
    for _ in range(2000):
        told = captions.caption(data.sample_scene(rng, held=None), rng, wrong=0.1)
        assert captions.parse(told.text) == (told.things, told.background)


@pytest.mark.parametrize("prompt", ["", "a photograph of a cat"])
def test_a_prompt_that_names_nothing_is_refused(prompt):
    with pytest.raises(ValueError, match=r"prompt: .* names no shape; allowed are"):
        captions.parse(prompt)


def test_token_ids_are_clips():
    expected = [320, 736, 7117, 525, 518, 1823, 267, 320, 1746, 3999]  # from CLIP's own vocabulary
    assert tokenizer.ids_of("a red circle on the left, a blue square") == expected
    ids = tokenizer.encode("A  Photo of three STRIPED triangles!", pad=0)
    assert ids[:9] == [49406, 320, 1125, 539, 2097, 22192, 924, 18627, 256]
    assert ids[9:11] == [49407, 0]
    assert len(ids) == 77


def test_unknown_words_fall_into_known_pieces():
    known = set(tokenizer.vocabulary().values())
    for text in ("xylophone", "ünïcode", "(word:1.3) [x|y] <lora:z>", "x" * 200):
        assert set(tokenizer.encode(text)) <= known
        assert len(tokenizer.encode(text)) == 77


def test_transformers_reads_the_written_vocabulary(tmp_path):
    transformers = pytest.importorskip("transformers")
    for pad, name in zip(tokenizer.PADS, ("<|endoftext|>", "!"), strict=True):
        tokenizer.write_vocabulary(tmp_path / str(pad), name)
        theirs = transformers.CLIPTokenizer.from_pretrained(str(tmp_path / str(pad)))
        for prompt in [*captions.held_prompts(16), ""]:
            ids = theirs(prompt, padding="max_length", max_length=77, truncation=True).input_ids
            assert ids == tokenizer.encode(prompt, pad)
