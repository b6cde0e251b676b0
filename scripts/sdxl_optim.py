"""The WebUI's entry: forwards its events to sdxl_optim.hosts.webui, and nothing else."""

from modules import scripts
from sdxl_optim.hosts.webui import ui
from sdxl_optim.hosts.webui.extension import extension
from sdxl_optim.hosts.webui.page import Page

ours = extension()


class SDXLOptim(scripts.Script):
    page = None

    def title(self):
        return ui.TITLE

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        accordion = self.page.build(self.elem_id)
        self.infotext_fields = accordion.paste_fields
        self.paste_field_names = accordion.paste_names
        return accordion.components

    def after_component(self, component, **kwargs):
        if self.page is None:
            self.page = Page(self.tabname, ours.host, ours.presets, lambda: ours.report_to_show(self.tabname))
        self.page.after_component(component)

    def before_process(self, p, *args):
        ours.before_process(p, self.tabname, args)

    def process(self, p, *args):
        ours.process(p)

    def before_process_batch(self, p, *args, **kwargs):
        ours.before_batch(p)

    def process_before_every_sampling(self, p, *args, **kwargs):
        ours.before_sampling(p)

    def post_sample(self, p, ps, *args):
        ours.post_sample(p, ps.samples)

    def postprocess_batch(self, p, *args, **kwargs):
        ours.postprocess_batch(p)

    def postprocess(self, p, processed, *args):
        ours.postprocess(p, self.tabname, processed)


ours.register_callbacks()
