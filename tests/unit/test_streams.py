"""The streams that calls are captured on. There is no card here: that they are asked for, and how often."""

from contextlib import nullcontext

import pytest
import torch

from sdxl_optim.backends import cudagraph
from sdxl_optim.backends.cudagraph import CudaGraph


@pytest.fixture
def made(monkeypatch):
    """The devices of the streams that were made."""
    devices = []

    class Stream:
        def __init__(self, device):
            devices.append(device)

        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    cudagraph._stream_of.cache_clear()
    yield devices
    cudagraph._stream_of.cache_clear()


def test_no_stream_is_made_anew_after_a_release(made):
    """Each would keep a workspace of its own for ever."""
    for graphs in (CudaGraph(), CudaGraph()):
        for _ in range(3):
            graphs.side_stream()
            graphs.release()
    assert made == [0]


def test_each_device_has_its_own(made, monkeypatch):
    CudaGraph().side_stream()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    CudaGraph().side_stream()
    assert made == [0, 1]


def test_a_failed_captures_streams_are_not_used_again(made, monkeypatch):
    graphs = CudaGraph()
    first = graphs.side_stream().stream
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
    monkeypatch.setattr(cudagraph.memset_nodes, "new_graph", lambda: (None, False))

    def fails(*_):
        raise RuntimeError("invalid capture")

    monkeypatch.setattr(cudagraph, "_capture", fails)
    with pytest.raises(RuntimeError, match="invalid capture"):
        graphs.record(lambda tensors: list(tensors), [torch.zeros(1)])
    assert graphs.side_stream().stream is not first
