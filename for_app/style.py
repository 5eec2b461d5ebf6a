"""How the page looks: its theme, its CSS, and the scripts that move it."""

import gradio as gr

from for_app.views.templates import render

HEAD = render("head")


def theme() -> gr.Theme:
    """Gradio's own, with fonts that it serves itself; its own choice of a semibold font file lacks most letters."""
    fonts = gr.themes.utils.fonts
    return gr.themes.Default(
        primary_hue="teal",
        font=(fonts.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif"),
        font_mono=("ui-monospace", "Consolas", "monospace"),
    ).set(
        # dark enough for white letters
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
    )
