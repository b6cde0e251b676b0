"""The tab "SDXL Optim": run a benchmark, follow it, look at results, compare and delete them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from urllib.parse import quote

import gradio as gr

from modules import paths_internal, sd_models, sd_samplers
from modules.ui_components import FormColumn, FormRow
from sdxl_optim.bench import article, perceptual, reading
from sdxl_optim.bench.cases import ARTICLE_PROMPTS
from sdxl_optim.bench.compare import comparison, comparison_text
from sdxl_optim.bench.report import FILES, REPORT, charts, in_short, summary, table_of, what_is_missing, write_report
from sdxl_optim.bench.results import PICTURES, Results, Row, listed
from sdxl_optim.bench.runner import Runner
from sdxl_optim.errors import SettingsError
from sdxl_optim.hosts.webui import lpips_offer
from sdxl_optim.hosts.webui.bench import BenchJob, Template, WebUIHost
from sdxl_optim.hosts.webui.family import HostFamily
from sdxl_optim.hosts.webui.grid import results_folder
from sdxl_optim.hosts.webui.measure import Measurer
from sdxl_optim.hosts.webui.ui import TITLE
from sdxl_optim.wording import Text, as_html, joined, message

ID = "sdxl_optim_bench"
OWN, ARTICLE = "These combinations", "The article's table"
CASES = "freeu\ncutoff 0.75\ndeepcache 3\ntiny\nfreeu+cutoff 0.75+deepcache 3+tiny"
NO_REFINER = "None"
EVERY_SECONDS = 0.5
MAX_PICTURES = 60


class BenchTab:
    """The tab, and the benchmark that was started last, which goes on when the page is closed."""

    def __init__(self, host: HostFamily, measurer: Measurer):
        self._host, self._measurer = host, measurer
        self._job: BenchJob | None = None

    def build(self) -> list[tuple[gr.Blocks, str, str]]:
        """The host's on_ui_tabs."""
        with gr.Blocks(analytics_enabled=False) as blocks, gr.Row():
            with gr.Column(scale=2):
                request, start, stop, status = _inputs()
            with gr.Column(scale=3):
                chosen, other, refresh, delete, compare, view = _results()
            shown = [chosen, other, *view]
            start.click(self._start, inputs=request, outputs=[status, *shown], show_progress=False)
            stop.click(self._stop, outputs=[status], show_progress=False)
            refresh.click(self._follow, outputs=[status, *shown], show_progress=False)
            chosen.input(self._show_named, inputs=[chosen], outputs=view, show_progress=False)
            delete.click(self._delete, inputs=[chosen], outputs=[status, *shown], show_progress=False)
            compare.click(_compare, inputs=[chosen, other], outputs=view, show_progress=False)
        return [(blocks, TITLE, "sdxl_optim")]

    # --- running

    def _start(
        self, what, cases, prompts, negative, sampler, refiner, steps, cfg, width, height, runs, warm_up
    ) -> Iterator:
        nothing = [gr.update()] * 7
        if self._running:
            yield from self._follow()
            return
        try:
            chosen = article.article_cases() if what == ARTICLE else reading.cases_of(cases)
        except SettingsError as error:
            yield _error(str(error)), *nothing
            return
        read = reading.prompts_of(prompts) or list(ARTICLE_PROMPTS)
        template = Template(
            int(steps), cfg, int(width), int(height), sampler, negative, "" if refiner == NO_REFINER else refiner
        )
        title = "the article's table" if what == ARTICLE else "benchmark"
        results = Results.create(results_folder(), "bench", title=title)
        host = WebUIHost(template, self._host, self._measurer)
        self._job = BenchJob(Runner(host, results, chosen, read, int(runs), int(warm_up)))
        yield from self._follow()

    def _follow(self) -> Iterator:
        """The running benchmark until its end; without one, the newest result."""
        job, seen = self._job, None
        while job is not None and job.running:
            done = job.progress.done if job.progress else 0
            view = [gr.update()] * 7 if done == seen else [*_lists(job.results), *_view(job.results, pictures=False)]
            seen = done
            yield _status(job), *view
            time.sleep(EVERY_SECONDS)
        newest = job.results if job else next(iter(listed(results_folder())), None)
        yield _status(job) if job else "", *_lists(newest), *self._show(newest)

    def _stop(self) -> str:
        job = self._running
        if job is None:
            return ""
        job.stop()
        return _status(job)

    @property
    def _running(self) -> BenchJob | None:
        """The benchmark that is being made."""
        return self._job if self._job is not None and self._job.running else None

    def _makes(self, results: Results) -> bool:
        job = self._running
        return job is not None and job.results.folder == results.folder

    # --- looking

    def _show_named(self, name: str | None) -> list:
        return self._show(_named(name))

    def _show(self, results: Results | None) -> list:
        """A result that is finished, or was torn by a crash: its files are written anew."""
        if results is None:
            return _view(None)
        if not self._makes(results):
            write_report(results)
        return _view(results)

    def _delete(self, name: str | None) -> list:
        results = _named(name)
        if results is None:
            return [_error("No result is chosen."), *_lists(None), *_view(None)]
        if self._makes(results):
            return [_error("This result is being made; stop it first."), *[gr.update()] * 7]
        results.delete()
        newest = next(iter(listed(results_folder())), None)
        deleted = message("{name} is deleted.", name=results.folder.name)
        return [f"<p>{as_html(deleted)}</p>", *_lists(newest), *self._show(newest)]


