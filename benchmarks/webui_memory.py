"""Peaks and times of the memory presets in the real WebUI on one GPU, each under a hard cap of its budget.

    python benchmarks/webui_memory.py --webui FOLDER --driver FOLDER --checkpoints FOLDER --models FOLDER --out FOLDER
        [--seconds 330] [--pictures 15] [--only CASE,…] [--tiny]

--webui: WebUI 1.10.1. --driver: a folder whose `stubs` make it run on a newer Python (leave it out on its own).
--checkpoints: holds one SDXL checkpoint of full size. --models: VAE-taesd and VAE-approx in their folders.
--tiny: a trial on the CPU, with a tiny checkpoint: no peaks and no caps, small pictures.

1024×1024, batch 1, Euler, 30 steps, CFG 5, --opt-sdp-attention, every picture of another prompt. The WebUI starts under
the cap of the smallest budget with "Load SDXL checkpoints into main memory" on, as a small card would; the cap is then
raised from preset to preset. Presets are as the extension has them but for the CFG cutoff, which is off.

Times are seconds of a whole request. A preset's ratio is held against pictures of the same settings with memory.offload
and memory.weights left to the host: the VAE's precision and tiling are those of the preset on both sides. For those
pictures the WebUI's model is as without the setting above: whole on the card, --medvram's hooks taken off, no cap.
Both are made in turns in one process, in blocks, as a change of mode moves the whole model. A block begins with two
pictures that do not count for time, but do for peaks and caps.

GB are of 10^9 bytes. Peaks are torch.cuda.max_memory_allocated over all pictures of a preset; where somebody resets
that, what it had reached is kept.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import memory
import numpy as np
import torch
from webui_in_process import WebUI, checkpoint_of, data_folder, parser_with_folders

GB = 1e9
OFF = {"cfg_cutoff": {"enabled": False}}
HOST = {"memory": {"offload": "host", "weights": "host"}}
WITHOUT_FP8 = {"memory": {"offload": "staged", "budget": 3.6, "weights": "host"}}
WARM, HOST_PICTURES, COPY_PICTURES = 2, 4, 10
RESERVE = 25.0  # seconds that a block has to have left to begin

# name: (preset and what differs from it, most GB allowed, most times the host's time, blocks)
CASES = {
    "minimal": ({"preset": "minimal", **OFF}, 0.7, None, 1),
    "vram-4gb": ({"preset": "vram-4gb", **OFF}, 3.6, 1.50, 2),
    "vram-6gb": ({"preset": "vram-6gb", **OFF}, 5.6, 1.10, 2),
    "vram-8gb": ({"preset": "vram-8gb", **OFF}, 6.9, 1.05, 2),
    "vram-4gb without fp8": ({"preset": "vram-4gb", **OFF, **WITHOUT_FP8}, 3.6, None, 1),
}
REFERENCE = {"preset": "vram-8gb", **OFF, **HOST}
SUBJECTS = ("a red fox", "a lighthouse", "an old tram", "a bowl of pears", "two herons", "a stone bridge", "a violin")
PLACES = ("in the snow", "at dusk", "in heavy rain", "seen from above", "under a full moon")


def prompt(k: int) -> str:
    return f"a photograph of {SUBJECTS[k % len(SUBJECTS)]} {PLACES[k // len(SUBJECTS) % len(PLACES)]}, number {k}"


class Peaks:
    """Torch's own highest values, kept where somebody resets them."""

    def __init__(self):
        self.allocated = self.reserved = 0
        if torch.cuda.is_available():
            self._reset = torch.cuda.reset_peak_memory_stats
            torch.cuda.reset_peak_memory_stats = self.reset

    def reset(self, device=None) -> None:
        self.rise()
        self._reset(device)

    def rise(self) -> None:
        if torch.cuda.is_available():
            self.allocated = max(self.allocated, torch.cuda.max_memory_allocated())
            self.reserved = max(self.reserved, torch.cuda.max_memory_reserved())

    def begin(self) -> None:
        if torch.cuda.is_available():
            self._reset()
        self.allocated = self.reserved = 0

    def read(self) -> dict[str, float]:
        self.rise()
        return {"peak_gb": self.allocated / GB, "reserved_gb": self.reserved / GB}


def cap(gigabytes: float | None) -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(1.0 if gigabytes is None else gigabytes * GB / total)


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ooms() -> int:
    return torch.cuda.memory_stats().get("num_ooms", 0) if torch.cuda.is_available() else 0


class Watch:
    """Seconds of a request's stages, the device idle in between."""

    def __init__(self):
        from modules import processing, sd_samplers_kdiffusion

        self.stages: dict[str, float] | None = None
        self._watch(processing.StableDiffusionProcessing, "setup_conds", "encode")
        self._watch(sd_samplers_kdiffusion.KDiffusionSampler, "sample", "denoise")
        self._watch(processing, "decode_latent_batch", "decode")

    def _watch(self, owner, name: str, stage: str) -> None:
        original = getattr(owner, name)

        def timed(*args, **more):
            if self.stages is None:
                return original(*args, **more)
            wait()
            began = time.perf_counter()
            result = original(*args, **more)
            wait()
            self.stages[stage] = self.stages.get(stage, 0.0) + time.perf_counter() - began
            return result

        setattr(owner, name, timed)


