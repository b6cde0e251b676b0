"""X/Y/Z plots with our axes, by API: each cell's rows and calls by the probe's hooks, stock cells that are stock, and
the report."""

import numpy as np
import pytest
from webui.client import REQUEST, same
from webui.live import notes, reported
from webui.plot import PREFIX, in_order, plot, results_of, row_of

from .seen import Seen, seen

X = (f"{PREFIX}DeepCache interval", "off, 2, 3")
Y = (f"{PREFIX}CFG cutoff stop", "off, 0.5")
FREEU = (f"{PREFIX}FreeU", "on, off")
COMBINATIONS = (f"{PREFIX}combination", "stock, freeu+cutoff 0.5+deepcache 3, tiny, staged")
SMALL = {**REQUEST, "width": 64, "height": 64, "steps": 6}


@pytest.fixture(scope="module")
def stock(forge):
    forge.client.txt2img(**SMALL)
    return forge.client.txt2img(**SMALL)[0], forge.client.get("/probe/state")


@pytest.fixture
def drawn(forge, client, stock):
    """`drawn(x, y)`: the plot, what the hooks saw of each cell, and the rows in the newest result."""

    def draw(x, *more, **request):
        before = len(results_of(forge))
        client.post("/probe/watch")
        made = plot(client, x, *more, **{**SMALL, **request})
        counts = seen(client.get("/probe/calls"))
        client.post("/probe/off")
        assert len(results_of(forge)) == before + 1
        return made, counts, results_of(forge)[0]

    yield draw
    assert same(client.txt2img(**SMALL)[0], stock[0])
    assert client.get("/probe/state") == stock[1]


def test_deepcache_by_cutoff(drawn, stock):
    made, counts, results = drawn(X, Y)
    rows = results.rows()
    assert counts == [
        Seen(6, 12, 6, 0), Seen(6, 12, 3, 3), Seen(6, 12, 2, 4),
        Seen(6, 9, 6, 0), Seen(6, 9, 3, 3), Seen(6, 9, 2, 4),
    ]  # fmt: skip
    assert len(rows) == len(made.cells) == 6
    for axes, cell, count in zip(in_order(X, Y), made.cells, counts, strict=True):
        row = row_of(rows, axes)
        assert np.array_equal(np.asarray(results.picture(row.picture)), cell.pixels)
        assert (row.calls, row.rows, row.stock_rows) == (6, count.rows, 12)
        assert row.stock == (set(axes.values()) == {"off"}) == np.array_equal(cell.pixels, stock[0].pixels)
        if not row.stock:
            assert (row.full, row.cached) == (count.full, count.cached)
            assert int(reported(cell)[0]["rows"]) == count.rows
        assert row.mad is not None
        assert row.seconds > row.sampling_seconds > 0 < row.decode_seconds
    assert made.cells[0].infotext == stock[0].infotext
    assert (results.folder / "report.html").is_file()


def test_freeu(drawn, stock):
    made, counts, results = drawn(FREEU)
    assert counts == [Seen(6, 12, 6, 0)] * 2
    assert reported(made.cells[0])[0]["freeu"] == "6"
    assert not np.array_equal(made.cells[0].pixels, stock[0].pixels)
    assert same(made.cells[1], stock[0])
    assert [row.stock for row in results.rows()] == [False, True]


def test_combinations_and_what_is_refused_in_a_cell(drawn, stock):
    made, counts, results = drawn(COMBINATIONS)
    first, together, tiny, staged = made.cells
    assert counts == [Seen(6, 12, 6, 0), Seen(6, 9, 2, 4), Seen(6, 12, 6, 0), Seen(6, 12, 6, 0)]
    assert same(first, stock[0])
    assert "VAE Decoder: TAESD" in tiny.infotext
    assert "Memory offload refused: " in notes(staged)
    assert np.array_equal(staged.pixels, stock[0].pixels)
    rows = results.rows()
    assert [row.decoder for row in rows] == ["Full", "Full", "TAESD", "Full"]
    assert "Memory offload refused: " in rows[3].notes
    assert reported(together)[0]["freeu"] == "2"


def test_the_picture_to_compare_with_is_made(drawn, stock):
    """Where no cell is stock, one more is made and is in no cell."""
    made, counts, results = drawn((f"{PREFIX}DeepCache interval", "2"))
    assert counts == [Seen(6, 12, 3, 3), Seen(6, 12, 6, 0)]
    assert len(made.cells) == 1
    reference = next(row for row in results.rows() if row.stock)
    assert np.array_equal(np.asarray(results.picture(reference.picture)), stock[0].pixels)