def _inputs() -> tuple[list, gr.Button, gr.Button, gr.HTML]:
    what = gr.Radio([OWN, ARTICLE], value=OWN, label="What to measure", elem_id=f"{ID}_what")
    help = "One a line: names joined by +, each with its number or none. Stock is always measured."
    cases = gr.Textbox(CASES, lines=5, label="Combinations", info=help, elem_id=f"{ID}_cases")
    help = "One a line, each with its seed before a colon."
    prompts = gr.Textbox(
        reading.as_text(ARTICLE_PROMPTS), lines=6, max_lines=12, label="Prompts", info=help, elem_id=f"{ID}_prompts"
    )
    negative = gr.Textbox("", label="Negative prompt", elem_id=f"{ID}_negative")
    samplers = [s.name for s in sd_samplers.visible_samplers()]
    with FormRow():
        sampler = gr.Dropdown(samplers, value="Euler", label="Sampler", elem_id=f"{ID}_sampler")
        refiner = gr.Dropdown(
            [NO_REFINER, *sd_models.checkpoint_tiles()],
            value=NO_REFINER,
            label="Refiner, for the article's rows",
            elem_id=f"{ID}_refiner",
        )
        refiner.do_not_save_to_config = True
    with FormRow():
        steps = gr.Slider(1, 150, value=article.STEPS, step=1, label="Steps", elem_id=f"{ID}_steps")
        cfg = gr.Slider(1, 30, value=article.CFG, step=0.5, label="CFG scale", elem_id=f"{ID}_cfg")
    with FormRow():
        width = gr.Slider(64, 2048, value=1024, step=8, label="Width", elem_id=f"{ID}_width")
        height = gr.Slider(64, 2048, value=1024, step=8, label="Height", elem_id=f"{ID}_height")
    with FormRow():
        runs = gr.Slider(1, 20, value=1, step=1, label="Runs", info="Their mean is reported.", elem_id=f"{ID}_runs")
        help = "Pictures of each case before the measured ones."
        warm_up = gr.Slider(0, 5, value=1, step=1, label="Warm-up", info=help, elem_id=f"{ID}_warm_up")
    with FormRow():
        start = gr.Button("Start", variant="primary", elem_id=f"{ID}_start")
        stop = gr.Button("Stop and keep what is done", elem_id=f"{ID}_stop")
    status = gr.HTML("", elem_id=f"{ID}_status")
    request = [what, cases, prompts, negative, sampler, refiner, steps, cfg, width, height, runs, warm_up]
    return request, start, stop, status


def _results() -> tuple:
    with FormRow():
        chosen = gr.Dropdown(_names(), label="Result", elem_id=f"{ID}_chosen")
        other = gr.Dropdown(_names(), label="Compared with", elem_id=f"{ID}_other")
        chosen.do_not_save_to_config = other.do_not_save_to_config = True
    with FormRow():
        refresh = gr.Button("Refresh", elem_id=f"{ID}_refresh")
        compare = gr.Button("Compare", elem_id=f"{ID}_compare")
        delete = gr.Button("Delete this result", elem_id=f"{ID}_delete")
    with FormColumn():
        about = gr.HTML("", elem_id=f"{ID}_about")
        lpips_offer.build(ID)
        table = gr.Dataframe(interactive=False, wrap=True, label="Measured", elem_id=f"{ID}_table")
        drawn = gr.HTML("", elem_id=f"{ID}_charts")
        gallery = gr.Gallery(label="Pictures", columns=4, height="auto", show_label=True, elem_id=f"{ID}_gallery")
        text = gr.Textbox("", label="As Markdown", lines=4, max_lines=8, elem_id=f"{ID}_markdown")
        text.do_not_save_to_config = True
    return chosen, other, refresh, delete, compare, [about, table, drawn, gallery, text]


