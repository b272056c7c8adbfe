"""Looks of the page: theme, style sheet and the few lines of script. Nothing is fetched from elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hummingbird.nano import world

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["ANNOUNCE", "CSS", "HEAD", "ON_LOAD", "theme"]


def theme() -> gr.themes.Base:
    """Fonts that the system has: web fonts would be asked for from a server elsewhere."""
    import gradio as gr

    accent = "#0f766e"
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
    ).set(
        body_background_fill="#f4f7f6",
        body_background_fill_dark="#0b1214",
        body_text_color="#14221f",
        body_text_color_dark="#e6efed",
        body_text_color_subdued="#4b5b58",
        body_text_color_subdued_dark="#a9bab6",
        block_background_fill="#ffffff",
        block_background_fill_dark="#131d20",
        block_border_color="#dbe4e2",
        block_border_color_dark="#26363a",
        block_label_background_fill="#ffffff",
        block_label_background_fill_dark="#131d20",
        block_label_text_color="#35504b",
        block_label_text_color_dark="#b9cbc7",
        block_title_text_color="#35504b",
        block_title_text_color_dark="#b9cbc7",
        block_info_text_color="#4b5b58",
        block_info_text_color_dark="#a9bab6",
        block_shadow="0 1px 2px rgb(15 40 35 / 6%)",
        input_background_fill="#f7faf9",
        input_background_fill_dark="#0f181b",
        input_border_color="#b9c7c4",
        input_border_color_dark="#3b4e52",
        input_border_color_focus=accent,
        input_border_color_focus_dark="#2dd4bf",
        input_placeholder_color="#5f6f6c",
        input_placeholder_color_dark="#8ea19d",
        button_primary_background_fill="linear-gradient(100deg, #0f766e, #0e6f8a)",
        button_primary_background_fill_dark="linear-gradient(100deg, #0f766e, #0e6f8a)",
        button_primary_background_fill_hover="linear-gradient(100deg, #115e59, #155e75)",
        button_primary_background_fill_hover_dark="linear-gradient(100deg, #12857c, #10809e)",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        button_border_width="1px",
        button_border_width_dark="1px",
        button_primary_border_color="transparent",
        button_primary_border_color_dark="transparent",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_dark="#1a272b",
        button_secondary_border_color="#b9c7c4",
        button_secondary_border_color_dark="#3b4e52",
        button_secondary_text_color="#14221f",
        button_secondary_text_color_dark="#e6efed",
        slider_color=accent,
        slider_color_dark="#2dd4bf",
        checkbox_background_color_selected=accent,
        checkbox_background_color_selected_dark="#0f766e",
        checkbox_label_background_fill="#f7faf9",
        checkbox_label_background_fill_dark="#0f181b",
        checkbox_label_background_fill_selected="#d7f0ec",
        checkbox_label_background_fill_selected_dark="#134e4a",
        checkbox_label_text_color_selected="#0b3b36",
        checkbox_label_text_color_selected_dark="#e6fffb",
        checkbox_label_border_color="#c6d3d0",
        checkbox_label_border_color_dark="#33464a",
        color_accent=accent,
        link_text_color=accent,
        link_text_color_dark="#5eead4",
    )


def _swatches() -> str:
    """A dot of its colour before each colour's name in the prompt builder."""
    rules = []
    for group, names, palette in (
        ("builder-color", world.COLORS, world.COLOR_RGB),
        ("builder-background", world.BACKGROUNDS, world.BACKGROUND_RGB),
    ):
        for name, rgb in zip(names, palette, strict=True):
            red, green, blue = (int(value) for value in rgb)
            rules.append(
                f'#{group} label:has(input[value="{name}"]) span::before '
                f"{{ background: rgb({red} {green} {blue}); }}"
            )
    return "\n".join(rules)


