"""Peaks and times of the offload modes and of fp8 on one GPU: a full-size SDXL of random weights, in the ldm layout.

    python benchmarks/memory.py --out FOLDER [--seconds 150] [--pictures 11] [--only decode] [--tiny]

A picture is: two prompts through text encoders of SDXL's size, 30 calls of the UNet with two rows in fp16 at 1024×1024,
and a decode by a VAE of SDXL's size. No autocast, no WebUI around it. Each mode is placed once, makes pictures of
different prompts under a hard cap (set_per_process_memory_fraction) of what it may take, its first ones included, and
is undone. Switching modes for each picture would move everything each time, so a mode's median is held against that of
the pictures with everything resident right before and right after it; modes in a row share those.
GB are of 10^9 bytes, peaks are torch.cuda.max_memory_allocated.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import ldm_unet  # noqa: E402
from text_and_vae import Autoencoder, Text, sdp  # noqa: E402

from sdxl_optim.techniques.memory.fp8 import Fp8Weights  # noqa: E402
from sdxl_optim.techniques.memory.offload.meter import Meter  # noqa: E402
from sdxl_optim.techniques.memory.offload.mover import Mover  # noqa: E402
from sdxl_optim.techniques.memory.offload.part import TEXT, UNET, VAE  # noqa: E402
from sdxl_optim.techniques.memory.offload.piece import Piece  # noqa: E402
from sdxl_optim.techniques.vae.counts import VaeReport  # noqa: E402
from sdxl_optim.techniques.vae.patch import vae_attached, work_of  # noqa: E402

GB = 1e9
CALLS = 30
WORK = {UNET: 700_000_000, TEXT: 150_000_000}

# name: (offload, budget in GB, fp8, tile in pixels, most GB allowed, most times the time of everything resident)
MODES = {
    "vram-8gb": ("staged", 6.9, False, 1024, 6.9, 1.05),
    "vram-6gb": ("staged", 5.6, False, 1024, 5.6, 1.10),
    "vram-4gb": ("staged", 3.6, True, 1024, 3.6, 1.50),
    "minimal": ("sequential", 0.7, False, 256, 0.7, None),
    "vram-4gb without fp8": ("staged", 3.6, False, 1024, 3.6, None),
    "model": ("model", 0.0, False, None, None, None),
    "fp8 alone": (None, 0.0, True, None, None, None),
}
RESIDENT = 4  # pictures before and after each mode
SLOW = 10  # pictures in a row of a mode that takes its time


class KeepingMeter(Meter):
    """Remembers the peaks that `reset` would lose."""

    high = 0

    def reset(self):
        self.high = max(self.high, self.peak())
        super().reset()


def state_of(parts: dict[str, nn.Module]) -> list[tuple]:
    """Of every tensor: where it is, what it is, and a checksum of its bits."""
    bits_of = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    found = []
    for name, part in parts.items():
        for key, t in (*part.named_parameters(), *part.named_buffers()):
            bits = t.detach().contiguous().flatten().view(bits_of[t.element_size()])
            weights = torch.arange(bits.numel(), device=t.device) % 65521 + 1
            found.append((name, key, t.device, t.dtype, t.shape, t.stride(), (bits.long() * weights).sum()))
    return [(*row, int(checksum)) for *row, checksum in found]


def copy_rate(pieces: list[Piece], device: torch.device) -> float:
    """Bytes a second from the pieces' own main memory, in one go and nothing else."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    buffer = torch.empty(max(p.nbytes for p in pieces), dtype=torch.uint8, device=device)
    wait()
    began = time.perf_counter()
    for piece in pieces:
        buffer[: piece.nbytes].copy_(piece.main, non_blocking=True)
    wait()
    return sum(p.nbytes for p in pieces) / (time.perf_counter() - began)


