// Help on hover: what the accordion's Python part wrote into data-help becomes the controls' titles.

function sdxlOptimShowHelp() {
    gradioApp().querySelectorAll('.sdxl-optim-help:not([data-done])').forEach(function(holder) {
        holder.dataset.done = '1';
        for (const [id, text] of Object.entries(JSON.parse(holder.dataset.help))) {
            const control = gradioApp().getElementById(id);
            if (control) control.title = text;
        }
    });
}

onUiLoaded(sdxlOptimShowHelp);
