"""An extension for tests alone: it watches the WebUI through hooks of its own and lists what is patched.

Endpoints under /probe: watch, calls, state, memory, checksum, fault, seed, reload, instance, off. With nothing
watched and no fault armed it holds no hook on any module.
"""

import functools
import gc
import hashlib
import sys
import time
import tracemalloc
import types
import uuid
import weakref
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from fastapi import Body, FastAPI, HTTPException
from torch.nn.modules import module as torch_module

from modules import (
    patches,
    paths_internal,
    script_callbacks,
    scripts,
    sd_hijack,
    sd_hijack_clip,
    sd_models,
    sd_samplers,
    sd_unet,
    sd_vae_taesd,
    shared,
)

INSTANCE = uuid.uuid4().hex
MODULE_PLACES = ("vae in half", "unet", "hires", "vae", "conds")
CALLBACK_PLACES = ("cfg_denoiser", "cfg_denoised", "cfg_after_cfg")
SCRIPT_PLACES = (
    "before_process", "process", "before_process_batch", "process_batch", "process_before_every_sampling",
    "before_hr", "post_sample", "postprocess_batch", "postprocess_batch_list", "postprocess_image",
    "postprocess",
)  # fmt: skip
WATCHED_PACKAGES = ("modules", "ldm", "sgm", "k_diffusion", "torch", "gradio")
KINDS = ("runtime", "oom", "nans", "interrupt", "skip", "stop", "sleep")


@dataclass
class Fault:
    where: str
    kind: str
    after: int
    seconds: float


@dataclass
class Watch:
    """What is counted since /probe/watch. `passes` has one entry per start of a sampler."""

    record: str = None
    calls: list = field(default_factory=list)
    passes: list = field(default_factory=list)
    tensors: list = field(default_factory=list)
    denoiser_step: int = None
    sigma: float = None


class Probe:
    def __init__(self):
        self.watch = None
        self.faults = []
        self.handles = []
        self.unets = weakref.WeakSet()
        self.block_of = weakref.WeakKeyDictionary()  # Conv2d or Linear -> name of its UNet block
        self.hires = False

    def attach(self, *more_models):
        """Hook every loaded UNet, and all modules by torch's global hook. Repeated calls add what is new."""
        if not self.handles:
            self.handles.append(torch_module.register_module_forward_pre_hook(self.on_module))
        for model in [*sd_models.model_data.loaded_sd_models, *more_models]:
            unet = model.model.diffusion_model
            if unet in self.unets:
                continue
            self.unets.add(unet)
            self.handles.append(unet.register_forward_pre_hook(self.on_unet, with_kwargs=True))
            self.handles.append(unet.register_forward_hook(self.on_unet_done))
            for block, leaf in unet_leaves(unet):
                self.block_of[leaf] = block

    def off(self):
        for handle in self.handles:
            handle.remove()
        self.__init__()

    def on_unet(self, unet, args, kwargs):
        x, timestep = args[0], args[1] if len(args) > 1 else kwargs["timesteps"]
        context = args[2] if len(args) > 2 else kwargs.get("context")
        if self.watch is not None:
            self.watch.calls.append({
                "rows": x.shape[0], "height": x.shape[2], "width": x.shape[3], "context": context.shape[1],
                "timestep": float(timestep[0]), "sigma": self.watch.sigma, "pass": len(self.watch.passes) - 1,
                "sampling_step": shared.state.sampling_step, "denoiser_step": self.watch.denoiser_step,
                "model": shared.sd_model.sd_checkpoint_info.model_name, "blocks": Counter(),
            })  # fmt: skip
            if self.watch.record:
                inputs = {"x": x, "timesteps": timestep, "context": context, "y": kwargs.get("y")}
                self.watch.tensors.append({k: v.clone() for k, v in inputs.items() if torch.is_tensor(v)})
        poison = self.due("unet") or (self.hires and self.due("hires"))
        return ((x * float("nan"), *args[1:]), kwargs) if poison else None

    def on_unet_done(self, unet, args, output):
        if self.watch is not None and self.watch.record:
            self.watch.tensors[-1]["output"] = output.clone()

    def on_module(self, module, args):
        block = self.block_of.get(module)
        if block is not None:
            if self.watch is not None and self.watch.calls:
                self.watch.calls[-1]["blocks"][block] += 1
        elif self.faults and is_vae_decoder(module):
            return (args[0] * float("nan"), *args[1:]) if self.due("vae") else None
        elif self.faults and is_last_of_vae(module) and args[0].dtype != torch.float32:
            return (args[0] * float("nan"), *args[1:]) if self.due("vae in half") else None
        elif self.faults and isinstance(module, sd_hijack_clip.TextConditionalModel):
            self.due("conds")
        return None

    def due(self, where):
        """Let an armed fault happen here. True when the caller has to spoil its input with NaNs."""
        for fault in [fault for fault in self.faults if fault.where == where]:
            fault.after -= 1
            if fault.after >= 0:
                continue
            self.faults.remove(fault)
            if fault.kind == "runtime":
                raise RuntimeError(f"probe fault: {where}")
            if fault.kind == "oom":
                raise torch.cuda.OutOfMemoryError(f"probe fault: {where}: CUDA out of memory")
            if fault.kind == "interrupt":
                shared.state.interrupt()
            if fault.kind == "skip":
                shared.state.skip()
            if fault.kind == "stop":  # after the picture that is being made
                shared.state.stop_generating()
            if fault.kind == "sleep":
                time.sleep(fault.seconds)
            return fault.kind == "nans"
        return False