class Bench:
    def __init__(self, args, ui: WebUI, peaks: Peaks, ends: float):
        from sdxl_optim.hosts.webui.extension import extension

        self.ui, self.peaks, self.ends, self.pictures, self.out = ui, peaks, ends, args.pictures, args.out
        self.only = args.only.split(",") if args.only else list(CASES)
        size = {"width": 64, "height": 64, "steps": 3} if args.tiny else {"width": 1024, "height": 1024, "steps": 30}
        self.request = {**size, "cfg_scale": 5.0, "sampler_name": "Euler", "scheduler": "Automatic", "seed": 1}
        self.weights, self.watch = extension().host.weights, Watch()
        self.made = self.again = 0  # pictures; those that ran out of memory once
        self.hosts: list[tuple[int, float]] = []  # (block, seconds)
        self.block = 0
        self.expected: dict[str, np.ndarray] = {}  # the host's first picture, by decoder
        self.first: dict[str, np.ndarray] = {}  # of each case
        self.checksums: list[tuple] | None = None
        self.result: dict = {"cases": {}, "host": {}, "errors": {}}

    def left(self) -> float:
        return self.ends - time.perf_counter()

    def one(self, settings: dict | None, k: int | None = None) -> tuple[float, np.ndarray]:
        """Seconds and the picture of the next prompt, or of the k-th."""
        self.made += k is None
        wait()
        began = time.perf_counter()
        picture = self.ui.picture(settings, prompt=prompt(self.made if k is None else k), **self.request)
        wait()
        self.again += "memory ran out" in self.ui.infotext
        return time.perf_counter() - began, picture

    def staged(self, settings: dict) -> dict[str, float]:
        self.watch.stages = {}
        self.one(settings)
        stages, self.watch.stages = self.watch.stages, None
        return stages

    # --- the reference

    def resident(self) -> None:
        """A block of pictures with memory left to the host, which has the whole model on the card."""
        from sdxl_optim.hosts.webui.lowvram import HostLowvram
        from sdxl_optim.settings import Memory

        cap(None)
        self.weights.undo_if_changed(Memory())
        model, flags, devices = self.ui.model, self.ui.shared.cmd_opts, sys.modules["modules.devices"]
        medvram = HostLowvram(model)
        flags.medvram_sdxl = model.lowvram = False
        model.to(devices.device)
        self.resident_pictures(model)
        for part in (model.conditioner, model.model, model.first_stage_model):
            part.to("cpu")
        flags.medvram_sdxl = model.lowvram = True
        medvram.restore()
        self.block += 1

    def resident_pictures(self, model) -> None:
        checksums = memory.state_of({"model": model})
        self.checksums = self.checksums or checksums
        if checksums != self.checksums:
            self.result["errors"]["weights"] = f"differ before block {self.block}"
        self.peaks.begin()
        if self.block == 0:
            self.one(REFERENCE)
            self.expected["full"] = self.one(REFERENCE, 0)[1]
            self.result["host"] |= {"stages": self.staged(REFERENCE), **self.peaks.read()}
            tiny = {"preset": "minimal", **OFF, **HOST}
            self.expected["tiny"] = self.one(tiny, 0)[1]
            self.result["host"]["minimal"] = [self.one(tiny)[0] for _ in range(3)]
            self.peaks.begin()
            self.result["host"]["stock"] = [self.one(None)[0] for _ in range(3)][1:]
            self.result["host"]["stock_peak_gb"] = self.peaks.read()["peak_gb"]
        self.one(REFERENCE)
        self.hosts += [(self.block, self.one(REFERENCE)[0]) for _ in range(HOST_PICTURES)]

    # --- the presets

    def case(self, name: str) -> None:
        settings, limit, _, blocks = CASES[name]
        row = self.result["cases"].setdefault(name, {"seconds": [], "blocks": [], "pictures": 0, "ooms": 0})
        cap(limit)
        self.peaks.begin()
        before, row["out_of_memory"] = ooms(), row.get("out_of_memory", False)
        again = self.again
        wanted = COPY_PICTURES if name == "minimal" else -(-self.pictures // blocks)
        row["blocks"].append(self.block)
        try:
            self.case_pictures(name, row, settings, min(wanted, self.pictures - len(row["seconds"])))
        except torch.cuda.OutOfMemoryError as error:
            row["out_of_memory"] = str(error)[:600]
        for key, value in self.peaks.read().items():
            row[key] = max(value, row.get(key, 0.0))
        row["ooms"] += ooms() - before
        row["decoded_again"] = row.get("decoded_again", 0) + self.again - again
        if name == "minimal" and (place := self.weights.placement) is not None:
            pieces = place.mover.parts[memory.UNET].pieces
            row["copy_seconds"] = row["moved_gb"] * GB / memory.copy_rate(pieces, place.mover.device)

    def case_pictures(self, name: str, row: dict, settings: dict, count: int) -> None:
        row["first_seconds"], self.first[name] = self.one(settings, 0)
        row["stages"] = self.staged(settings)
        row["pictures"] += WARM
        mover = self.weights.placement.mover
        before, done = mover.copies.bytes_copied, 0
        while done < count and (done < 4 or self.left() > RESERVE / 2):
            row["seconds"].append(self.one(settings)[0])
            row["pictures"] += 1
            done += 1
        row["moved_gb"] = (mover.copies.bytes_copied - before) / done / GB
        row["through_a_call_gb"] = mover.bytes_streamed.get(memory.UNET, 0) / GB
        happened = self.weights.placement.happened(mover.copies.bytes_copied - before)
        row["facts"] = [str(fact) for fact in happened.happened()]

    # --- all of it

    def run(self) -> None:
        once = [name for name in self.only if CASES[name][3] == 1]
        twice = [name for name in self.only if CASES[name][3] == 2]
        for name in ("minimal",) if "minimal" in once else ():
            self.section(name)
        for _ in range(2):
            for name in twice[::-1]:  # the quickest first
                self.section(None)
                self.section(name)
        self.section(None)
        for name in once:
            if name != "minimal":
                self.section(name)

    def section(self, name: str | None) -> None:
        """A case, or the reference. What goes wrong in one leaves the others' figures."""
        title = name or f"host {self.block}"
        if self.left() < RESERVE:
            self.result["errors"][title] = "left out, the time is over"
            return
        try:
            self.case(name) if name else self.resident()
        except Exception as error:
            self.result["errors"][title] = f"{type(error).__name__}: {error}"[:600]
        self.summarise()
        (self.out / "webui-memory.json").write_text(json.dumps(self.result, indent=1), encoding="utf-8")
        sys.stderr.write(f"{title}: {self.result['cases'].get(name, [s for _, s in self.hosts])} [{self.left():.0f}]\n")

    def summarise(self) -> None:
        """Medians; of the host, the blocks before and after a case's own."""
        for name, row in self.result["cases"].items():
            hosts = [s for b, s in self.hosts if b in {k for block in row["blocks"] for k in (block - 1, block)}]
            hosts = self.result["host"].get("minimal", []) if name == "minimal" else hosts
            expected = self.expected.get("tiny" if name == "minimal" else "full")
            if expected is not None and name in self.first:
                row["levels_apart"] = int(np.abs(self.first[name].astype(int) - expected.astype(int)).max())
            if hosts and row["seconds"]:
                row["median"], row["host_seconds"] = statistics.median(row["seconds"]), hosts
                row["ratio"] = row["median"] / statistics.median(hosts)
        self.result["host"]["blocks"] = self.hosts

    def table(self) -> str:
        lines = [f"{'preset':22} {'peak GB':>8} {'≤':>4} {'reserved':>8} {'s':>6} {'ratio':>6} {'≤':>5} {'n':>3} cap"]
        for name, r in self.result["cases"].items():
            limit, ratio = CASES[name][1:3]
            held = "OOM" if r["out_of_memory"] else f"{r['pictures']} ok"
            lines.append(
                f"{name:22} {r['peak_gb']:8.2f} {limit:>4} {r['reserved_gb']:8.2f} {r.get('median', 0):6.3f} "
                f"{r.get('ratio', 0):6.3f} {ratio or '':>5} {len(r['seconds']):3} {held}; {r['ooms']} retries, "
                f"{r['decoded_again']} decoded again; {r.get('levels_apart')} levels from the host's; "
                f"{r.get('moved_gb', 0):.2f} GB a picture"
            )
            if "copy_seconds" in r and "median" in r:
                lines.append(f"{'':22} {r['median'] / r['copy_seconds']:.2f} times what the copies alone take, ≤ 1.5")
        lines += [f"{name}: {r.get('stages')}" for name, r in self.result["cases"].items()]
        lines += [f"host: {self.result['host']}", f"errors: {self.result['errors'] or 'none'}"]
        return "\n".join(lines)


def main() -> None:
    parser = parser_with_folders(__doc__, seconds=330.0)
    parser.add_argument("--pictures", type=int, default=15)
    parser.add_argument("--only", default="", help=f"of {', '.join(CASES)}")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    began, peaks = time.perf_counter(), Peaks()
    cap(CASES["minimal"][1])
    chosen = {"sdxl_optim_load_into_main_memory": True, "sd_model_checkpoint": checkpoint_of(args)}
    ui, errors = WebUI(args.webui, args.driver, data_folder(args.models, chosen), args.checkpoints), {}
    for name in ("vram-4gb", None):  # the other figures are worth having
        if ui.model is None:
            errors[f"start before the cap of {name}"] = "the checkpoint could not be loaded"
            cap(CASES[name][1] if name else None)
            ui.load()
    bench = Bench(args, ui, peaks, began + args.seconds)
    bench.result |= {"torch": torch.__version__, "attention": ui.attention, "ready": time.perf_counter() - began}
    bench.result |= {"start": peaks.read(), "errors": errors}
    if torch.cuda.is_available():
        bench.result["device"] = torch.cuda.get_device_name()
    bench.run()
    sys.stdout.write(bench.table() + "\n")


if __name__ == "__main__":
    main()
