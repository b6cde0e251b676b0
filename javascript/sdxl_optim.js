// What Python can't do: help on hover, in the page's language, and waiting until a control has come to rest.

function sdxlOptimTranslated(piece) {
    const text = piece.trim();
    const translated = window.localization && window.localization[text];
    return translated === undefined ? piece : translated;
}

// What the accordion's Python part wrote into data-help becomes the controls' titles.
function sdxlOptimShowHelp() {
    gradioApp().querySelectorAll('.sdxl-optim-help:not([data-done])').forEach(function(holder) {
        holder.dataset.done = '1';
        for (const [id, pieces] of Object.entries(JSON.parse(holder.dataset.help))) {
            const control = gradioApp().getElementById(id);
            if (control) control.title = pieces.map(sdxlOptimTranslated).join('');
        }
    });
}

// Choices that can't run on this machine are greyed, with the reason as their title.
function sdxlOptimGreyOut() {
    gradioApp().querySelectorAll('.sdxl-optim-cannot:not([data-done])').forEach(function(holder) {
        holder.dataset.done = '1';
        for (const [id, reasons] of Object.entries(JSON.parse(holder.dataset.cannot))) {
            gradioApp().querySelectorAll(`#${id} input[type=radio], #${id}-visible-checkbox`).forEach(function(input) {
                const pieces = reasons[input.value] || reasons['*'];
                if (!pieces) return;
                if (input.type === 'checkbox') { // after a click, even one without effect, opening does not tick it
                    input.addEventListener('click', event => event.preventDefault(), {once: true});
                    input.click();
                }
                input.disabled = true;
                input.parentElement.classList.add('sdxl-optim-greyed');
                input.parentElement.title = pieces.map(sdxlOptimTranslated).join('');
            });
        }
    });
}

// One of our hidden buttons, which Python answers.
function sdxlOptimClick(tab, name) {
    const button = gradioApp().getElementById(`script_${tab}_sdxl_optim_${name}`);
    if (button) button.click();
}

// The live plan is asked for once the controls have been still for a moment.
const sdxlOptimTimers = {};

function sdxlOptimPlanSoon(tab) {
    clearTimeout(sdxlOptimTimers[tab]);
    sdxlOptimTimers[tab] = setTimeout(function() {
        sdxlOptimClick(tab, 'foresee');
    }, 250);
}

// Every run writes the tab's log, which is pending meanwhile. (Its text may be the same afterwards, and its element is
// then not touched.) gradio 3 marks the log's parent as pending, gradio 4 its child.
function sdxlOptimFollowRuns(tab) {
    const log = gradioApp().getElementById(`html_log_${tab}`);
    if (!log) return;
    const observer = new MutationObserver(function(changes) {
        const ended = changes.some(change =>
            /\bpending\b/.test(change.oldValue) && !change.target.classList.contains('pending'));
        if (!ended) return;
        sdxlOptimClick(tab, 'show_report');
        sdxlOptimPlanSoon(tab);
    });
    const classes = {attributeFilter: ['class'], attributeOldValue: true};
    observer.observe(log.parentElement, classes);
    observer.observe(log, {...classes, subtree: true});
}

function sdxlOptimPlansSoon() {
    ['txt2img', 'img2img'].forEach(sdxlOptimPlanSoon);
}

onUiLoaded(function() {
    sdxlOptimShowHelp();
    sdxlOptimGreyOut();
    ['txt2img', 'img2img'].forEach(sdxlOptimFollowRuns);
    sdxlOptimPlansSoon();
});
onOptionsChanged(sdxlOptimPlansSoon); // another checkpoint, for one
