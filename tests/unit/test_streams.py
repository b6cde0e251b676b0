"""The streams that calls are captured on. There is no card here: that they are asked for, and how often."""

from contextlib import nullcontext

import pytest
import torch

from sdxl_optim.backends import cudagraph
from sdxl_optim.backends.cudagraph import CudaGraph, Streams


class Stream:
    def __init__(self, device):
        self.device = device

    def wait_stream(self, other):
        pass


@pytest.fixture
def made(monkeypatch):
    """The devices of the streams that were made."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return []


@pytest.fixture
def streams(made):
    def make(device):
        made.append(device)
        return Stream(device)

    return Streams(make)


def test_no_stream_is_made_anew_after_a_release(made, streams):
    """Each would keep a workspace of its own for ever."""
    for graphs in (CudaGraph(streams), CudaGraph(streams)):
        for _ in range(3):
            graphs.side_stream()
            graphs.release()
    assert made == [0]


def test_all_backends_share_them(made, monkeypatch):
    monkeypatch.setattr(cudagraph, "STREAMS", Streams(lambda device: made.append(device) or Stream(device)))
    assert CudaGraph().side_stream().stream is CudaGraph().side_stream().stream
    assert made == [0]


def test_each_device_has_its_own(made, streams, monkeypatch):
    CudaGraph(streams).side_stream()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    CudaGraph(streams).side_stream()
    assert made == [0, 1]


def test_a_failed_captures_streams_are_not_used_again(streams, made, monkeypatch):
    graphs = CudaGraph(streams)
    first = graphs.side_stream().stream
    for name, stub in {
        "graph_pool_handle": lambda: (0, 1),
        "synchronize": lambda: None,
        "current_stream": lambda: None,
        "stream": lambda stream: nullcontext(),
        "memory_reserved": lambda: 0,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stub)

    monkeypatch.setattr(cudagraph.memset_nodes, "new_graph", lambda: (None, False))

    def fails(*_):
        raise RuntimeError("invalid capture")

    monkeypatch.setattr(cudagraph, "_capture", fails)
    with pytest.raises(RuntimeError, match="invalid capture"):
        graphs.record(lambda tensors: list(tensors), [torch.zeros(1)])
    assert graphs.side_stream().stream is not first
    assert made == [0, 0, 0]
