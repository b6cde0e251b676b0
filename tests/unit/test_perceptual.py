"""LPIPS where the package and its weights are at hand, and what is said where they are not."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from sdxl_optim.bench import perceptual, quality
from sdxl_optim.bench.report import what_is_missing
from sdxl_optim.bench.results import Results, Row


class Distance(torch.nn.Module):
    """In place of the package's class, which takes weights: how far two pictures in [-1, 1] are from each other."""

    def __init__(self, net, verbose):
        super().__init__()
        assert (net, verbose) == ("alex", False)

    def forward(self, a, b):
        assert a.dtype == torch.float32
        assert a.shape == b.shape == (1, 3, 64, 64)
        return (a - b).abs().mean(dim=(1, 2, 3), keepdim=True)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder of torch's own, empty, and no package."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(perceptual, "has_package", lambda: False)
    perceptual._network.cache_clear()
    yield tmp_path / "hub"
    perceptual._network.cache_clear()


@pytest.fixture
def weights(hub):
    file = hub / "checkpoints" / perceptual.WEIGHTS
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    return file


@pytest.fixture
def package(monkeypatch, hub):
    monkeypatch.setattr(perceptual, "has_package", lambda: True)
    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=Distance))


def picture(level: int) -> Image.Image:
    return Image.fromarray(np.full((64, 64, 3), level, dtype=np.uint8))


def test_without_the_package(hub):
    assert "pip install lpips" in perceptual.missing()
    assert perceptual.lpips(picture(0), picture(1)) is None


def test_without_the_weights(package):
    assert perceptual.WEIGHTS in perceptual.missing()
    assert perceptual.lpips(picture(0), picture(1)) is None


def test_with_both(package, weights):
    assert perceptual.missing() == ""
    assert perceptual.lpips(picture(0), picture(51)) == pytest.approx(0.4)


@pytest.fixture
def results(tmp_path):
    results = Results.create(tmp_path, "x")
    results.append(Row("stock", stock=True), picture(0))
    results.append(Row("on"), picture(51))
    return results


def test_results_get_it_once_it_is_at_hand(results, hub, monkeypatch, request):
    rows = quality.compare_all(results)
    results.replace(rows)
    assert [r.lpips for r in rows] == [None, None]
    assert perceptual.missing() in what_is_missing(rows)
    for name in ("package", "weights"):
        request.getfixturevalue(name)
    rows = quality.compare_all(results)
    assert [r.lpips for r in rows] == pytest.approx([0, 0.4])
    assert not [line for line in what_is_missing(rows) if "LPIPS" in line]
    results.replace(rows)
    monkeypatch.setattr(quality, "lpips", None)  # what is there is not computed again
    assert quality.compare_all(results) == rows


def test_the_packages_own_network(hub, monkeypatch):
    """With random weights under the name that torchvision looks for."""
    lpips = pytest.importorskip("lpips")
    torchvision = pytest.importorskip("torchvision")
    monkeypatch.undo()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(hub))
    file = perceptual.weights_file()
    file.parent.mkdir(parents=True)
    torch.save(torchvision.models.alexnet().state_dict(), file)
    rng = np.random.default_rng(0)
    a, b = (Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(2))
    network = lpips.LPIPS(net="alex", verbose=False).eval()
    tensors = [lpips.im2tensor(np.asarray(p)) for p in (a, b)]
    with torch.no_grad():
        expected = float(network(*tensors))
    assert perceptual.lpips(a, b) == pytest.approx(expected, rel=1e-4)
    assert perceptual.lpips(a, a) == 0