probe = Probe()


def unet_leaves(unet):
    blocks = [(f"{part}.{i}", block) for part in ("input_blocks", "output_blocks")
              for i, block in enumerate(getattr(unet, part))]  # fmt: skip
    for name, block in [*blocks, ("middle_block", unet.middle_block)]:
        for leaf in block.modules():
            if isinstance(leaf, (torch.nn.Conv2d, torch.nn.Linear)):
                yield name, leaf


def is_vae_decoder(module):
    if isinstance(module, torch.nn.Sequential):  # TAESD's; its encoder has no clamp
        return len(module) > 0 and isinstance(module[0], sd_vae_taesd.Clamp)
    return type(module).__name__ == "Decoder" and hasattr(module, "conv_out")


def is_last_of_vae(module):
    return module is getattr(getattr(shared.sd_model.first_stage_model, "decoder", None), "conv_out", None)


class ProbeScript(scripts.Script):
    """Marks the passes, and raises wherever a script of somebody else's could."""

    def title(self):
        return "probe"

    def show(self, is_img2img):
        return scripts.AlwaysVisible


def script_method(where):
    def method(self, p, *args, **kwargs):
        if where == "process_before_every_sampling":
            probe.hires = p.is_hr_pass if hasattr(p, "is_hr_pass") else False
            if probe.watch is not None:
                probe.watch.passes.append({"hires": probe.hires, "steps": p.steps, "sampler": p.sampler_name})
        probe.due(where)

    return method


for place in SCRIPT_PLACES:
    setattr(ProbeScript, place, script_method(place))


def on_cfg_denoiser(params):
    if probe.watch is not None:
        probe.watch.denoiser_step, probe.watch.sigma = params.denoiser.step, float(params.sigma[0])
    probe.due("cfg_denoiser")


def on_model_loaded(model):
    if probe.handles:
        probe.attach(model)  # not yet in the host's list of loaded models


# ---- what an extension could leave behind


@functools.cache
def is_host_code(path):
    """Whether a code object's file is the WebUI's own or a package's, rather than an extension's."""
    homes = (Path(paths_internal.script_path) / "modules", Path(paths_internal.script_path) / "repositories")
    return path.startswith(("<", sys.prefix, sys.base_prefix, *map(str, homes)))


