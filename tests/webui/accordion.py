"""This extension's accordion on the page, driven and read by the settings' own declarations."""

import numpy as np
from playwright.sync_api import Page

from sdxl_optim import settings as declared
from sdxl_optim.settings import Field, Settings

from . import browser
from .client import REQUEST, Picture

STEPS = 12
SMALL = {**REQUEST, "steps": STEPS, "width": 128, "height": 128}


class Tab:
    """txt2img or img2img: a request typed in, our accordion set and read, pictures with their infotexts."""

    def __init__(self, page: Page, name: str = "txt2img"):
        self.page, self.name = page, name
        self._events = 0  # that the page has sent to the server and that have not ended
        page.on("websocket", self._event_begins)

    def _event_begins(self, socket) -> None:
        self._events += 1
        socket.on("close", self._event_ends)

    def _event_ends(self, _socket) -> None:
        self._events -= 1

    def settle(self) -> None:
        """Wait until nothing is under way between page and server, nor has been for a moment."""
        quiet = 0
        while quiet < 3:
            self.page.wait_for_timeout(100)
            quiet = 0 if self._events else quiet + 1

    def elem_id(self, *path: str) -> str:
        return self.id_of(self.name, *path)

    @staticmethod
    def id_of(tab: str, *path: str) -> str:
        return f"script_{tab}_sdxl_optim_{'_'.join(path)}"

    # --- the request

    def fill_in(self, **more) -> None:
        request = {**SMALL, **more}
        browser.set_text(self.page, f"{self.name}_prompt", request["prompt"])
        browser.set_text(self.page, f"{self.name}_neg_prompt", request["negative_prompt"])
        browser.choose(self.page, f"{self.name}_sampling", request["sampler_name"])
        for name in ("steps", "width", "height", "cfg_scale", "seed"):
            browser.set_number(self.page, f"{self.name}_{name}", request[name])

    def generate(self) -> Picture:
        """The first picture, its infotext as the page shows it."""
        infotext = browser.generate(self.page, self.name)
        self.settle()
        shown = browser.pictures(self.page, self.name)
        return Picture(shown[0], infotext) if shown else Picture(np.zeros((0, 0, 3), np.uint8), infotext)

    def file_in_gallery(self) -> bytes:
        source = self.page.locator(f"#{self.name}_gallery img").first.get_attribute("src")
        return self.page.request.get(source).body()

    # --- the accordion

    def set(self, given: dict) -> None:
        """Bring the accordion to these settings (in the API's shape), and nothing else, as a person would: what has a
        switch is opened, then filled in."""
        target = declared.from_dict(given)
        self.switch(True, "enabled")
        values = [f for f in ui_fields() if f.declaration.kind != "toggle"]
        changed = [f for f in values if self.value(f) != declared.get(target, f.path)]
        switches = [f for f in ui_fields() if f.declaration.kind == "toggle"]
        wanted = [f for f in switches if declared.get(target, f.path)]
        if any(f.path[0] == "hires" for f in changed + wanted):
            browser.open_accordion(self.page, self.elem_id("hires"))
        for section in ("memory", "backend"):
            if any(f.path[0] == section for f in changed + wanted):
                browser.open_accordion(self.page, self.elem_id(f"{section}_section"))
        for field in switches:
            if field in wanted or any(f.path[:-1] == field.path[:-1] for f in changed):
                browser.open_accordion(self.page, self.elem_id(*field.path))
        for path in dict.fromkeys(f.path[:-1] for f in changed):
            more = self.elem_id(*path, "more")  # the finer settings, folded
            if self.page.locator(f"#{more}").count():
                browser.open_accordion(self.page, more)
        for field in changed:
            self.set_field(field, declared.get(target, field.path))
        for field in switches:
            self.set_field(field, field in wanted)

    def set_field(self, field: Field, value) -> None:
        kind, elem_id = field.declaration.kind, self.elem_id(*field.path)
        if kind == "toggle":
            browser.set_checkbox(self.page, f"{elem_id}-visible-checkbox", value)
        elif kind == "choice":
            browser.choose_radio(self.page, elem_id, "none" if value is None else str(value))
        else:
            browser.set_number(self.page, elem_id, value)

    def switch(self, on: bool, *path: str) -> None:
        if on:
            browser.open_accordion(self.page, self.elem_id(*path))
        browser.set_checkbox(self.page, f"{self.elem_id(*path)}-visible-checkbox", on)

    def off(self) -> None:
        self.switch(False, "enabled")

    def settings(self) -> Settings:
        """What the accordion holds, whether it is open or not."""
        return declared.from_flat({f.path: self.value(f) for f in ui_fields()})

    def value(self, field: Field):
        kind, elem_id = field.declaration.kind, self.elem_id(*field.path)
        if kind == "toggle":
            boxes = [f"#{elem_id}-checkbox input", f"#{elem_id}-visible-checkbox"]
            sent, shown = (self.page.locator(box).first.is_checked() for box in boxes)
            assert sent == shown, f"{field.name}: sent {sent}, shown {shown}"
            return sent
        if kind == "choice":
            chosen = self.page.locator(f"#{elem_id} input:checked").get_attribute("value")
            return field.declaration.read(field.name, chosen)
        number = browser.number(self.page, elem_id)
        return int(number) if field.declaration.integer else number

    def preset(self, name: str) -> None:
        """Choose a preset in the row, and wait until the controls hold it."""
        self.page.locator(f"#{self.elem_id('preset')} input[value='{name}']").click()
        self.settle()
        self.page.wait_for_timeout(300)

    def planned(self, text: str = "") -> str:
        """The live plan, once it has come to rest and holds `text`."""
        place = self.page.locator(f"#{self.elem_id('plan')}").first
        last, quiet = None, 0
        for _ in range(100):
            self.page.wait_for_timeout(100)
            shown = place.text_content().strip()
            quiet = quiet + 1 if shown == last and shown and text in shown else 0
            last = shown
            if quiet > 6:
                return shown
        raise AssertionError(f"no plan with {text!r}, but {last!r}")

    def text(self, *path: str) -> str:
        return self.page.locator(f"#{self.elem_id(*path)}").first.text_content().strip()

    def report(self) -> str:
        """The text of "What ran last", or nothing."""
        return self.page.locator(f"#{self.elem_id('report')}").first.text_content().strip()


def assert_same(one: Picture, other: Picture) -> None:
    """Equal in the infotext and in every decoded pixel."""
    assert one.infotext == other.infotext
    assert one.pixels.shape == other.pixels.shape
    difference = np.abs(one.pixels.astype(int) - other.pixels)
    assert not difference.any(), f"{(difference != 0).mean():.3%} of the values differ, by up to {difference.max()}"


def ui_fields() -> list[Field]:
    return [f for f in declared.fields() if f.declaration.in_ui]


def by_api(picture: Picture) -> Picture:
    """A picture of the API's with the infotext that the page's numbers give."""
    return Picture(picture.pixels, picture.infotext.replace("CFG scale: 5.0,", "CFG scale: 5,"))
