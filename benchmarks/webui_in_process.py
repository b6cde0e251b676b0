"""The real WebUI 1.10.1 in this process: its own initialisation and its own API's handler, without a page or a server.

On Python 3.12 and torch 2.11 its source runs untouched with the packages and the shims (`stubs`) of the driver that
`--driver` names; on its own Python it needs none.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import io
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
FLAGS = (
    "--skip-prepare-environment", "--skip-torch-cuda-test", "--skip-version-check", "--no-download-sd-model",
    "--do-not-download-clip", "--no-hashing", "--api", "--nowebui",
)  # fmt: skip
ON_CPU = ("--use-cpu", "all", "--no-half", "--no-half-vae")
ON_CARD = ("--opt-sdp-attention",)
SETTINGS = {"live_previews_enable": False, "return_grid": False, "grid_save": False, "samples_save": False}


def parser_with_folders(description: str, seconds: float) -> argparse.ArgumentParser:
    """Of a script that starts the WebUI: where it and its files are, and for how many seconds at most it measures."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--webui", "--checkpoints", "--models", "--out"):
        parser.add_argument(name, type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--driver", type=lambda text: Path(text).resolve())
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--tiny", action="store_true")
    return parser


def checkpoint_of(args: argparse.Namespace) -> str:
    """The name of the checkpoint to load."""
    return "tiny-sdxl.safetensors" if args.tiny else next(args.checkpoints.glob("*.safetensors")).name


def data_folder(models: Path, settings: dict) -> Path:
    """A folder for one run's data, with links to the models, this extension alone, and these settings."""
    folder = Path(tempfile.mkdtemp(prefix="sdxl-optim-webui-"))
    for file in models.rglob("*"):
        if file.is_file():
            link = folder / "models" / file.relative_to(models)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    (folder / "extensions").mkdir()
    (folder / "extensions" / "sdxl_optim").symlink_to(ROOT, target_is_directory=True)
    (folder / "config.json").write_text(json.dumps({**SETTINGS, **settings}), encoding="utf-8")
    return folder


class WebUI:
    """Started, and its checkpoint loaded (model None: it could not be). `picture` is one request to the API, `infotext`
    what was written with the last one's first picture."""

    def __init__(self, webui: Path, driver: Path | None, data: Path, checkpoints: Path):
        os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        warnings.filterwarnings("ignore")
        places = ("--data-dir", data, "--ckpt-dir", checkpoints)
        kind = ON_CARD if torch.cuda.is_available() else ON_CPU
        sys.argv = ["launch.py", *FLAGS, *map(str, places), *kind]
        sys.path.insert(0, str(webui))
        if driver is not None:
            sys.path.append(str(driver / "stubs"))
        os.chdir(webui)
        if driver is not None:
            importlib.import_module("compat")
        self.infotext = ""
        self.start()

    def start(self) -> None:
        from fastapi import FastAPI

        from modules import initialize, timer  # noqa: F401

        initialize.imports()
        initialize.initialize()
        from modules import script_callbacks, sd_hijack, shared
        from modules.api import api, models
        from modules.call_queue import queue_lock

        app = FastAPI()
        self._api, self._models, self.shared = api.Api(app, queue_lock), models, shared
        script_callbacks.before_ui_callback()
        script_callbacks.app_started_callback(None, app)
        self.model = shared.sd_model  # waits for the thread that loads it; None where that failed
        if sd_hijack.current_optimizer is None:
            sd_hijack.apply_optimizations()
        self.attention = sd_hijack.current_optimizer.name

    def load(self) -> None:
        from modules import sd_models

        sd_models.model_data.was_loaded_at_least_once = False
        self.model = self.shared.sd_model

    def picture(self, settings: dict | None, **request) -> np.ndarray:
        """[H, W, 3], uint8. settings: of the script "sdxl optim", None to leave it off."""
        scripts = {} if settings is None else {"sdxl optim": {"args": [settings]}}
        asked = self._models.StableDiffusionTxt2ImgProcessingAPI(
            alwayson_scripts=scripts, send_images=True, save_images=False, **request
        )
        answer = self._api.text2imgapi(asked)
        self.infotext = json.loads(answer.info)["infotexts"][0]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.images[0]))).convert("RGB"))
