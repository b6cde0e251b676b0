"""Forge and reForge for the tests.

`SD_FORGE_DIR` and `SD_REFORGE_DIR` name their checkouts, `SD_FORGE_PYTHON` and `SD_REFORGE_PYTHON` the interpreters
(default: that of `venv` inside). Their checkpoints of full size are made by the WebUI in `SD_WEBUI_DIR`, into
`SD_FORGE_TEST_MODELS` (default `$SD_WEBUI_DIR/sdxl-optim-models/forge`).
"""

import os
import subprocess
from pathlib import Path

import pytest
from webui import server
from webui.client import Client

HERE = Path(__file__).resolve().parent
PROBE = HERE / "probe"
HOSTS = {"forge": "SD_FORGE", "reforge": "SD_REFORGE"}
FLAGS = (
    "--skip-prepare-environment", "--skip-torch-cuda-test", "--skip-version-check", "--no-download-sd-model",
    "--no-hashing", "--api", "--always-cpu",
)  # fmt: skip
CARRIED = ("scripts", "sdxl_optim", "javascript", "localizations", "style.css", "install.py")  # as a release has it


def folder_of(host: str) -> Path:
    name = f"{HOSTS[host]}_DIR"
    if not os.environ.get(name):
        pytest.skip(f"{name} is not set")
    if server.webui_dir() is None:
        pytest.skip("SD_WEBUI_DIR is not set, which makes the checkpoints")
    return Path(os.environ[name]).resolve()


def models_dir() -> Path:
    return Path(os.environ.get("SD_FORGE_TEST_MODELS") or server.webui_dir() / "sdxl-optim-models" / "forge")


def make_checkpoints(*names: str) -> Path:
    models_dir().mkdir(parents=True, exist_ok=True)
    command = [server.webui_python(), HERE / "checkpoints.py", server.webui_dir(), models_dir(), *names]
    done = subprocess.run(command, env=server.offline(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"checkpoints.py failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return models_dir()


class Forge(server.WebUI):
    """`with Forge("forge") as webui:` a running server; nothing of its checkout is written to."""

    def usual_flags(self):
        return FLAGS

    def __init__(self, host: str, *checkpoints: str, extensions=(server.EXTENSION, PROBE), flags=()):
        """checkpoints: what is there to be loaded; the first is chosen."""
        self.host, self._folder, self._checkpoints = host, folder_of(host), checkpoints
        # Outside its own folder Forge serves no scripts of the page but from where it is told to.
        served = [part for path in (self._folder, server.EXTENSION) for part in ("--gradio-allowed-path", path)]
        settings = {"sd_model_checkpoint": f"{checkpoints[0]}.safetensors"}
        super().__init__(extensions, [*served, *flags], settings)

    def make_models(self) -> Path:
        return make_checkpoints(*self._checkpoints)

    def folder(self) -> Path:
        return self._folder

    def python(self) -> Path:
        return Path(os.environ.get(f"{HOSTS[self.host]}_PYTHON") or self._folder / "venv" / "bin" / "python")

    def link_extension(self, folder: Path, name: str) -> None:
        """Without its .git: Forge asks that for its remote, which a checkout may lack."""
        target = self.data / "extensions" / name
        target.mkdir()
        for part in CARRIED if folder == server.EXTENSION else [path.name for path in folder.iterdir()]:
            (target / part).symlink_to(folder / part, target_is_directory=(folder / part).is_dir())

    def start(self) -> None:
        super().start()
        self.client = Client(self.url)
