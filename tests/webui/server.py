"""A WebUI process for the tests. Its settings, extensions and outputs live in a folder of its own.

`SD_WEBUI_DIR` names a working WebUI 1.10.1, `SD_WEBUI_PYTHON` its interpreter (default: that of its `venv`),
`SD_WEBUI_TEST_MODELS` the folder of the tiny checkpoints (default `$SD_WEBUI_DIR/sdxl-optim-models`), which several
test runs can share at a time. `SD_WEBUI_DEVICE=cuda` has it compute on a card, `SD_WEBUI_FLAGS` are added to its flags
(`--nowebui`: the API without the page).
"""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import requests

from sdxl_optim.backends.inductor import CACHE_VARIABLES

HERE = Path(__file__).resolve().parent
EXTENSION = HERE.parents[1]
PROBE = HERE / "probe"
FLAGS = (
    "--skip-prepare-environment", "--skip-torch-cuda-test", "--skip-version-check", "--no-download-sd-model",
    "--no-hashing", "--api", "--no-half-vae",
)  # fmt: skip
DEVICES = {"cpu": ("--use-cpu", "all", "--no-half"), "cuda": ("--opt-sdp-attention",)}
SETTINGS = {
    "sd_model_checkpoint": "tiny-sdxl.safetensors",
    "live_previews_enable": False,
    "return_grid": False,
    "grid_save": False,
    "samples_save": False,
    # What tests change and put back: the host keeps an option that its file lacks, once it was set.
    "CLIP_stop_at_last_layers": 1,
    "batch_cond_uncond": True,
    "hires_fix_refiner_pass": "second pass",
    "pad_cond_uncond": False,
    "pad_cond_uncond_v0": False,
    "refiner_switch_by_sample_steps": False,
    "s_min_uncond": 0.0,
    "s_min_uncond_all": False,
    "save_images_before_highres_fix": False,
    "sd_checkpoints_limit": 1,
    "sd_unet": "Automatic",
    "show_progress_every_n_steps": 1,
    "show_progress_type": "Approx cheap",
    "skip_early_cond": 0.0,
}
START_SECONDS = 180


def device() -> str:
    return os.environ.get("SD_WEBUI_DEVICE", "cpu")


def webui_dir() -> Path | None:
    return Path(os.environ["SD_WEBUI_DIR"]).resolve() if os.environ.get("SD_WEBUI_DIR") else None


def webui_python() -> Path:
    return Path(os.environ.get("SD_WEBUI_PYTHON") or webui_dir() / "venv" / "bin" / "python")


def models_dir() -> Path:
    """Shared, and made anew in another place where the way of making it changes: never written to afterwards."""
    recipe = hashlib.sha256((HERE / "checkpoints.py").read_bytes()).hexdigest()
    return Path(os.environ.get("SD_WEBUI_TEST_MODELS") or webui_dir() / "sdxl-optim-models") / recipe[:12]


def make_checkpoints() -> Path:
    """The models folder, filled where it is not yet."""
    command = [webui_python(), HERE / "checkpoints.py", webui_dir(), models_dir()]
    done = subprocess.run(command, env=offline(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"checkpoints.py failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return models_dir()


def offline() -> dict:
    steady = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    # The tests' own torch writes the folder of its compiled code into the environment; a server has to choose its own.
    inherited = {name: value for name, value in os.environ.items() if name not in CACHE_VARIABLES}
    return {**inherited, "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False", **steady}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def link_files(source: Path, target: Path) -> None:
    for file in source.rglob("*"):
        if file.is_file():
            link = target / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)


class WebUI:
    """`with WebUI() as webui:` a running server at `webui.url`. Nothing of the WebUI folder is written to.

    Its `models` folder holds links, which a test may take away. `extensions` are linked into the server's own
    extensions folder, by their folder's name. `flags` follow the usual ones, `settings` overwrite entries of
    config.json.
    """

    def usual_flags(self) -> tuple[str, ...]:
        return (*FLAGS, *DEVICES[device()], *os.environ.get("SD_WEBUI_FLAGS", "").split())

    def __init__(self, extensions=(EXTENSION, PROBE), flags=(), settings=None):
        shared = self.make_models()
        self.data = Path(tempfile.mkdtemp(prefix="sdxl-optim-webui-"))
        self.models = self.data / "models"
        link_files(shared, self.models)
        self.log_file = self.data / "log.txt"
        self.config_file = self.data / "config.json"
        self.config_file.write_text(json.dumps({**SETTINGS, **(settings or {})}))
        (self.data / "extensions").mkdir()
        (self.data / "tmp").mkdir()
        for folder in map(Path, extensions):
            self.link_extension(folder, "sdxl_optim" if folder == EXTENSION else folder.name)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        places = ("--data-dir", self.data, "--models-dir", self.models, "--port", self.port)
        self.flags = [*self.usual_flags(), *places, *flags]
        self.process = None

    def make_models(self) -> Path:
        return make_checkpoints()

    def folder(self) -> Path:
        return webui_dir()

    def python(self) -> Path:
        return webui_python()

    def link_extension(self, folder: Path, name: str) -> None:
        (self.data / "extensions" / name).symlink_to(folder, target_is_directory=True)

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_exception):
        self.close()

    def start(self) -> None:
        with self.log_file.open("a") as log:
            self.process = subprocess.Popen(
                [str(part) for part in (self.python(), "launch.py", *self.flags)],
                cwd=self.folder(),
                env={**offline(), "TMPDIR": str(self.data / "tmp")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the WebUI ended with {self.process.returncode}:\n{self.log()[-4000:]}")
            if self.starts() and self.listens():
                return
            time.sleep(0.2)
        raise TimeoutError(f"the WebUI did not answer in {START_SECONDS} s:\n{self.log()[-4000:]}")

    def reload_ui(self) -> None:
        """Press Reload UI, and wait until the server is back with all scripts loaded anew."""
        before = self.starts()
        requests.post(f"{self.url}/probe/reload", timeout=10)
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.starts() > before:
                return
            time.sleep(0.2)
        raise TimeoutError(f"Reload UI did not end in {START_SECONDS} s:\n{self.log()[-4000:]}")

    def starts(self) -> int:
        """How often the server came up, all extensions loaded. Its log tells: a request that comes while the host still
        adds its endpoints makes it crash."""
        return self.log().count("Startup time:")

    def listens(self) -> bool:
        """Without its page, it says that it is up a little before it is."""
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self.port)) == 0

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.is_file() else ""

    def stop(self) -> None:
        """At once and without a word to it, as a crash would."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.data, ignore_errors=True)
