"""torch's compiler, inductor (https://pytorch.org/docs/stable/torch.compiler.html), on the UNet's repeated blocks, with
a CUDA graph around the whole call where there is CUDA.

The blocks are traced operation by operation, not by torch.compile's reading of Python code: the Python that a WebUI and
its extensions put around layers does not disturb it, and no call checks guards. Shapes are static.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from sdxl_optim.backends.api import Backend, CannotPrepare, Prepared, Progress, Tensors
from sdxl_optim.backends.cudagraph import CudaGraph
from sdxl_optim.backends.environment import Environment
from sdxl_optim.backends.rewrites.compiled_blocks import CompilableBlock, CompiledBlocks, Compiler, compilable_blocks
from sdxl_optim.backends.rewrites.side_stream import SideStream
from sdxl_optim.backends.rewrites.weight_layout import WeightLayout
from sdxl_optim.wording import Text, message

SHORT_ROW = 2048  # numbers that one program may sum up at once
MOST_BY_TORCH = 1024  # numbers that torch by itself lets one program sum up at once
OF_A_ROW = {"XBLOCK": 1, "num_warps": 2, "num_stages": 1}  # of such a program; torch's eight warps would idle
MOST_SHAPES = 8  # of the UNet's inputs, that are compiled for in one session
CACHE_VARIABLES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


class Inductor(Backend):
    """cache: a folder that keeps compiled code across restarts, unless the user's environment names one.
    compiler: (graph, example inputs) → callable; None is torch's inductor."""

    name = "inductor"

    def __init__(self, cache: Path | None = None, compiler: Compiler | None = None):
        self.captures = torch.cuda.is_available()
        self.weight_layout = WeightLayout(channels_last_from=0) if self.captures else None
        self._graphs = CudaGraph()
        self._compiled = CompiledBlocks(compiler or _compile)
        self._shapes: set[tuple] = set()
        self._cache = cache

    def probe(self, environment: Environment) -> Text | None:
        if environment.torch < (2, 1):
            here = ".".join(map(str, environment.torch))
            return message("needs torch {least} or later; here is {here}", least="2.1", here=here)
        if not environment.cuda:
            return None if environment.compiler else "needs a C++ compiler on the path (g++, clang++ or cl)"
        if "triton" not in environment.packages:
            windows = environment.system == "Windows"
            return "needs the package triton-windows" if windows else "needs the package triton"
        if not environment.rocm and environment.capability and environment.capability < (7, 0):
            capability = ".".join(map(str, environment.capability))
            text = "Triton needs a card of capability {least} or later; here is {capability}"
            return message(text, least="7.0", capability=capability)
        return None

    def prepare(self, body, inputs: Tensors, progress: Progress) -> Prepared:
        self._remember_shape(inputs)
        with compiled_code_kept_in(self._cache):
            return self._prepare(body, inputs, progress)

    def _prepare(self, body, inputs: Tensors, progress: Progress) -> Prepared:
        blocks = compilable_blocks(body.unet)
        side_stream = self._graphs.side_stream() if self.captures else SideStream()
        if self.captures:
            body(inputs, partial(side_stream.discover, body.unet))
        with self._compiled.counted(blocks, side_stream) as missing:
            body(inputs)
        call = _WithCompiledBlocks(self._compiled, blocks, side_stream)
        if missing:
            numbers = iter(range(1, len(missing) + 1))
            call(body, inputs, lambda: progress(_saying(next(numbers, "?"), len(missing))))
        if not self.captures:
            return call
        return self._graphs.record(lambda tensors: call(body, tensors), inputs)

    def _remember_shape(self, inputs: Tensors) -> None:
        shape = tuple(tuple(tensor.shape) for tensor in inputs[:4])
        if shape not in self._shapes and len(self._shapes) >= MOST_SHAPES:
            raise CannotPrepare(message("{n} sizes are compiled already in this session", n=MOST_SHAPES))
        self._shapes.add(shape)

    def release(self) -> None:
        self._graphs.release()


class _WithCompiledBlocks:
    """A call whose blocks run compiled, and whose Python around them runs as before."""

    nbytes = 0

    def __init__(self, compiled: CompiledBlocks, blocks: list[CompilableBlock], side_stream: SideStream):
        self._compiled, self._blocks, self._side_stream = compiled, blocks, side_stream

    def __call__(self, body, inputs: Tensors, on_compile: Callable[[], object] = lambda: None) -> list[torch.Tensor]:
        with self._compiled.applied(self._blocks, self._side_stream, on_compile):
            return body(inputs, self._side_stream.prefetch)


