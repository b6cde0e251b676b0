"""The tab "SDXL Optim" on the page: a benchmark typed in, started, and what is shown of it."""

from playwright.sync_api import Page

from . import browser

ID = "sdxl_optim_bench"
CASES = "freeu\ncutoff 0.5\nfreeu+deepcache 2+tiny"
PROMPTS = "5: a fox\n6: a bird"


class BenchTab:
    def __init__(self, page: Page):
        self.page = page
        browser.show_tab(page, "tab_sdxl_optim")

    def fill_in(self, cases=CASES, prompts=PROMPTS, **numbers):
        browser.set_text(self.page, f"{ID}_cases", cases)
        browser.set_text(self.page, f"{ID}_prompts", prompts)
        numbers = {"steps": 12, "width": 128, "height": 128, "runs": 1, "warm_up": 0, **numbers}
        for name, value in numbers.items():
            browser.set_number(self.page, f"{ID}_{name}", value)

    def press(self, name):
        self.page.click(f"#{ID}_{name}")

    def text(self, name):
        return self.page.locator(f"#{ID}_{name}").first.inner_text()

    def wait_for(self, name, text, seconds=120):
        self.page.wait_for_function(
            "([id, text]) => document.getElementById(id).innerText.includes(text)",
            arg=[f"{ID}_{name}", text],
            timeout=seconds * 1000,
        )

    def table(self):
        """Lines of cells, the headings first."""
        rows = self.page.locator(f"#{ID}_table table").last.locator("tr")
        return [[cell.strip() for cell in row.locator("th, td").all_inner_texts()] for row in rows.all()]

    def markdown(self):
        return self.page.locator(f"#{ID}_markdown textarea").input_value()
