"""The WebUI's HTTP API in a few functions, pictures as arrays."""

import base64
import io
import json
from dataclasses import dataclass

import numpy as np
import requests
from PIL import Image

REQUEST = {
    "prompt": "a red fox in the snow",
    "negative_prompt": "blurry",
    "steps": 8,
    "width": 256,
    "height": 256,
    "cfg_scale": 5.0,
    "sampler_name": "Euler",
    "scheduler": "Automatic",
    "seed": 1,
    "denoising_strength": 0.5,
}
TIMEOUT_SECONDS = 300
CHANGES_BY_ITSELF = ("probe_handles",)


class ApiError(Exception):
    """An answer other than 200: `status`, and the `body` as parsed from JSON."""

    def __init__(self, status: int, body):
        super().__init__(f"HTTP {status}: {body}")
        self.status, self.body = status, body


@dataclass(frozen=True)
class Picture:
    pixels: np.ndarray  # [H, W, 3], uint8
    infotext: str


class Client:
    """Calls one server. `script` is the dict of settings that goes to the script "sdxl optim"."""

    def __init__(self, url: str, auth: tuple[str, str] | None = None):
        self.url, self.auth = url, auth

    def call(self, method: str, path: str, body=None):
        data = None if body is None else json.dumps(body)  # requests' own `json` knows no NaN
        headers = {"Content-Type": "application/json"}
        how = {"headers": headers, "auth": self.auth, "timeout": TIMEOUT_SECONDS}
        answer = requests.request(method, self.url + path, data=data, **how)
        if not answer.ok:
            is_json = answer.headers.get("content-type", "").startswith("application/json")
            raise ApiError(answer.status_code, answer.json() if is_json else answer.text)
        return answer.json()

    def get(self, path: str):
        return self.call("GET", path)

    def post(self, path: str, **body):
        return self.call("POST", path, body)

    def txt2img(self, script: dict | None = None, **request) -> list[Picture]:
        return self.generate("txt2img", script, {**REQUEST, **request})

    def img2img(self, picture: np.ndarray, script: dict | None = None, mask=None, **request) -> list[Picture]:
        """`picture` [H, W, 3]; `mask` [H, W], white where the picture is painted anew."""
        request = {**REQUEST, **request, "init_images": [encoded(picture)]}
        return self.generate("img2img", script, {**request, "mask": None if mask is None else encoded(mask)})

    def generate(self, kind: str, script: dict | None, request: dict) -> list[Picture]:
        if script is not None:
            scripts = request.get("alwayson_scripts", {})
            request = {**request, "alwayson_scripts": {**scripts, "sdxl optim": {"args": [script]}}}
        answer = self.post(f"/sdapi/v1/{kind}", **request)
        infotexts = json.loads(answer["info"])["infotexts"]
        return [Picture(pixels(image), text) for image, text in zip(answer["images"], infotexts, strict=True)]

    def options(self, **changed) -> dict:
        """All settings, after setting those that are named."""
        if changed:
            self.post("/sdapi/v1/options", **changed)
        return self.get("/sdapi/v1/options")

    def watch(self, **body) -> dict:
        return self.post("/probe/watch", **body)

    def calls(self) -> list[dict]:
        """UNet calls since `watch` or the last `calls`, as the probe's hooks saw them."""
        return self.get("/probe/calls")["calls"]

    def fault(self, where: str, kind: str = "runtime", after: int = 0, **body) -> None:
        self.post("/probe/fault", where=where, kind=kind, after=after, **body)

    def state(self) -> dict:
        """What an extension could leave behind, to be compared with `==`."""
        state = self.get("/probe/state")
        return {key: value for key, value in state.items() if key not in CHANGES_BY_ITSELF}


def pixels(image: str) -> np.ndarray:
    """An image of the API's (base64) as [H, W, 3] uint8."""
    return decoded(base64.b64decode(image.split(",", 1)[-1]))


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def encoded(array: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def same(one: Picture, other: Picture) -> bool:
    """Equal in every decoded pixel and in the infotext."""
    return np.array_equal(one.pixels, other.pixels) and one.infotext == other.infotext


def rows(calls: list[dict]) -> int:
    return sum(call["rows"] for call in calls)
