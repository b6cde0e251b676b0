"""The WebUI's entry: forwards its events to sdxl_optim.hosts.webui, and nothing else."""

from modules import scripts
from sdxl_optim.hosts.webui import extension, ui
from sdxl_optim.hosts.webui.page import Page, show_report


class SDXLOptim(scripts.Script):
    page = None

    def title(self):
        return ui.TITLE

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        accordion = ui.build(self.elem_id, self.page)
        self.infotext_fields = accordion.paste_fields
        self.paste_field_names = [f.infotext_key for f in ui.ui_fields()]
        self.page.read_report = lambda: show_report(extension.report_to_show(self.tabname))
        return accordion.components

    def after_component(self, component, **kwargs):
        if self.page is None:
            self.page = Page(self.tabname)
        self.page.after_component(component)

    def before_process(self, p, *args):
        extension.before_process(p, self.tabname, args)

    def process(self, p, *args):
        extension.process(p)

    def before_process_batch(self, p, *args, **kwargs):
        extension.before_batch(p)

    def process_before_every_sampling(self, p, *args, **kwargs):
        extension.before_sampling(p)

    def post_sample(self, p, ps, *args):
        extension.post_sample(p, ps.samples)

    def postprocess_batch(self, p, *args, **kwargs):
        extension.postprocess_batch(p)

    def postprocess(self, p, processed, *args):
        extension.postprocess(p, self.tabname, processed)


extension.register_callbacks()