def code_place(value):
    """file:line of the code that runs, whatever name a wrapper took on; None for what is no function."""
    while isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, (staticmethod, classmethod, types.MethodType)):
        value = value.__func__
    if isinstance(value, property):
        value = value.fget
    if not isinstance(value, types.FunctionType):
        value = vars(type(value)).get("__call__")
    code = getattr(value, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else None


def name_of(function):
    function = getattr(function, "func", function)
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{getattr(function, '__module__', '?')}.{name}"


def foreign_code():
    """Functions from extensions that sit in modules or classes of the host, its repositories or torch."""
    found = {}
    for name, module in list(sys.modules.items()):
        if module is None or name.split(".")[0] not in WATCHED_PACKAGES:
            continue
        classes = {f"{name}.{key}": value for key, value in vars(module).items()
                   if isinstance(value, type) and value.__module__ == name}  # fmt: skip
        for owner, scope in [(name, module), *classes.items()]:
            for key, value in list(vars(scope).items()):
                place = None if isinstance(value, type) else code_place(value)
                if place and not is_host_code(place):
                    found[f"{owner}.{key}"] = place
    return found


def hooks():
    """`module: kind: function` for each hook on the model's modules and each global one, less the probe's."""
    found = []
    owners = [(name or "sd_model", module, ("_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks"))
              for name, module in shared.sd_model.named_modules()]  # fmt: skip
    owners.append(("torch", torch_module, ("_global_forward_hooks", "_global_forward_pre_hooks")))
    for name, owner, kinds in owners:
        for kind in kinds:
            for function in getattr(owner, kind).values():
                if getattr(function, "__self__", None) is not probe:
                    found.append(f"{name}: {kind}: {name_of(function)}")
    return sorted(found)


def shadows():
    """Attributes of module instances that hide a method of their class: `module.forward` and the like."""
    return {
        f"{name}.{key}": name_of(value)
        for name, module in shared.sd_model.named_modules()
        for key, value in vars(module).items()
        if callable(getattr(type(module), key, None))
    }


def torch_flags():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        fp16_accumulation = matmul.allow_fp16_accumulation
    except (AssertionError, AttributeError):  # how a torch that lacks the flag answers
        fp16_accumulation = None
    return {
        "tf32": [matmul.allow_tf32, cudnn.allow_tf32, torch.get_float32_matmul_precision()],
        "reduced_precision": [matmul.allow_fp16_reduced_precision_reduction,
                              matmul.allow_bf16_reduced_precision_reduction],
        "fp16_accumulation": fp16_accumulation,
        "cudnn": [cudnn.enabled, cudnn.benchmark, cudnn.deterministic],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "sdp": [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled(),
                torch.backends.cuda.math_sdp_enabled()],
        "default_dtype": str(torch.get_default_dtype()),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def class_attributes():
    """Names only: an attribute set on a class of the host's shows as a new one."""
    from modules import processing, sd_samplers_cfg_denoiser, sd_samplers_common

    model = shared.sd_model
    parts = (model, model.model, model.model.diffusion_model, model.first_stage_model)
    todo = [processing.StableDiffusionProcessing, sd_samplers_common.Sampler, *map(type, parts)]
    todo.append(sd_samplers_cfg_denoiser.CFGDenoiser)
    classes = set()
    while todo:
        classes.add(current := todo.pop())
        todo += current.__subclasses__()
    by_python = {"__slotnames__"}  # by copying an instance
    return {f"{c.__module__}.{c.__qualname__}": sorted(vars(c).keys() - by_python) for c in classes}


def state():
    model = shared.sd_model
    return {
        "hooks": hooks(),
        "shadows": shadows(),
        "module_attributes": dict(Counter(key for module in model.modules() for key in vars(module))),
        "model_attributes": sorted(vars(model)),
        "class_attributes": class_attributes(),
        "foreign_code": foreign_code(),
        "options": dict(shared.opts.data),
        "callbacks": {category: dict(Counter(callback.script for callback in callbacks))
                      for category, callbacks in script_callbacks.enumerate_callbacks() if callbacks},
        "patches": {str(key): sorted(f"{obj.__name__}.{name}" for obj, name in done)
                    for key, done in patches.originals.items()},
        "torch": torch_flags(),
        "unet": [str(sd_unet.current_unet_option), str(sd_unet.current_unet)],
        "attention": getattr(sd_hijack.current_optimizer, "name", None),
        "samplers": {sampler.name: code_place(sampler.constructor) for sampler in sd_samplers.all_samplers},
        "interrupted": [shared.state.interrupted, shared.state.skipped, shared.state.stopping_generation],
        "probe_handles": len(probe.handles),
    }  # fmt: skip


def memory():
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return {
        "tensors": len(tensors),
        "tensor_bytes": sum(t.nelement() * t.element_size() for t in tensors if t.device.type != "meta"),
        "python_bytes": tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else None,
        "cuda_bytes": torch.cuda.memory_allocated() if torch.cuda.is_available() else None,
        "rss": psutil.Process().memory_info().rss,
    }


def checksum():
    digest, kinds = hashlib.sha256(), Counter()
    for name, value in shared.sd_model.state_dict().items():
        kinds[f"{value.dtype} {value.device}"] += 1
        digest.update(f"{name} {value.dtype} {value.device} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return {"sha256": digest.hexdigest(), "kinds": dict(kinds)}


# ---- endpoints


def start_watch(record: str = Body(None, embed=True)):
    """Count from zero. `record` names a file for the tensors of each UNet call, written by /probe/calls."""
    probe.attach()
    probe.watch = Watch(record)
    return {"block_leaves": Counter(name for name, _ in unet_leaves(shared.sd_model.model.diffusion_model))}


def take_calls():
    if probe.watch is None:
        raise HTTPException(409, "nothing is watched: POST /probe/watch first")
    watch, probe.watch = probe.watch, Watch(probe.watch.record)
    if watch.record:
        torch.save(watch.tensors, watch.record)
    return {"calls": watch.calls, "passes": watch.passes}


def arm_fault(where: str = Body(...), kind: str = Body("runtime"), after: int = Body(0), seconds: float = Body(0.0)):
    """One fault, at the visit of `where` that follows `after` undisturbed ones. Several can be armed."""
    places = (*MODULE_PLACES, *CALLBACK_PLACES, *SCRIPT_PLACES)
    if where not in places or kind not in KINDS:
        raise HTTPException(422, f"where: {', '.join(places)}; kind: {', '.join(KINDS)}")
    probe.attach()
    probe.faults.append(Fault(where, kind, after, seconds))
    return {"armed": len(probe.faults)}


def turn_off():
    unspent = len(probe.faults)
    probe.off()
    return {"unspent_faults": unspent}


def reload_ui():
    """What the button Reload UI does."""
    shared.state.request_restart()
    return {"instance": INSTANCE}


def trace_memory():
    tracemalloc.start()
    return memory()


def seed():
    """img2img encodes its picture with random numbers that no request seeds."""
    torch.manual_seed(0)
    return {}


def random_state():
    """A digest of torch's random numbers to come."""
    return {"sha256": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()}


def on_app_started(_demo, app: FastAPI):
    app.post("/probe/watch")(start_watch)
    app.get("/probe/calls")(take_calls)
    app.get("/probe/state")(state)
    app.get("/probe/memory")(memory)
    app.post("/probe/memory")(trace_memory)
    app.get("/probe/checksum")(checksum)
    app.post("/probe/fault")(arm_fault)
    app.post("/probe/off")(turn_off)
    app.post("/probe/seed")(seed)
    app.get("/probe/random")(random_state)
    app.post("/probe/reload")(reload_ui)
    app.get("/probe/instance")(lambda: {"instance": INSTANCE})


script_callbacks.on_app_started(on_app_started)
script_callbacks.on_cfg_denoiser(on_cfg_denoiser)
script_callbacks.on_cfg_denoised(lambda params: probe.due("cfg_denoised"))
script_callbacks.on_cfg_after_cfg(lambda params: probe.due("cfg_after_cfg"))
script_callbacks.on_model_loaded(on_model_loaded)
script_callbacks.on_script_unloaded(probe.off)