def _saying(number, of: int) -> str:
    return f"inductor compiles block {number} of {of}"


def _compile(graph: torch.fx.GraphModule, examples: list[torch.Tensor]):
    import torch._inductor
    from torch._inductor import config

    options: dict[str, object] = {"fx_graph_cache": True} if hasattr(config, "fx_graph_cache") else {}
    if not examples[0].is_cuda:
        options["pattern_matcher"] = False  # its patterns take long to load and find nothing in these blocks
    while True:
        try:
            with _short_rows_at_once():
                return torch._inductor.compile(graph, list(examples), options=options)
        except OSError as error:
            if not _removed_broken_library(error):
                raise


@contextmanager
def _short_rows_at_once() -> Iterator[None]:
    """Context manager: a kernel that sums up rows of a token's size holds a whole row. torch does that up to 1024
    numbers, and SDXL's tokens have 1280. An older torch has no hook for it and keeps its own choice."""
    try:
        from torch._inductor.choices import InductorChoices
        from torch._inductor.codegen.triton import FixedTritonConfig
        from torch._inductor.virtualized import V
    except ImportError:
        yield
        return

    class Choices(InductorChoices):
        @staticmethod
        def should_use_persistent_reduction(features, cooperative_reduction: bool) -> bool:
            if InductorChoices.should_use_persistent_reduction(features, cooperative_reduction):
                return True
            return not cooperative_reduction and 0 < _row(features) <= SHORT_ROW

        def triton_kernel_kwargs(self, kernel_cls, features, groups, kernel_kwargs: dict) -> dict:
            given = super().triton_kernel_kwargs(kernel_cls, features, groups, kernel_kwargs)
            sizes = groups[0]  # by direction
            sums_rows_alone = isinstance(sizes, dict) and sizes.keys() == {"x", "r0_"}  # as the form has them
            if sums_rows_alone and MOST_BY_TORCH < _row(features) <= SHORT_ROW:
                return {**given, "fixed_config": FixedTritonConfig(OF_A_ROW)}
            return given

    with V.set_choices_handler(Choices()):
        yield


def _row(features) -> int:
    """How many numbers, adjacent in memory, a kernel sums up for each of its results; 0 if it does something else or
    the number is a symbol."""
    from torch._inductor.runtime.hints import ReductionHint

    try:
        size = int(features.reduction_numel)
    except TypeError:
        return 0
    return size if features.get_reduction_hint() == ReductionHint.INNER else 0


def _removed_broken_library(error: OSError) -> bool:
    """Whether `error` was about an incomplete library in the cache, which is deleted then. A process that is killed
    while it compiles leaves one, and old versions of torch would load it at every later start."""
    from torch._inductor import codecache

    library = Path(str(error).split(".so: ")[0] + ".so")  # the loader's message begins with the file
    if not (library.is_file() and Path(codecache.cache_dir()) in library.parents):
        return False
    library.unlink()
    return True


@contextmanager
def compiled_code_kept_in(folder: Path | None) -> Iterator[None]:
    """Context manager: torch and Triton keep compiled code in `folder`, unless the user's environment names another.

    The environment is the only way to tell both; afterwards it is what it was.
    """
    if folder is None:
        yield
        return
    before = {name: os.environ.get(name) for name in CACHE_VARIABLES if _is_free(name)}
    os.environ.update({name: str(folder / CACHE_VARIABLES[name]) for name in before})
    forget_folder()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        forget_folder()


def _is_free(name: str) -> bool:
    return name not in os.environ or _is_torchs_own(os.environ[name])


def _is_torchs_own(folder: str) -> bool:
    """Whether torch chose `folder` itself, a temporary one: it writes that into the environment."""
    return folder.startswith(str(Path(tempfile.gettempdir()) / "torchinductor_"))


def forget_folder() -> None:
    """Make old versions of torch, which read the environment only once, read it again."""
    codecache = sys.modules.get("torch._inductor.codecache")
    getattr(getattr(codecache, "cache_dir", None), "cache_clear", lambda: None)()