CSS = """
.gradio-container { max-width: 1320px !important; margin: 0 auto !important; width: 100%; }
.gradio-container main, .gradio-container .tabs, .gradio-container .tabitem { width: 100%; min-width: 0; }
.dark { --color-accent: #2dd4bf; }
.gradio-container input[type="range"]::-webkit-slider-thumb { border: 2px solid var(--slider-color); }
.gradio-container input[type="range"]::-moz-range-thumb { border: 2px solid var(--slider-color); }
#hb-show .html-container, #hb-pair .html-container { padding: 0 !important; }
.hb-header { display: flex; align-items: center; gap: 14px; padding: 6px 2px; flex-wrap: wrap; }
.hb-header h1 { font-size: 1.65rem; line-height: 1.1; margin: 0; letter-spacing: -0.02em; font-weight: 750;
  color: var(--body-text-color); }
.hb-header .hb-tagline { margin: 2px 0 0; color: var(--body-text-color-subdued); font-size: .95rem; }
.hb-header .hb-chip { margin-left: auto; }
.hb-bird { width: 46px; height: 46px; flex: none; }
.hb-bird .hb-belly { fill: #0f766e; } .hb-bird .hb-wing { fill: #14a394;
  } .hb-bird .hb-wing2 { fill: #0e7490; }
.hb-bird .hb-tail { fill: #be185d; } .hb-bird .hb-eye { fill: #fff; }
.dark .hb-bird .hb-belly { fill: #2dd4bf; } .dark .hb-bird .hb-wing { fill: #0d9488; }
.dark .hb-bird .hb-wing2 { fill: #22a6c7; } .dark .hb-bird .hb-tail { fill: #f472b6; }
.dark .hb-bird .hb-eye { fill: #0b1214; }
.hb-chip { display: inline-flex; gap: 8px; align-items: center; border: 1px solid var(--block-border-color);
  background: var(--block-background-fill); border-radius: 999px; padding: 5px 13px; font-size: .85rem;
  color: var(--body-text-color-subdued); max-width: 100%; overflow-wrap: anywhere; }
.hb-chip b { color: var(--body-text-color); font-weight: 650; }
.hb-quiet { color: var(--body-text-color-subdued); }
.hb-draws { margin: 0; color: var(--body-text-color-subdued); font-size: .9rem; line-height: 1.45; }
.hb-note { margin: 6px 0 0; padding: 8px 12px; border-radius: 10px; font-size: .9rem; background: #fdf3d7;
  color: #5c4308; border: 1px solid #ecd9a0; }
.dark .hb-note { background: #33290f; color: #f4dfa6; border-color: #57471c; }
.hb-note.hb-bad { background: #fde8e8; color: #7f1d1d; border-color: #f3bcbc; }
.dark .hb-note.hb-bad { background: #3b1618; color: #fecaca; border-color: #6b2a2d; }
.hb-note.hb-good { background: #dcf3ee; color: #0b4a43; border-color: #a8ddd3; }
.dark .hb-note.hb-good { background: #0f2f2c; color: #b4f0e5; border-color: #1f524d; }
.hb-examples { display: flex; flex-wrap: wrap; gap: 7px; margin: 0; padding: 0; list-style: none; }
.hb-examples button, .hb-button { font: inherit; font-size: .85rem; line-height: 1.25; cursor: pointer;
  border: 1px solid var(--input-border-color); background: var(--block-background-fill);
  color: var(--body-text-color); border-radius: 999px; padding: 6px 12px; text-decoration: none;
  text-align: left;
  min-height: 32px; display: inline-flex; align-items: center; gap: 5px; }
.hb-examples button:hover, .hb-button:hover { border-color: var(--slider-color);
  color: var(--link-text-color); }
.hb-examples button:focus-visible, .hb-button:focus-visible, .hb-card summary:focus-visible,
.hb-card pre:focus-visible { outline: 3px solid var(--slider-color); outline-offset: 2px; }
.hb-grid { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 140px), 1fr)); }
#hb-results, #hb-pair { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 270px), 1fr));
  align-items: start; }
#hb-results > *, #hb-pair > * { min-width: 0 !important; }
.hb-card { border: 1px solid var(--block-border-color); background: var(--block-background-fill);
  border-radius: 16px; overflow: hidden; box-shadow: var(--block-shadow); display: flex;
  flex-direction: column; }
.hb-frame { position: relative; background: var(--input-background-fill);
  width: 100%; max-height: 480px; overflow: hidden; }
.hb-frame video, .hb-frame img { width: 100%; height: 100%; display: block; object-fit: contain; margin: 0; }
.hb-pixelated video, .hb-pixelated img { image-rendering: pixelated; }
.hb-label { position: absolute; z-index: 2; top: 10px; left: 10px; background: rgb(11 18 20 / 82%);
  color: #fff;
  border-radius: 999px; padding: 3px 12px; font-weight: 700; font-size: .85rem; }
.hb-unfinished { width: 100%; height: 100%; display: grid; place-items: center; color: #cfe3df;
  font-weight: 600;
  background: repeating-linear-gradient(115deg, #10201f 0 14px, #122624 14px 28px); }
.hb-unfinished.hb-failed { background: #2b1113; color: #fecaca; }
.hb-unfinished img { grid-area: 1 / 1; }
.hb-body { padding: 12px 14px 14px; display: flex; flex-direction: column; gap: 8px; }
.hb-body p { margin: 0; }
.hb-state { font-size: .9rem; font-variant-numeric: tabular-nums; color: var(--body-text-color); }
.hb-error { color: #991b1b; overflow-wrap: anywhere; } .dark .hb-error { color: #fca5a5; }
.hb-prompt { font-weight: 600; line-height: 1.35; overflow-wrap: anywhere; color: var(--body-text-color);
  display: -webkit-box; -webkit-line-clamp: 4; -webkit-box-orient: vertical; overflow: hidden; }
.hb-badges { display: flex; gap: 6px; flex-wrap: wrap; }
.hb-badge { background: #e3efed; color: #28423d; border-radius: 8px; padding: 2px 9px; font-size: .83rem;
  font-variant-numeric: tabular-nums; }
.dark .hb-badge { background: #1e2e32; color: #cfe0dc; }
.hb-facts { font-size: .83rem; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.hb-card progress { width: 100%; height: 8px; border: 0; border-radius: 99px; overflow: hidden;
  appearance: none;
  background: #dbe7e4; }
.dark .hb-card progress { background: #233237; }
.hb-card progress::-webkit-progress-bar { background: transparent; }
.hb-card progress::-webkit-progress-value { background: linear-gradient(90deg, #0f766e, #0e7490);
  border-radius: 99px; }
.dark .hb-card progress::-webkit-progress-value { background: linear-gradient(90deg, #2dd4bf, #22a6c7); }
.hb-card progress::-moz-progress-bar { background: #0f766e; }
.hb-verdict { border-top: 1px solid var(--block-border-color); padding-top: 8px; font-size: .86rem; }
.hb-verdict > p { font-weight: 650; color: var(--body-text-color); }
.hb-verdict ul { list-style: none; margin: 6px 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: 6px; }
.hb-check { border-radius: 8px; padding: 2px 9px; margin: 0; }
.hb-check .hb-quiet { color: inherit; opacity: 1; font-size: .78rem; }
.hb-check small { font-size: .78rem; }
.hb-right { background: #d8f3e3; color: #0b4a2b; } .dark .hb-right { background: #123524; color: #b3f0cd; }
.hb-wrong { background: #fde2e1; color: #7f1d1d; } .dark .hb-wrong { background: #421a1c; color: #fecaca; }
.hb-seen { background: #e6ecf3; color: #233447; } .dark .hb-seen { background: #1d2a38; color: #cddcec; }
.hb-reason { margin-top: 6px !important; font-size: .8rem; color: var(--body-text-color-subdued); }
.hb-actions .hb-button { margin: 0 !important; }
.hb-actions { display: flex; align-items: center; flex-wrap: wrap; gap: 6px; }
.hb-card details { font-size: .86rem; min-width: 0; }
.hb-card summary { cursor: pointer; color: var(--link-text-color); padding: 3px 0; border-radius: 6px; }
.hb-card pre { font-family: var(--font-mono); font-size: .76rem; line-height: 1.5; overflow-x: auto;
  margin: 8px 0 0;
  padding: 10px; border-radius: 10px; background: #eef4f2; color: #14221f; white-space: pre; }
.dark .hb-card pre { background: #0b1214; color: #dcebe7; }
.hb-empty { border: 2px dashed var(--input-border-color); border-radius: 18px; min-height: 300px;
  display: grid;
  place-content: center; justify-items: center; gap: 8px; text-align: center; padding: 24px;
  color: var(--body-text-color-subdued); }
.hb-empty .hb-bird { width: 84px; height: 84px; opacity: .85; }
#hb-main { display: grid !important; grid-template-columns: minmax(0, 5fr) minmax(0, 7fr); gap: 20px;
  grid-template-areas: "ask show" "tune show"; grid-template-rows: auto 1fr; }
#hb-main > * { min-width: 0 !important; }
#hb-ask { grid-area: ask; }
#hb-show { grid-area: show; }
#hb-tune { grid-area: tune; }
.block:has(> .prose:empty), .block:has(> .html-container > .prose:empty) { display: none; }
.hb-compact .hb-body { padding: 9px 11px 10px; gap: 6px; }
.hb-compact .hb-prompt { font-size: .86rem; -webkit-line-clamp: 2; }
.hb-compact .hb-facts { font-size: .78rem; }
.hb-compact .hb-actions { margin-top: 6px; }
.hb-compact video { cursor: pointer; }
.hb-compact video:focus-visible { outline: 3px solid var(--slider-color); outline-offset: -3px; }
.hb-heading { font-size: 1.1rem; font-weight: 700; margin: 18px 0 6px; color: var(--body-text-color); }
.hb-table { width: 100%; border-collapse: collapse; font-size: .92rem; border: 0 !important; }
.hb-table tr, .hb-table th, .hb-table td { border-width: 0 0 1px !important; border-style: solid; }
.hb-model-card th, .hb-model-card td { border-color: var(--block-border-color) !important; min-width: 4.6em;
  word-break: normal !important; overflow-wrap: anywhere !important; padding: 6px 8px !important; }
.hb-model-card { overflow: visible !important; }
.hb-model-card code, .hb-model-card pre { white-space: pre-wrap !important; overflow-wrap: anywhere; }
.hb-model-card img { max-width: min(100%, 420px); }
.hb-table th, .hb-table td { text-align: left; padding: 7px 10px;
  border-bottom: 1px solid var(--block-border-color);
  overflow-wrap: anywhere; vertical-align: top; color: var(--body-text-color); }
#hb-tune .row > button { align-self: center; }
.hb-table th { min-width: 6.5em; font-weight: 600; color: var(--body-text-color-subdued); }
.hb-table td.hb-number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.hb-sheet { max-width: 100%; border-radius: 12px; image-rendering: pixelated; }
#builder-color label span::before,
#builder-background label span::before { content: ""; display: inline-block;
  width: .8em;
  height: .8em; border-radius: 50%; margin-right: .45em; vertical-align: -.06em;
  border: 1px solid rgb(128 128 128 / 70%); }
.hb-status { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
@media (max-width: 900px) {
  #hb-main { grid-template-columns: minmax(0, 1fr); grid-template-areas: "ask" "show" "tune";
    grid-template-rows: auto; }
}
@media (max-width: 640px) {
  .hb-header .hb-chip { margin-left: 0; }
  .gradio-container main.app, .gradio-container > main { padding: 10px !important; }
  .hb-empty { min-height: 180px; }
  .hb-model-card table { font-size: .74rem; }
  .hb-model-card th, .hb-model-card td { min-width: 3.4em; padding: 4px 5px !important; }
}
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
""" + _swatches()

