"""The tab "SDXL Optim" at 256×256 and 2 steps: a benchmark started, its results listed, compared and deleted."""

import numpy as np
import pytest

pytest.importorskip("playwright")

from webui.bench_tab import ID, BenchTab
from webui.plot import results_of

from .seen import Seen, seen

REQUEST = {"prompt": "a fox", "negative_prompt": "", "seed": 5, "steps": 2, "width": 256, "height": 256}
CASES = {
    "stock": Seen(2, 4, 2, 0),
    "cutoff 0.5": Seen(2, 3, 2, 0),
    "freeu+deepcache 2+tiny": Seen(2, 4, 1, 1),
}


def test_a_benchmark_from_its_start_to_its_deletion(forge, client, page):
    stock = client.txt2img(**REQUEST)[0]
    before, state = len(results_of(forge)), client.get("/probe/state")
    tab = BenchTab(page)
    tab.fill_in(cases="\n".join([*list(CASES)[1:], "staged", "cudagraph"]), prompts="5: a fox", steps=2, width=256,
                height=256)  # fmt: skip
    client.post("/probe/watch")
    tab.press("start")
    tab.wait_for("status", "Finished: 3 pictures")
    counts = seen(client.get("/probe/calls"))
    client.post("/probe/off")
    assert counts == list(CASES.values())

    assert len(results_of(forge)) == before + 1
    results = results_of(forge)[0]
    rows = {row.case: row for row in results.rows()}
    assert list(rows) == [*CASES, "staged", "cudagraph"]
    for name, count in CASES.items():
        row = rows[name]
        same = np.array_equal(np.asarray(results.picture(row.picture)), stock.pixels)
        assert same == row.stock == (name == "stock")
        assert (row.calls, row.rows, row.stock_rows) == (2, count.rows, 4)
        assert row.seconds > row.sampling_seconds > 0
    last = rows["freeu+deepcache 2+tiny"]
    assert (last.full, last.cached, last.decoder) == (1, 1, "TAESD")
    assert "moves the model's parts itself" in rows["staged"].notes
    assert "moves and casts weights in each call" in rows["cudagraph"].notes
    for name in ("staged", "cudagraph"):
        assert rows[name].notes.startswith("not run: ")
        assert rows[name].seconds is None

    shown = " ".join(" ".join(line) for line in tab.table())
    assert [name for name in CASES if name not in shown] == [], shown
    assert [name for name in rows if f"| {name} |" not in tab.markdown()] == []  # gradio 4's table: what is in sight
    assert tab.page.locator(f"#{ID}_gallery img").count() >= 3
    link = tab.page.locator(f"#{ID}_about a").first.get_attribute("href")
    assert "<svg" in page.request.get(f"{forge.url}/{link}").text()

    tab.press("delete")
    tab.wait_for("status", f"{results.folder.name} is deleted")
    assert not results.folder.exists()
    assert len(results_of(forge)) == before
    assert page.errors == []
    again = client.txt2img(**REQUEST)[0]
    assert np.array_equal(again.pixels, stock.pixels)
    assert again.infotext == stock.infotext
    assert client.get("/probe/state") == state
