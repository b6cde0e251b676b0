"""Prepared calls in the real WebUI on one GPU while full previews are asked for every 0.2 s, as its page does.

    python benchmarks/webui_polled.py --webui FOLDER --driver FOLDER --checkpoints FOLDER --models FOLDER --out FOLDER
        [--seconds 200] [--backend cudagraph] [--tiny]

Pictures at random of two sizes, one or two at once, with and without DeepCache, CFG cutoff and FreeU, between which the
UNet's weights are changed in place, as a LoRA does, and moved. Each is held against the eager one of the same settings
and weights: the largest difference in levels of 255 and the SSIM, while the memory is watched. The folders and --tiny
are those of webui_memory.py.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import threading
import time

import numpy as np
import torch
from webui_in_process import ROOT, WebUI, checkpoint_of, data_folder, parser_with_folders

sys.path.insert(0, str(ROOT))

from demo_model.evaluate import ssim

EVERY = 0.2  # seconds
PREVIEWS = {"live_previews_enable": True, "show_progress_type": "Full", "show_progress_every_n_steps": 1}
CUTOFF = {"cfg_cutoff": {"enabled": True, "stop": 0.6}}
DEEPCACHE = {"deepcache": {"enabled": True, "cache_interval": 3}}
FREEU = {"freeu": {"enabled": True}}
TECHNIQUES = ({}, CUTOFF, DEEPCACHE, {**CUTOFF, **DEEPCACHE}, FREEU, {**FREEU, **DEEPCACHE})


class Polling:
    """While entered, previews of whatever is being made are asked for; `seen` counts them."""

    def __init__(self):
        self.seen, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._poll)

    def __enter__(self) -> Polling:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def _poll(self) -> None:
        from modules import progress

        last = -1
        while not self._over.wait(EVERY):
            if task := progress.current_task:
                asked = progress.ProgressRequest(id_task=task, id_live_preview=last, live_preview=True)
                answer = progress.progressapi(asked)
                self.seen += answer.live_preview is not None
                last = answer.id_live_preview


class Alternations:
    def __init__(self, ui: WebUI, backend: str, tiny: bool):
        self.ui, self.backend, self.rng = ui, {"backend": {"name": backend}}, random.Random(0)
        edge = 64 if tiny else 1024
        self.sizes = [(edge, edge), (edge * 3 // 4, edge)]
        self.request = {"cfg_scale": 5.0, "sampler_name": "Euler", "scheduler": "Automatic", "steps": 10}
        self.rows: list[dict] = []

    def one(self) -> None:
        rng, k = self.rng, len(self.rows)
        settings = rng.choice(TECHNIQUES)
        width, height = rng.choice(self.sizes)
        batch = rng.choice([1, 1, 2])
        change = self.change_weights()
        request = {
            **self.request,
            "seed": k,
            "width": width,
            "height": height,
            "batch_size": batch,
            "prompt": f"fox {k}",
        }
        with Polling() as polling:
            prepared = self.ui.picture({**settings, **self.backend}, **request)
        said = self.ui.infotext
        eager = self.ui.picture(settings, **request)
        apart = np.abs(prepared.astype(int) - eager.astype(int))
        name = self.backend["backend"]["name"]
        row = {"settings": [*settings], "size": [width, height], "batch": batch, "weights": change}
        row |= {"previews": polling.seen, "levels apart": int(apart.max())}
        row |= {"ssim": float(ssim(tensor(prepared), tensor(eager)))}
        row |= {"by the backend": f"by {name}" in said and "eager instead" not in said}
        row |= memory()
        self.rows.append(row)

    def change_weights(self) -> str:
        unet, chance = self.ui.model.model.diffusion_model, self.rng.random()
        with torch.no_grad():
            if chance < 0.3:
                unet.middle_block[0].in_layers[2].weight.mul_(1.02 if chance < 0.15 else 1 / 1.02)
                return "changed in place"
            if chance < 0.4:
                dtype = next(unet.parameters()).dtype
                unet.to(torch.float64 if dtype == torch.float32 else torch.float32).to(dtype)
                return "moved"
        return "as they were"


def memory() -> dict[str, int]:
    """MiB that tensors ask for, and that they are given: in whole blocks, of which weights that come and go leave some
    cut less well than before."""
    stats = torch.cuda.memory_stats() if torch.cuda.is_available() else {}
    names = {"MiB asked for": "requested_bytes.all.current", "MiB": "allocated_bytes.all.current"}
    return {name: stats.get(key, 0) >> 20 for name, key in names.items()}


def tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255


def main() -> None:
    parser = parser_with_folders(__doc__, seconds=200.0)
    parser.add_argument("--backend", default="cudagraph")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    ends = time.perf_counter() + args.seconds
    data = data_folder(args.models, {**PREVIEWS, "sd_model_checkpoint": checkpoint_of(args)})
    work = Alternations(WebUI(args.webui, args.driver, data, args.checkpoints), args.backend, args.tiny)
    while time.perf_counter() < ends and len(work.rows) < 60:
        work.one()
        sys.stdout.write(f"{json.dumps(work.rows[-1])}\n")
        sys.stdout.flush()
        (args.out / "webui-polled.json").write_text(json.dumps(work.rows, indent=1), encoding="utf-8")
    rows = work.rows
    third = len(rows) // 3
    sys.stdout.write(
        f"{len(rows)} alternations by {args.backend}, {sum(r['previews'] for r in rows)} previews; "
        f"SSIM least {min(r['ssim'] for r in rows):.5f}, median {statistics.median(r['ssim'] for r in rows):.5f}; "
        f"most levels apart {max(r['levels apart'] for r in rows)}; "
        f"not by the backend: {sum(not r['by the backend'] for r in rows)}; "
        f"MiB asked for after each third {[rows[i]['MiB asked for'] for i in (third, 2 * third, -1)]}, "
        f"given {[rows[i]['MiB'] for i in (third, 2 * third, -1)]}\n"
    )


if __name__ == "__main__":
    main()