HEAD = """
<script>
(() => {
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  // "loadeddata" does not bubble, but it can be caught on its way down.
  document.addEventListener("loadeddata", (event) => {
    const video = event.target;
    if (!calm.matches || !video.closest || !video.closest(".hb-frame")) return;
    video.autoplay = false;
    video.pause();
  }, true);
  const hovered = (event) => event.target.closest && event.target.closest(".hb-card");
  const atRest = (event) => event.target.closest && event.target.closest("video[data-hover-play]");
  const play = (video) => { if (video && video.paused) video.play().catch(() => {}); };
  document.addEventListener("mouseover", (event) => {
    if (hovered(event) && !calm.matches) play(hovered(event).querySelector("video[data-hover-play]"));
  });
  document.addEventListener("focusin", (event) => { if (!calm.matches) play(atRest(event)); });
  document.addEventListener("focusout", (event) => { if (atRest(event)) atRest(event).pause(); });
  document.addEventListener("click", (event) => play(atRest(event)));
  document.addEventListener("mouseout", (event) => {
    const card = hovered(event);
    if (!card || card.contains(event.relatedTarget)) return;
    const video = card.querySelector("video[data-hover-play]");
    if (video) video.pause();
  });
  document.addEventListener("click", async (event) => {
    const button = event.target.closest && event.target.closest("[data-copy]");
    if (!button) return;
    const card = button.closest(".hb-card");
    const code = card.querySelector(`[data-code="${button.dataset.copy}"]`);
    const before = button.dataset.words || (button.dataset.words = button.textContent);
    let copied = true;
    try { await navigator.clipboard.writeText(code.textContent); } catch {
      // Without https there is no clipboard: mark the text, so that the user can copy it.
      card.querySelector("details").open = true;
      getSelection().selectAllChildren(code);
      try { copied = document.execCommand("copy"); } catch { copied = false; }
    }
    button.textContent = copied ? "Copied ✓" : "Marked: press Ctrl+C";
    setTimeout(() => { button.textContent = before; }, 1800);
  });
})();
</script>
"""

ON_LOAD = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-action]");
  if (button) trigger("click", { action: button.dataset.action, value: button.dataset.id ||
  button.dataset.value });
});
"""
"""Makes the buttons of a piece of HTML events of its component, with what they stand for."""

ANNOUNCE = 'element.setAttribute("role", "status");'
"""Has a screen reader read out what changes inside; the element itself stays, only its content is new."""