def _status(job: BenchJob) -> str:
    p = job.progress
    if job.error:
        return _error(job.error)
    if not job.running:
        made = message("{n} pictures made.", n=p.done if p else 0)
        return f"<p>{as_html(joined(['Stopped' if job.stopping else 'Finished', ': ', made]))}</p>"
    if p is None:
        return f"<p>{as_html('Waiting for its turn…')}</p>"
    parts = [message("{n} of {total} pictures", n=p.done, total=p.total)]
    if p.seconds_left is not None:
        parts.append(message("about {time} left", time=_duration(p.seconds_left)))
    text = "Stopping…" if job.stopping else joined([joined(parts, by=", "), " · ", message("{it}", it=p.doing)])
    bar = f'<progress value="{p.done}" max="{p.total}" style="width:100%"></progress>'
    return f"{bar}<p>{as_html(text)}</p>"


def _duration(seconds: float) -> Text:
    if seconds < 90:
        return message("{n:.0f} s", n=seconds)
    return message("{n:.0f} min", n=seconds / 60)


def _error(text: str) -> str:
    return f"<div class='error'>{as_html(text)}</div>"


# --- looking


def _names() -> list[str]:
    return [results.folder.name for results in listed(results_folder())]


def _named(name: str | None) -> Results | None:
    """Only what is in the list: the name comes from the page."""
    return next((r for r in listed(results_folder()) if r.folder.name == name), None)


def _lists(chosen: Results | None) -> list[dict]:
    names = _names()
    return [gr.update(choices=names, value=chosen.folder.name if chosen else None), gr.update(choices=names)]


def _view(results: Results | None, pictures: bool = True) -> list:
    """about, table, charts, pictures, Markdown."""
    rows = results.rows() if results else []
    if results is None or not rows:
        return [f"<p>{as_html('Nothing measured yet.')}</p>", None, "", None, ""]
    means = summary(rows)
    headings, cells = table_of(means)
    drawn = "".join(chart.html() for chart in charts(means))
    markdown = results.folder / "table.md"
    gallery = _pictures(results, rows) if pictures else gr.update()
    text = markdown.read_text("utf-8") if pictures and markdown.is_file() else gr.update()
    return [_about(results, rows), _table(headings, cells), drawn, gallery, text]


def _table(headings: list[str], cells: list[list[str]]) -> dict:
    """For gr.Dataframe, which sorts numbers as such."""
    return {"headers": headings, "data": [[_number(cell) for cell in line] for line in cells]}


def _number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def _about(results: Results, rows: list[Row]) -> str:
    links = [
        f'<a href="file={quote((results.folder / name).as_posix(), safe="/:")}" target="_blank">{name}</a>'
        for name in FILES
        if (results.folder / name).is_file()
    ]
    place = message("{path}", path=_short(results.folder / REPORT))
    missing = [text for text in what_is_missing(rows) if text != perceptual.missing()]  # which its offer says below
    lines = [" · ".join(links), as_html(place), *map(as_html, missing)]
    return "".join(f"<p>{line}</p>" for line in lines if line)


def _short(path: Path) -> str:
    """Within the WebUI's folder, from there on."""
    data = Path(paths_internal.data_path).resolve()
    return str(path.relative_to(data) if path.is_relative_to(data) else path)


def _pictures(results: Results, rows: list[Row]) -> list[tuple[str, str]]:
    first = [row for row in rows if row.run == 1 and row.picture][:MAX_PICTURES]
    return [(str(results.folder / PICTURES / r.picture), f"{r.case}, {r.group}: {in_short(r)}") for r in first]


def _compare(name: str | None, other: str | None) -> list:
    a, b = _named(name), _named(other)
    if a is None or b is None:
        return [_error("Choose two results."), *[gr.update()] * 4]
    headings, cells = comparison(a, b)
    about = f"<p>A: {escape(a.folder.name)}, B: {escape(b.folder.name)}</p>"
    return [about, _table(headings, cells), "", None, comparison_text(a, b)]