class Bench:
    def __init__(self, device: str, tiny: bool, seconds: float, pictures: int):
        self.device, self.tiny, self.ends = torch.device(device), tiny, time.perf_counter() + seconds
        self.pictures = pictures
        self.resident: list[float] = []  # seconds of the last pictures with everything resident
        self.result: dict = {"modes": {}}
        self.calls = 3 if tiny else CALLS
        ldm_unet.CrossAttention.forward = sdp
        config = ldm_unet.SDXL.tiny() if tiny else ldm_unet.SDXL
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        torch.manual_seed(0)
        torch.set_default_dtype(self.dtype)
        with self.device:
            unet = ldm_unet.UNetModel(config)
            text = Text(((config.context // 2, 2),) * 2 if tiny else ((768, 12), (1280, 32)), 100 if tiny else 49408)
            vae = Autoencoder(32 if tiny else 128)
        torch.set_default_dtype(torch.float32)
        unet.time_embed.register_forward_pre_hook(lambda m, args: (args[0].to(self.dtype),))
        self.parts = {TEXT: text, UNET: unet, VAE: vae}
        for part in self.parts.values():
            part.eval().requires_grad_(False)
        size = 16 if tiny else 128
        self.inputs = ldm_unet.random_inputs(config, 2, (size, size), tokens=77)
        for name in ("x", "context", "y"):
            setattr(self.inputs, name, getattr(self.inputs, name).to(self.device, self.dtype))
        self.inputs.timesteps = self.inputs.timesteps.to(self.device)
        self.tokens = torch.randint(0, 100, (2, 77), device=self.device)
        self.meter: KeepingMeter | None = None

    def left(self) -> float:
        return self.ends - time.perf_counter()

    @torch.no_grad()
    def picture(self):
        """Returns (latents, picture)."""
        context = self.parts[TEXT](self.tokens)
        x, t, _, y = self.inputs.args
        out = x
        for _ in range(self.calls):
            out = self.parts[UNET](x + 0.01 * out.clamp(-3, 3), t, context, y)
        return out, self.parts[VAE].decoder(out[:1])

    @torch.no_grad()
    def stages(self) -> dict[str, float]:
        """Seconds of each stage of one picture, the device idle in between; allocations that went to the driver."""
        stats = torch.cuda.memory_stats() if self.device.type == "cuda" else {}
        counters = [k for k in ("num_device_alloc", "num_device_free", "num_alloc_retries", "num_ooms") if k in stats]
        seconds = {}

        def stage(name, f):
            self.wait()
            began = time.perf_counter()
            result = f()
            seconds[f"{name}_host"] = time.perf_counter() - began
            self.wait()
            seconds[name] = time.perf_counter() - began
            return result

        context = stage("encode", lambda: self.parts[TEXT](self.tokens))
        x, t, _, y = self.inputs.args
        call = lambda: self.parts[UNET](x, t, context, y)  # noqa: E731
        out = stage("call_1", call)
        stage("call_2", call)
        stage("call_3", call)
        stage("decode", lambda: self.parts[VAE].decoder(out[:1]))
        after = torch.cuda.memory_stats() if counters else {}
        return seconds | {k: after[k] - stats[k] for k in counters}

    def timed(self, count: int, seed: int = 0) -> Iterator[float]:
        """Seconds of pictures of different prompts."""
        for k in range(count):
            self.tokens.copy_(torch.randint(0, 100, (2, 77), generator=torch.Generator().manual_seed(seed + k)))
            self.wait()
            began = time.perf_counter()
            self.picture()
            self.wait()
            yield time.perf_counter() - began

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def begin_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if self.meter:
            self.meter.high = 0

    def peak(self) -> float:
        """In GB, since `begin_peak`."""
        self.wait()
        taken = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
        return max(taken, self.meter.high if self.meter else 0) / GB

    @contextlib.contextmanager
    def placed(self, offload, budget, fp8, tile, limit=None, ratio=None):
        mover = None
        with contextlib.ExitStack() as stack:
            vae = self.parts[VAE]
            if tile:
                small, report = 8 if self.tiny else tile // 8, VaeReport()
                free_others = lambda: mover is not None and mover.free_others()  # noqa: E731
                stack.enter_context(vae_attached(vae.encoder, vae.decoder, None, small, report, free_others))
                stack.callback(lambda: sys.stderr.writelines(f"{text}\n" for text in report.retries))
            if fp8:
                stack.callback(Fp8Weights(self.parts[UNET]).close)
            if offload:
                self.meter = KeepingMeter(self.device, budget)
                pixels = min(tile or 1024, 1024) ** 2
                work = {**WORK, VAE: work_of(pixels, torch.float16)}
                mover = Mover(self.parts, self.device, offload, self.meter)
                mover.begin_pass(pixels, work, budget)
                stack.callback(mover.close)
            if limit and self.device.type == "cuda":
                torch.cuda.empty_cache()
                total = torch.cuda.get_device_properties(self.device).total_memory
                torch.cuda.set_per_process_memory_fraction(limit * GB / total)
                stack.callback(torch.cuda.set_per_process_memory_fraction, 1.0)
            yield mover
        self.meter = None

    def mode(self, name: str) -> None:
        setup = MODES[name]
        limit, allowed = setup[4:]
        row: dict = {"offload": setup[0], "budget_gb": setup[1], "fp8": setup[2], "tile": setup[3]}
        self.resident = self.resident or list(self.timed(RESIDENT))
        row["resident_stages"] = self.stages()
        with torch.no_grad():
            expected, weights = self.picture()[0].clone(), state_of(self.parts)
        times: list[float] = []
        with self.placed(*setup) as mover:
            self.begin_peak()
            try:
                self.under_way(row, mover, expected, times)
                row["out_of_memory"] = False
            except torch.cuda.OutOfMemoryError as error:
                row["out_of_memory"] = str(error)[:600]
            row["peak_gb"], row["pictures"] = self.peak(), len(times)
        row["undone"] = state_of(self.parts) == weights
        before, self.resident = self.resident, list(self.timed(RESIDENT))
        row["seconds_of_each"], row["resident_seconds_of_each"] = times, [*before, *self.resident]
        row["seconds"] = statistics.median(times) if times else 0.0
        row["resident_seconds"] = statistics.median([*before, *self.resident])
        row["ratio"] = row["seconds"] / row["resident_seconds"]
        row["max_gb"], row["max_ratio"] = limit, allowed
        self.result["modes"][name] = row
        sys.stderr.write(f"{name}: {row}\n")

    def under_way(self, row: dict, mover, expected: torch.Tensor, times: list[float]) -> None:
        """Pictures with the mode in place; what they show goes into `row` and their seconds into `times`."""
        latents = self.picture()[0]
        row["same_latents"] = bool(torch.equal(latents, expected))
        row["latents_differ"] = float((latents - expected).float().norm() / expected.float().norm())
        slow = row["offload"] == "sequential"
        if not slow:
            self.picture()
        row["stages"] = self.stages()
        counted, before = 3, mover.copies.bytes_copied if mover else 0
        for k, seconds in enumerate(self.timed(min(self.pictures, SLOW) if slow else self.pictures, seed=100), 1):
            times.append(seconds)
            if k == counted:
                row["moved_gb_a_picture"] = (mover.copies.bytes_copied - before) / counted / GB if mover else 0.0
            if k >= counted and self.left() < 20:
                break
        row["streamed_gb_a_call"] = mover.bytes_streamed.get(UNET, 0) / GB if mover else 0.0
        if self.device.type == "cuda":
            row["reserved_gb"] = torch.cuda.max_memory_reserved() / GB
        if slow and mover:
            row["copy_seconds"] = row["moved_gb_a_picture"] * GB / copy_rate(mover.parts[UNET].pieces, self.device)

    @torch.no_grad()
    def tiled_decode(self) -> None:
        """4096×4096 pixels in tiles of 512, and how 1024×1024 in tiles compares with the whole (random weights)."""
        vae, row = self.parts[VAE], {}
        torch.manual_seed(1)
        z = torch.randn(1, 4, *((16, 16) if self.tiny else (128, 128)), device=self.device, dtype=self.dtype)
        large = torch.randn(1, 4, *((40, 40) if self.tiny else (512, 512)), device=self.device, dtype=self.dtype)
        whole = vae.decoder(z)
        for tile in (64, 96):
            with vae_attached(vae.encoder, vae.decoder, None, 8 if self.tiny else tile, VaeReport()):
                row[f"mean_difference_{tile * 8}"] = float((vae.decoder(z) - whole).abs().mean() / whole.std())
        del whole
        for tile in (64, 128):
            with vae_attached(vae.encoder, vae.decoder, None, 8 if self.tiny else tile, VaeReport()):
                base = torch.cuda.memory_allocated() / GB if self.device.type == "cuda" else 0.0
                self.begin_peak()
                began = time.perf_counter()
                vae.decoder(large)
                row[f"peak_beyond_weights_gb_{tile * 8}"] = self.peak() - base
                row[f"seconds_{tile * 8}"] = time.perf_counter() - began
        self.result["decode_4096"] = row

    def table(self) -> str:
        head = f"{'mode':22} {'peak GB':>8} {'≤':>5} {'ratio':>6} {'≤':>5} {'moved GB':>9}"
        lines = [f"{head} {'same':>5} {'undone':>6} {'cap':>9}"]
        for name, r in self.result["modes"].items():
            cap = "OOM" if r["out_of_memory"] else f"{r['pictures']} ok" if r["max_gb"] else ""
            lines.append(
                f"{name:22} {r['peak_gb']:8.2f} {r['max_gb'] or '':>5} {r['ratio']:6.2f} {r['max_ratio'] or '':>5} "
                f"{r.get('moved_gb_a_picture', 0):9.2f} {r.get('same_latents')!s:>5} {r['undone']!s:>6} {cap:>9}"
            )
            if "copy_seconds" in r:
                lines.append(f"{'':22} {r['seconds'] / r['copy_seconds']:.2f} times what the copies alone take")
        for name, r in self.result["modes"].items():
            for kind in ("resident_stages", "stages"):
                lines.append(f"{name:22} {kind:15} " + " ".join(f"{k} {v:.3g}" for k, v in r.get(kind, {}).items()))
        lines += [f"resident: {self.result.get('resident_peak_gb', 0):.2f} GB", f"{self.result.get('decode_4096')}"]
        return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--pictures", type=int, default=11, help="of each mode; the issue's medians are of 15")
    parser.add_argument("--only", action="append", choices=[*MODES, "decode"], help="these sections, not all")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench("cuda" if torch.cuda.is_available() else "cpu", args.tiny, args.seconds, args.pictures)
    on_cuda = bench.device.type == "cuda"
    bench.result |= {"device": torch.cuda.get_device_name() if on_cuda else "cpu", "torch": torch.__version__}
    bench.picture()
    bench.begin_peak()
    bench.picture()
    bench.result["resident_peak_gb"] = bench.peak()
    for section in (*list(MODES)[:4], "decode", *list(MODES)[4:]):
        if args.only and section not in args.only:
            continue
        if bench.left() < (10 if section == "decode" else 30):
            sys.stderr.write(f"{section}: left out, the time is over\n")
            continue
        try:
            bench.tiled_decode() if section == "decode" else bench.mode(section)
        except Exception as error:  # the other sections' figures are worth having
            bench.result.setdefault("errors", {})[section] = f"{type(error).__name__}: {error}"[:500]
            sys.stderr.write(f"{section}: {type(error).__name__}: {error}\n")
            bench.meter = None
        (args.out / "memory.json").write_text(json.dumps(bench.result, indent=1), encoding="utf-8")
    sys.stdout.write(bench.table() + "\n")


if __name__ == "__main__":
    main()
