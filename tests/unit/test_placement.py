"""The owner of the placement in the WebUI, of which the real one is tried in tests/webui/test_memory.py."""

import importlib
import sys
from contextlib import ExitStack
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from sdxl_optim.planning.plan import plan_request
from sdxl_optim.report import JobReport
from sdxl_optim.sampling.facts import RequestFacts
from sdxl_optim.settings import Memory, from_dict

NAME = "sdxl_optim.hosts.webui.placement"


def stub(name: str, **attributes) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(attributes)
    return module


def make_model():
    conditioner, unet, vae = nn.Linear(4, 4), nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))
    model = nn.Module()
    model.conditioner, model.model, model.first_stage_model = conditioner, nn.Module(), vae
    model.model.diffusion_model = unet
    return model.requires_grad_(False)


class ModelData:
    """As the WebUI's SdModelData: the one place that knows which model is loaded."""

    def __init__(self, shared):
        self.shared = shared

    def set_sd_model(self, model, already_loaded=False):
        self.shared.sd_model = model


@pytest.fixture
def host(monkeypatch):
    """The module, with stand-ins for the WebUI's modules and for ours that need more of them."""
    shared = stub("modules.shared", sd_model=make_model(), opts=SimpleNamespace(sd_vae_decode_method="Full"))
    devices = stub("modules.devices", device=torch.device("cpu"), torch_gc=lambda: None, dtype=torch.float32)
    lowvram = stub("modules.lowvram", is_enabled=lambda model: False)
    sd_models = stub("modules.sd_models", model_data=ModelData(shared))
    package = stub("modules", shared=shared, devices=devices, lowvram=lowvram, sd_models=sd_models)
    for module in (package, shared, devices, lowvram, sd_models):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    ours = {
        "lora": {"unmerge": lambda layer: None, "merge_pending": lambda layer: False, "merge": lambda layer: None},
        "lowvram": {"HostLowvram": None, "loads_into_main_memory": lambda: False},
        "peaks": {"HighWater": None},
        "vae": {"dtype_of": lambda precision: torch.float16},
    }
    parent = importlib.import_module("sdxl_optim.hosts.webui")
    for name, attributes in ours.items():
        module = stub(f"sdxl_optim.hosts.webui.{name}", **attributes)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(parent, name, module, raising=False)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    module = importlib.import_module(NAME)
    yield SimpleNamespace(placement=module, shared=shared, data=sd_models.model_data)
    sys.modules.pop(NAME, None)


class Case:
    """Requests by the owner, in the order of extension.py's calls."""

    def __init__(self, host):
        self.host = host
        self.weights = host.placement.WeightsOnHost()

    def begin(self, **memory):
        settings = from_dict({"memory": memory})
        plan = plan_request(settings, RequestFacts(device="cuda"))
        job = SimpleNamespace(settings=settings, report=JobReport(), undo=ExitStack(), decide=lambda p: plan)
        p = SimpleNamespace(width=64, height=64, batch_size=1)
        self.weights.undo_if_changed(settings.memory)
        self.weights.begin(p, job)
        self.weights.apply(p, job)
        return job

    def copy(self, gigabytes: float) -> None:
        self.weights.placement.mover.copies.bytes_copied += int(gigabytes * 1e9)

    def told(self, job) -> list[str]:
        self.weights.report_to(job.report)
        return job.report.memory.happened()


@pytest.fixture
def case(host):
    return Case(host)


def test_a_report_has_the_bytes_of_its_own_request(case):
    for moved in (14.5, 8.0, 7.9, 0.0):
        job = case.begin(offload="staged")
        case.copy(moved)
        assert case.told(job) == [f"staged offload moved {moved:.2f} GB"]
        job.undo.close()
        assert job.report.memory.happened() == [f"staged offload moved {moved:.2f} GB"]


def test_what_an_end_adds_is_in_the_report(case):
    job = case.begin(offload="model")
    case.copy(1.0)
    case.told(job)
    case.copy(0.5)
    job.undo.close()
    assert job.report.memory.happened() == ["model offload moved 1.50 GB"]


def test_a_request_inside_another_has_bytes_of_its_own(case):
    outer = case.begin(offload="staged")
    case.copy(2.0)
    inner = case.begin(offload="staged", budget=3.0)
    case.copy(5.0)
    inner.undo.close()
    case.copy(0.25)
    outer.undo.close()
    assert inner.report.memory.happened() == ["staged offload moved 5.00 GB"]
    assert outer.report.memory.happened() == ["staged offload moved 2.25 GB"]


def test_what_was_moved_of_a_model_before_the_refiner_counts(case):
    job = case.begin(offload="staged")
    case.copy(2.0)
    case.host.data.set_sd_model(make_model(), already_loaded=True)
    assert case.weights.placement.model is case.host.shared.sd_model
    case.copy(1.0)
    assert case.told(job) == ["staged offload moved 3.00 GB"]


def test_a_model_that_is_taken_up_again_is_placed_during_a_request_alone(case):
    base, refiner = case.host.shared.sd_model, make_model()
    job = case.begin(offload="model")
    assert case.weights.placement.model is base
    case.host.data.set_sd_model(refiner)  # a new one, for which there is a callback
    assert case.weights.placement.model is base
    case.weights.model_loaded(refiner)
    assert case.weights.placement.model is refiner
    case.host.data.set_sd_model(base, already_loaded=True)
    assert case.weights.placement.model is base
    job.undo.close()
    assert vars(case.host.data) == {"shared": case.host.shared}
    case.host.data.set_sd_model(refiner, already_loaded=True)
    assert case.weights.placement.model is base


def test_after_a_request_inside_another_the_outer_one_is_served_again(case):
    outer = case.begin(offload="staged")
    inner = case.begin(offload="sequential")
    assert case.weights.placement.mover.policy.name == "sequential"
    case.host.data.set_sd_model(make_model(), already_loaded=True)
    assert case.weights.placement.mover.policy.name == "sequential"
    inner.undo.close()
    case.host.data.set_sd_model(make_model(), already_loaded=True)
    assert case.weights.placement.mover.policy.name == "staged"
    assert case.weights.placement.model is case.host.shared.sd_model
    outer.undo.close()


def test_it_is_kept_for_the_same_settings_and_undone_for_others(case):
    first = case.begin(offload="staged")
    placement = case.weights.placement
    first.undo.close()
    second = case.begin(offload="staged", budget=5.0)  # which is one request's own
    assert case.weights.placement is placement
    assert placement.mover.meter.budget == 5.0
    second.undo.close()
    hooks = sum(len(m._forward_pre_hooks) for m in case.host.shared.sd_model.modules())
    case.weights.undo_if_changed(Memory())
    assert case.weights.placement is None
    assert hooks > sum(len(m._forward_pre_hooks) for m in case.host.shared.sd_model.modules()) == 0


def test_other_weights_loaded_into_the_model_undo_it(case):
    job = case.begin(offload="staged")
    case.copy(1.0)
    model = case.host.shared.sd_model
    model.load_state_dict(model.state_dict())
    assert case.weights.placement is None
    case.weights.model_loaded(model)
    assert case.weights.placement.model is model
    assert case.told(job) == ["staged offload moved 1.00 GB"]
