"""The WebUI's entry: forwards its events to sdxl_optim.host.webui, and nothing else."""

import gradio as gr

from modules import scripts
from sdxl_optim.host.webui import extension, ui


class SDXLOptim(scripts.Script):
    refresher = None  # made with the accordion, which comes before the tab's log

    def title(self):
        return ui.TITLE

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        accordion = ui.build(self.elem_id)
        self.infotext_fields = accordion.paste_fields
        self.paste_field_names = [f.infotext_key for f in ui.ui_fields()]
        self.refresher = ui.ReportRefresher(
            accordion.report, lambda: ui.show_report(extension.last_report.get(self.tabname))
        )
        return accordion.components

    def after_component(self, component, **kwargs):
        is_log = kwargs.get("elem_id") == f"html_log_{self.tabname}" and isinstance(component, gr.HTML)
        if self.refresher is not None:
            self.refresher.after_component(component, is_log)

    def before_process(self, p, *args):
        extension.before_process(p, self.tabname, args)

    def process(self, p, *args):
        extension.process(p)

    def process_before_every_sampling(self, p, *args, **kwargs):
        extension.before_sampling(p)

    def post_sample(self, p, ps, *args):
        extension.post_sample(p)

    def postprocess_batch(self, p, *args, **kwargs):
        extension.postprocess_batch(p)

    def postprocess(self, p, processed, *args):
        extension.postprocess(p, self.tabname, processed)


extension.register_callbacks()
